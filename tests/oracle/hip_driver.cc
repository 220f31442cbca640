// What a backend's StoreKv, IndexKeys, Select and Attention make of given arrays, for comparison
// with hip_algorithm.py.
//
//   everlong_hip < input
//
// Input: a line of JSON, then for each step the rows [tokens][(q_heads + 2 kv_heads) * head_dim] of
// q, k and v in f32. The JSON's fields are those of kernels/args.h. Output, for each step: the
// layer's index [pages] as bytes, the selection's blocks, counts (i32) and reuse (i64) as args.h
// lays them out, and the attention's result [tokens][q_heads * head_dim] in f32, zero where the
// step does not attend.
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "nlohmann/json.hpp"

namespace everlong {
namespace {

using Json = nlohmann::json;

// Everything is in the second of two layers.
constexpr int64_t kLayers = 2;
constexpr int64_t kLayer = 1;

DType TypeOf(const std::string& name) {
  return name == "f32" ? DType::kF32 : name == "f16" ? DType::kF16 : DType::kBF16;
}

SelectParams SelectOf(const Json& json) {
  SelectParams p = {.selector = json["selector"] == "hip" ? Selector::kHip : Selector::kScan,
                    .probes = json["probes"] == "relative" ? ProbePositions::kRelative
                              : json["probes"] == "chunk"  ? ProbePositions::kChunk
                                                           : ProbePositions::kNone,
                    .last_probe = json["last_probe"],
                    .all_heads = json["all_heads"],
                    .keep_blocks = json["keep_blocks"],
                    .distance = json["distance"],
                    .dilation = json["dilation"],
                    .rerank = json["rerank"]};
  for (const Json& stage : json["stages"]) {
    p.stages[p.num_stages++] = {.chunk_tokens = stage["chunk_tokens"],
                                .keep_chunks = stage["keep_chunks"],
                                .every_key = stage["every_key"],
                                .pool_rows = stage["pool_rows"]};
  }
  return p;
}

QueryBlock BlockOf(const Json& json) {
  return {.sequence = json["sequence"],
          .first_row = json["first_row"],
          .num_rows = json["num_rows"],
          .num_sinks = json["num_sinks"],
          .window_begin = json["window_begin"],
          .positions = json["positions"] == "true"        ? Positions::kTrue
                       : json["positions"] == "streaming" ? Positions::kStreaming
                                                          : Positions::kClipped,
          .clip_distance = json["clip_distance"],
          .slot = json["slot"],
          .select = json["select"],
          .first_stage = json["first_stage"],
          .first = json["first"]};
}

// Device memory of one run.
struct Memory {
  KvCache cache;
  KeyIndex index;
  Selection selection;
  std::vector<float> inv_freq;
};

Memory Reserve(const Json& json, Kernels& kernels) {
  const int64_t num_pages = json["num_pages"];
  Memory memory = {.inv_freq = json["inv_freq"]};
  KvCache& cache = memory.cache;
  cache = {
      .kv_heads = json["kv_heads"], .head_dim = json["head_dim"], .type = TypeOf(json["kv_type"])};
  cache.layer_stride_bytes = num_pages * cache.PageBytes();
  cache.base = kernels.Allocate(kLayers * cache.layer_stride_bytes);
  KeyIndex& index = memory.index;
  index = {.kv_heads = cache.kv_heads, .head_dim = cache.head_dim, .bits = json["bits"]};
  index.layer_stride_bytes = num_pages * index.PageBytes();
  index.base = kernels.Allocate(kLayers * index.layer_stride_bytes);
  index.range_stride_bytes = num_pages * index.RangePageBytes();
  index.ranges = kernels.Allocate(kLayers * index.range_stride_bytes);
  Selection& selection = memory.selection;
  selection = {.layers = kLayers,
               .slots = json["slots"],
               .kv_heads = cache.kv_heads,
               .capacity = json["capacity"]};
  const int64_t lists = selection.List(kLayers, 0, 0, 0);
  selection.blocks = static_cast<int32_t*>(kernels.Allocate(lists * selection.capacity * 4));
  selection.counts = static_cast<int32_t*>(kernels.Allocate(lists * 4));
  selection.reuse =
      static_cast<int64_t*>(kernels.Allocate(selection.Reuse(selection.slots, 0, 0) * 8));
  return memory;
}

// The arrays that a StepLayout points into.
struct Step {
  explicit Step(const Json& json)
      : query_begin(json["query_begin"]),
        context_begin(json["context_begin"]),
        pages(json["pages"]),
        page_begin(json["page_begin"]),
        tokens(query_begin.back()) {
    for (const Json& block : json["blocks"]) blocks.push_back(BlockOf(block));
    for (const Json& select : json["selects"]) selects.push_back(SelectOf(select));
    plan = {.num_blocks = static_cast<int32_t>(blocks.size()),
            .num_selects = static_cast<int32_t>(selects.size()),
            .blocks = blocks.data(),
            .selects = selects.data()};
  }

  int32_t num_tokens() const { return query_begin.back(); }
  StepLayout Layout() const {
    return {.num_sequences = static_cast<int32_t>(context_begin.size()),
            .num_tokens = num_tokens(),
            .tokens = tokens.data(),
            .query_begin = query_begin.data(),
            .context_begin = context_begin.data(),
            .pages = pages.data(),
            .page_begin = page_begin.data(),
            .num_plans = 1,
            .plans = &plan};
  }

  std::vector<int32_t> query_begin;
  std::vector<int64_t> context_begin;
  std::vector<int32_t> pages;
  std::vector<int64_t> page_begin;
  std::vector<int32_t> tokens;
  std::vector<QueryBlock> blocks;
  std::vector<SelectParams> selects;
  AttentionPlan plan;
};

void Write(Kernels& kernels, const void* device, int64_t bytes) {
  std::vector<char> host(bytes);
  kernels.Sync();
  kernels.Download(host.data(), device, bytes);
  std::fwrite(host.data(), 1, host.size(), stdout);
}

void RunStep(const Json& json, const Json& step_json, const Memory& memory, Kernels& kernels) {
  const Step step(step_json);
  const auto& [cache, index, selection, inv_freq] = memory;
  const int32_t q_heads = json["q_heads"];
  const int64_t q_width = int64_t{q_heads} * cache.head_dim;
  const int64_t width = q_width + int64_t{2} * cache.kv_heads * cache.head_dim;
  std::vector<float> rows(step.num_tokens() * width);
  std::cin.read(reinterpret_cast<char*>(rows.data()),
                static_cast<std::streamsize>(rows.size() * sizeof(float)));
  void* qkv = kernels.Allocate(static_cast<int64_t>(rows.size() * sizeof(float)));
  void* out = kernels.Allocate(step.num_tokens() * q_width * 4);
  kernels.Upload(qkv, rows.data(), static_cast<int64_t>(rows.size() * sizeof(float)));

  const Rope rope = {.inv_freq = inv_freq.data(), .scale = json["rope_scale"]};
  kernels.BeginStep(step.Layout());
  kernels.StoreKv({.cache = cache, .qkv = qkv, .layer = kLayer, .q_heads = q_heads});
  kernels.IndexKeys({.cache = cache, .index = index, .layer = kLayer});
  if (step_json["attend"]) {
    kernels.Select({.cache = cache,
                    .index = index,
                    .selection = selection,
                    .rope = rope,
                    .q = qkv,
                    .q_stride = width,
                    .layer = kLayer,
                    .q_heads = q_heads,
                    .rotate = json["rotate"]});
    kernels.Attention({.cache = cache,
                       .selection = selection,
                       .rope = rope,
                       .q = qkv,
                       .out = out,
                       .q_stride = width,
                       .layer = kLayer,
                       .q_heads = q_heads,
                       .scale = json["scale"],
                       .rotate = json["rotate"]});
  }
  const int64_t lists = selection.List(kLayers, 0, 0, 0);
  Write(kernels, static_cast<char*>(index.base) + kLayer * index.layer_stride_bytes,
        index.layer_stride_bytes);
  Write(kernels, selection.blocks, lists * selection.capacity * 4);
  Write(kernels, selection.counts, lists * 4);
  Write(kernels, selection.reuse, selection.Reuse(selection.slots, 0, 0) * 8);
  Write(kernels, out, step.num_tokens() * q_width * 4);
  kernels.Free(qkv);
  kernels.Free(out);
}

void Main() {
  std::string line;
  std::getline(std::cin, line);
  const Json json = Json::parse(line);
  const auto kernels =
      json["backend"] == "reference" ? MakeReferenceKernels() : MakeCpuKernels(json["threads"]);
  const Memory memory = Reserve(json, *kernels);
  for (const Json& step : json["steps"]) RunStep(json, step, memory, *kernels);
}

}  // namespace
}  // namespace everlong

int main() {
  everlong::Main();
}
