#include "engine/model.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "engine/status.h"
#include "fmt/format.h"
#include "kernels/quant.h"

namespace everlong {
namespace {

struct Shape {
  int64_t rows;
  int64_t cols;
};

}  // namespace

// Reads tensors by their Hugging Face names and places them on the device.
class Model::Loader {
 public:
  Loader(const Checkpoint& checkpoint, Kernels* kernels)
      : checkpoint_(checkpoint), kernels_(kernels) {}

  absl::StatusOr<Matrix> LoadMatrix(const std::string& name, Shape shape) {
    ASSIGN_OR_RETURN(HostMatrix part, checkpoint_.Tensor(name, shape.rows, shape.cols));
    return Place({&part, 1});
  }

  absl::StatusOr<const float*> LoadVector(const std::string& name, int64_t size) {
    std::vector<float> values;
    RETURN_IF_ERROR(AppendVector(name, size, values));
    return Place(values);
  }

  // Projections `names` under `prefix`, reading the same input: stacked where types allow.
  absl::StatusOr<Linear> LoadLinear(const std::string& prefix,
                                    const std::vector<std::pair<std::string, Shape>>& names,
                                    bool bias) {
    std::vector<HostMatrix> parts;
    std::vector<float> biases;
    for (const auto& [name, shape] : names) {
      ASSIGN_OR_RETURN(HostMatrix part,
                       checkpoint_.Tensor(prefix + name + ".weight", shape.rows, shape.cols));
      parts.push_back(part);
      if (bias) RETURN_IF_ERROR(AppendVector(prefix + name + ".bias", shape.rows, biases));
    }
    Linear linear;
    for (size_t begin = 0; begin < parts.size();) {
      size_t end = begin + 1;
      while (end < parts.size() && parts[end].type == parts[begin].type) ++end;
      linear.parts.push_back(Place({parts.data() + begin, end - begin}));
      begin = end;
    }
    if (bias) linear.bias = Place(biases);
    return linear;
  }

  int64_t bytes() const { return bytes_; }

 private:
  absl::Status AppendVector(const std::string& name, int64_t size, std::vector<float>& out) {
    ASSIGN_OR_RETURN(HostMatrix tensor, checkpoint_.Tensor(name, 1, size));
    out.resize(out.size() + size);
    DequantizeRow(tensor.type, tensor.data, size, out.data() + out.size() - size);
    return absl::OkStatus();
  }

  Matrix Place(std::span<const HostMatrix> parts) {
    const Matrix matrix = kernels_->LoadMatrix(parts);
    bytes_ += matrix.rows * RowBytes(matrix.type, matrix.cols);
    return matrix;
  }

  const float* Place(const std::vector<float>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
    bytes_ += bytes;
    void* device = kernels_->Allocate(bytes);
    kernels_->Upload(device, values.data(), bytes);
    return static_cast<const float*>(device);
  }

  const Checkpoint& checkpoint_;
  Kernels* kernels_;
  int64_t bytes_ = 0;
};

Model::Model(ModelConfig config, Kernels* kernels, int32_t max_tokens, int32_t max_logit_rows)
    : config_(std::move(config)), kernels_(kernels), max_logit_rows_(max_logit_rows) {
  const auto allocate = [&](int64_t rows, int64_t width, DType type) {
    const int64_t bytes = rows * width * ByteSize(type);
    activation_bytes_ += bytes;
    return kernels->Allocate(bytes);
  };
  const auto activations = [&](int64_t width) {
    return allocate(max_tokens, width, kernels->activation_type());
  };
  const auto floats = [&](int64_t rows, int64_t width) {
    return static_cast<float*>(allocate(rows, width, DType::kF32));
  };
  const int64_t q_width = int64_t{config_.q_heads} * config_.head_dim;
  residual_ = floats(max_tokens, config_.hidden_size);
  normed_ = activations(config_.hidden_size);
  qkv_ = activations(q_width + int64_t{2} * config_.kv_heads * config_.head_dim);
  attended_ = activations(q_width);
  gate_up_ = activations(std::max(2 * config_.intermediate_size, q_width));
  gated_ = activations(config_.intermediate_size);
  lse_ = floats(max_tokens, config_.q_heads);
  logits_ = floats(max_logit_rows, config_.vocab_size);
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const Checkpoint& checkpoint, Kernels* kernels,
                                                   int32_t max_tokens, int32_t max_logit_rows) {
  const ModelConfig& c = checkpoint.config();
  auto model = std::unique_ptr<Model>(new Model(c, kernels, max_tokens, max_logit_rows));
  Loader loader(checkpoint, kernels);
  const int64_t hidden = c.hidden_size;
  const int64_t q_width = int64_t{c.q_heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;

  ASSIGN_OR_RETURN(model->embedding_,
                   loader.LoadMatrix("model.embed_tokens.weight", {c.vocab_size, hidden}));
  for (int32_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const std::string attention = prefix + "self_attn.";
    Layer layer;
    ASSIGN_OR_RETURN(layer.attention_norm,
                     loader.LoadVector(prefix + "input_layernorm.weight", hidden));
    ASSIGN_OR_RETURN(layer.qkv, loader.LoadLinear(attention,
                                                  {{"q_proj", {q_width, hidden}},
                                                   {"k_proj", {kv_width, hidden}},
                                                   {"v_proj", {kv_width, hidden}}},
                                                  c.qkv_bias));
    if (c.qk_norm) {
      ASSIGN_OR_RETURN(layer.q_norm, loader.LoadVector(attention + "q_norm.weight", c.head_dim));
      ASSIGN_OR_RETURN(layer.k_norm, loader.LoadVector(attention + "k_norm.weight", c.head_dim));
    }
    ASSIGN_OR_RETURN(layer.attention_out,
                     loader.LoadLinear(attention, {{"o_proj", {hidden, q_width}}}, c.output_bias));
    ASSIGN_OR_RETURN(layer.mlp_norm,
                     loader.LoadVector(prefix + "post_attention_layernorm.weight", hidden));
    ASSIGN_OR_RETURN(layer.gate_up, loader.LoadLinear(prefix + "mlp.",
                                                      {{"gate_proj", {c.intermediate_size, hidden}},
                                                       {"up_proj", {c.intermediate_size, hidden}}},
                                                      c.mlp_bias));
    ASSIGN_OR_RETURN(layer.down,
                     loader.LoadLinear(prefix + "mlp.",
                                       {{"down_proj", {hidden, c.intermediate_size}}}, c.mlp_bias));
    model->layers_.push_back(std::move(layer));
  }
  ASSIGN_OR_RETURN(model->final_norm_, loader.LoadVector("model.norm.weight", hidden));
  if (c.tied_embeddings) {
    model->head_.parts = {model->embedding_};
  } else {
    ASSIGN_OR_RETURN(model->head_,
                     loader.LoadLinear("", {{"lm_head", {c.vocab_size, hidden}}}, false));
  }
  model->weight_bytes_ = loader.bytes();
  return model;
}

void Model::Forward(const StepLayout& step, const ContextMemory& memory, Fidelity* fidelity) {
  const int32_t* outputs_end = step.output_rows + step.num_outputs;
  num_decode_outputs_ = static_cast<int32_t>(
      std::lower_bound(step.output_rows, outputs_end, step.num_decode) - step.output_rows);
  kernels_->BeginStep(step);
  kernels_->Embed({.table = embedding_, .out = residual_});
  for (size_t i = 0; i < layers_.size(); ++i) {
    AttentionBlock(layers_[i], static_cast<int64_t>(i), step, memory, fidelity);
    MlpBlock(layers_[i], {step.num_tokens, step.num_decode});
  }
}

void Model::AttentionBlock(const Layer& layer, int64_t index, const StepLayout& step,
                           const ContextMemory& memory, Fidelity* fidelity) {
  const Rows rows = {step.num_tokens, step.num_decode};
  const int64_t q_width = int64_t{config_.q_heads} * config_.head_dim;
  const int64_t qkv_width = q_width + int64_t{2} * config_.kv_heads * config_.head_dim;
  const Rope rope = {.inv_freq = config_.rope_inv_freq.data(), .scale = config_.rope_scale};
  const int32_t plan = memory.layer_class[index];
  Norm(layer.attention_norm, rows.all, -1);
  Apply(layer.qkv, normed_, config_.hidden_size, qkv_, qkv_width, rows, MatMulOut::kActivations);
  kernels_->StoreKv({.cache = memory.cache,
                     .qkv = qkv_,
                     .q_norm = layer.q_norm,
                     .k_norm = layer.k_norm,
                     .layer = index,
                     .q_heads = config_.q_heads,
                     .eps = config_.rms_norm_eps});
  if (memory.index.base != nullptr) {
    kernels_->IndexKeys({.cache = memory.cache, .index = memory.index, .layer = index});
  }
  if (step.plans[plan].num_selects > 0) {
    kernels_->Select({.cache = memory.cache,
                      .index = memory.index,
                      .selection = memory.selection,
                      .rope = rope,
                      .q = qkv_,
                      .q_stride = qkv_width,
                      .layer = index,
                      .plan = plan,
                      .q_heads = config_.q_heads,
                      .rotate = config_.rotate[index]});
  }
  AttentionArgs attention = {.cache = memory.cache,
                             .selection = memory.selection,
                             .rope = rope,
                             .q = qkv_,
                             .out = attended_,
                             .q_stride = qkv_width,
                             .layer = index,
                             .plan = plan,
                             .q_heads = config_.q_heads,
                             .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                             .rotate = config_.rotate[index]};
  kernels_->Attention(attention);
  if (fidelity != nullptr) {
    attention.out = gate_up_;
    attention.lse = lse_;
    fidelity->Measure(*kernels_, attention);
  }
  Apply(layer.attention_out, attended_, q_width, residual_, config_.hidden_size, rows,
        MatMulOut::kAddF32);
}

void Model::MlpBlock(const Layer& layer, Rows rows) {
  const int64_t width = config_.intermediate_size;
  Norm(layer.mlp_norm, rows.all, -1);
  Apply(layer.gate_up, normed_, config_.hidden_size, gate_up_, 2 * width, rows,
        MatMulOut::kActivations);
  kernels_->GatedActivation(
      {.gate_up = gate_up_, .out = gated_, .rows = rows.all, .width = static_cast<int32_t>(width)});
  Apply(layer.down, gated_, width, residual_, config_.hidden_size, rows, MatMulOut::kAddF32);
}

float* Model::Logits(int32_t first, int32_t rows) {
  const int32_t decoded = std::clamp(num_decode_outputs_ - first, 0, rows);
  Norm(final_norm_, rows, first);
  Apply(head_, normed_, config_.hidden_size, logits_, config_.vocab_size, {rows, decoded},
        MatMulOut::kF32);
  return logits_;
}

void Model::Apply(const Linear& linear, const void* x, int64_t x_stride, void* out,
                  int64_t out_stride, Rows rows, MatMulOut mode) {
  const int64_t element = mode == MatMulOut::kActivations ? ByteSize(kernels_->activation_type())
                                                          : static_cast<int64_t>(sizeof(float));
  int64_t done = 0;
  for (const Matrix& part : linear.parts) {
    kernels_->MatMul({.w = part,
                      .x = x,
                      .bias = linear.bias == nullptr ? nullptr : linear.bias + done,
                      .out = static_cast<std::byte*>(out) + done * element,
                      .x_stride = x_stride,
                      .out_stride = out_stride,
                      .rows = rows.all,
                      .decode_rows = rows.decoded,
                      .mode = mode});
    done += part.rows;
  }
}

void Model::Norm(const float* weight, int32_t rows, int32_t first_output) {
  kernels_->RmsNorm({.x = residual_,
                     .weight = weight,
                     .out = normed_,
                     .rows = rows,
                     .width = static_cast<int32_t>(config_.hidden_size),
                     .first_output = first_output,
                     .eps = config_.rms_norm_eps});
}

}  // namespace everlong
