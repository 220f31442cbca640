// A backend that tests can make fail or slow down.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "kernels/kernels.h"

namespace everlong {

// Passes everything on to another backend; before each attention it calls a hook, which may
// throw or take its time.
class HookedKernels : public Kernels {
 public:
  explicit HookedKernels(std::function<void()> hook,
                         std::unique_ptr<Kernels> inner = MakeReferenceKernels())
      : hook_(std::move(hook)), inner_(std::move(inner)) {}
  std::string_view name() const override { return "hooked"; }
  DType activation_type() const override { return inner_->activation_type(); }
  std::span<const DType> kv_types() const override { return inner_->kv_types(); }
  std::optional<MemoryBytes> memory() const override { return inner_->memory(); }
  void* Allocate(int64_t bytes) override { return inner_->Allocate(bytes); }
  void Free(void* device) override { inner_->Free(device); }
  void Upload(void* to, const void* from, int64_t bytes) override {
    inner_->Upload(to, from, bytes);
  }
  void Download(void* to, const void* from, int64_t bytes) override {
    inner_->Download(to, from, bytes);
  }
  Matrix LoadMatrix(std::span<const HostMatrix> parts) override {
    return inner_->LoadMatrix(parts);
  }
  void BeginStep(const StepLayout& layout) override { inner_->BeginStep(layout); }
  void Embed(const EmbedArgs& args) override { inner_->Embed(args); }
  void RmsNorm(const RmsNormArgs& args) override { inner_->RmsNorm(args); }
  void MatMul(const MatMulArgs& args) override { inner_->MatMul(args); }
  void StoreKv(const StoreKvArgs& args) override { inner_->StoreKv(args); }
  void IndexKeys(const IndexKeysArgs& args) override { inner_->IndexKeys(args); }
  void Select(const SelectArgs& args) override { inner_->Select(args); }
  void Attention(const AttentionArgs& args) override {
    hook_();
    inner_->Attention(args);
  }
  void GatedActivation(const GatedActivationArgs& args) override { inner_->GatedActivation(args); }
  void Sample(const SampleArgs& args) override { inner_->Sample(args); }
  void CopyPages(const CopyPagesArgs& args) override { inner_->CopyPages(args); }
  void Sync() override { inner_->Sync(); }

 private:
  std::function<void()> hook_;
  std::unique_ptr<Kernels> inner_;
};

}  // namespace everlong
