// The data half of the contract between the engine and a backend: one trivially copyable struct per
// operation, with a shape beside every pointer. Strides count elements. Anything that is multiplied
// by a sequence length is 64 bits wide. CUDA sources include this header, check.h, cuda/* and
// std only.
//
// "Device" memory is what Kernels::Allocate returns; on the CPU backends it is ordinary memory.
// Pointers of type void* to activations hold Kernels::activation_type() (f32 on the CPU backends).
#pragma once

#include <cstdint>

namespace everlong {

// kF8: 4 bits of exponent, 3 of mantissa, largest 448 (E4M3 of Micikevicius et al.: FP8 Formats for
// Deep Learning, 2022), of the KV cache and, on a device, of weights. From kQ8_0 on: GGUF's
// quantised types (quant.h), of weights only.
enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4K,
  kQ5K,
  kQ6K
};

constexpr bool IsQuantized(DType type) {
  return type >= DType::kQ8_0;
}

// A quantised row is a sequence of blocks of so many elements, so many bytes each. Plain types have
// blocks of one element.
struct BlockShape {
  int64_t elements;
  int64_t bytes;
};

constexpr BlockShape BlockOf(DType type) {
  switch (type) {
    case DType::kF32:
      return {1, 4};
    case DType::kF16:
    case DType::kBF16:
      return {1, 2};
    case DType::kF8:
      return {1, 1};
    case DType::kQ8_0:
      return {32, 34};
    case DType::kQ4_0:
      return {32, 18};
    case DType::kQ4_1:
      return {32, 20};
    case DType::kQ5_0:
      return {32, 22};
    case DType::kQ5_1:
      return {32, 24};
    case DType::kQ4K:
      return {256, 144};
    case DType::kQ5K:
      return {256, 176};
    case DType::kQ6K:
      return {256, 210};
  }
  return {1, 0};
}

// Of a plain type's element.
constexpr int64_t ByteSize(DType type) {
  return BlockOf(type).bytes;
}

// Of a row of `elements`, a multiple of the block's.
constexpr int64_t RowBytes(DType type, int64_t elements) {
  return elements / BlockOf(type).elements * BlockOf(type).bytes;
}

// A KV block is the finest unit that is selected, stored and fetched; a page is the unit of
// allocation.
inline constexpr int kBlockTokens = 8;
inline constexpr int kPageBlocks = 8;
inline constexpr int kPageTokens = kBlockTokens * kPageBlocks;

// A weight matrix of `rows` outputs and `cols` inputs, in the layout its backend computes from.
// Made by Kernels::LoadMatrix, owned by that backend, valid as long as it lives.
struct Matrix {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  DType type = DType::kF32;

  bool operator==(const Matrix&) const = default;
};

// Rotary position embedding. Dimension i is paired with i + head_dim / 2 ("half split"); the pair
// at position p is turned by p * inv_freq[i]. Rotated vectors are multiplied by `scale` (1, or
// YaRN's).
struct Rope {
  const float* inv_freq = nullptr;  // host, [head_dim / 2]; valid during the step
  float scale = 1.0f;

  bool operator==(const Rope&) const = default;
};

// The paged KV cache. Page p of layer l starts at
//   base + l * layer_stride_bytes + p * PageBytes()
// and holds [kv_heads][kPageBlocks] blocks; a block holds K[kBlockTokens][head_dim], then
// V[kBlockTokens][head_dim], and with kF8 then f32 scales, K's [kBlockTokens] and V's
// [kBlockTokens]: an element stands for itself times the scale of its token, the largest magnitude
// of the token's elements over 448. Keys are stored before rotation.
struct KvCache {
  void* base = nullptr;  // device
  int64_t layer_stride_bytes = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  DType type = DType::kBF16;

  constexpr int64_t BlockElements() const { return int64_t{2} * kBlockTokens * head_dim; }
  constexpr int64_t BlockBytes() const {
    const int64_t scales = type == DType::kF8 ? int64_t{2} * kBlockTokens * 4 : 0;
    return BlockElements() * ByteSize(type) + scales;
  }
  constexpr int64_t PageBytes() const { return int64_t{kv_heads} * kPageBlocks * BlockBytes(); }

  bool operator==(const KvCache&) const = default;
};

// A compact copy of the keys of complete pages, paged alike: index page p of layer l starts at
//   base + l * layer_stride_bytes + p * PageBytes()
// and holds, per KV head, codes [head_dim / 4][32 * bits], scales (f16) [64] and the page's mean
// key (f16) [head_dim]. A key is mean + scale * (code - (2^bits - 1) / 2). The 256 codes of a group
// of four dimensions are numbered c = 4 * token + dimension % 4, so that four neighbours fill a
// lane of a byte product; code c is field c / (32 * bits), from the lowest bits up, of byte c % (32
// * bits). head_dim is a multiple of 4.
//
// Between what a page's keys lie is kept apart: page p of layer l has it at
//   ranges + l * range_stride_bytes + p * RangePageBytes()
// per KV head codes of the least element in each dimension [head_dim] and of the largest
// [head_dim], then exponents e (int8) [kv_heads], padded. A code stands for (code - kRangeZero) *
// 2^e, the nearest to the element; e is the least (but kLeastRangeExponent) at which no code need
// be further than kRangeZero - 1 from kRangeZero.
struct KeyIndex {
  void* base = nullptr;    // device; null: no selector needs it
  void* ranges = nullptr;  // device, with base
  int64_t layer_stride_bytes = 0;
  int64_t range_stride_bytes = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t bits = 4;  // 1, 2 or 4

  constexpr int64_t GroupBytes() const { return int64_t{32} * bits; }
  constexpr int64_t CodeBytes() const { return head_dim / 4 * GroupBytes(); }
  constexpr int64_t HeadBytes() const {
    return CodeBytes() + 2 * (kPageTokens + int64_t{head_dim});
  }
  constexpr int64_t PageBytes() const { return kv_heads * HeadBytes(); }
  constexpr int64_t RangePageBytes() const {
    return int64_t{2} * head_dim * kv_heads + (int64_t{kv_heads} + 31) / 32 * 32;
  }

  bool operator==(const KeyIndex&) const = default;
};

inline constexpr int kRangeZero = 64;
inline constexpr int kLeastRangeExponent = -120;

inline constexpr int kMaxStages = 4;
inline constexpr int kFinalList = kMaxStages - 1;

// Lists of blocks by layer and slot. Block b holds positions [8 b, 8 b + 8) of its sequence. List
// kFinalList is what attention reads; list s, of stages before the last, is what stage s kept, each
// chunk by its first block.
struct Selection {
  int32_t* blocks = nullptr;  // device, [layers][slots][kv_heads][kMaxStages][capacity]
  int32_t* counts = nullptr;  // device, [layers][slots][kv_heads][kMaxStages]
  // Device, [slots][layers][kv_heads][2]: the blocks of a slot's final lists but the first, and how
  // many of them the list before had.
  int64_t* reuse = nullptr;
  int32_t layers = 0;
  int32_t slots = 0;
  int32_t kv_heads = 0;
  int32_t capacity = 0;  // entries of a list

  constexpr int64_t List(int64_t layer, int64_t slot, int64_t kv_head, int64_t list) const {
    return ((layer * slots + slot) * kv_heads + kv_head) * kMaxStages + list;
  }
  constexpr int64_t Reuse(int64_t slot, int64_t layer, int64_t kv_head) const {
    return ((slot * layers + layer) * kv_heads + kv_head) * 2;
  }

  bool operator==(const Selection&) const = default;
};

// How the keys that a query reads are numbered for the rotary embedding.
//   kTrue       every key and query at its own position
//   kStreaming  the keys that are read, numbered from 0 in token order; the query at its place in
//               the window
//   kClipped    keys of the window at their true distance, all others at clip_distance
// Only distances matter, so backends may shift all positions of a query block together.
enum class Positions : uint8_t { kTrue, kStreaming, kClipped };

// kHip: greedy probing in stages (arXiv 2502.08910, algorithm 1); where both probes lie past the
// candidates, the left half is probed next. kScan: the keys of KeyIndex, every one or those of the
// pages that a sieve leaves; a backend may round each query row to multiples of 1/127 of its
// largest element there.
enum class Selector : uint8_t { kHip, kScan };

// Where kHip sees a probed key. kRelative: left probes at 0, right ones at 1, the query at
// distance + 1. kChunk: at the number of its chunk, the query at min(own position, number of
// chunks + distance). kNone: nothing is rotated.
enum class ProbePositions : uint8_t { kRelative, kChunk, kNone };

// One stage of kHip: candidates are cut into chunks of `chunk_tokens` (a power of two times
// kBlockTokens, shrinking from stage to stage), of which keep_chunks stay.
struct HipStage {
  int32_t chunk_tokens = 0;
  int32_t keep_chunks = 0;
  bool every_key = false;  // a chunk's score is its best key's, all seen at `distance`
  bool pool_rows = false;  // query rows are averaged by 4 (aligned positions) first

  bool operator==(const HipStage&) const = default;
};

// Picks keep_blocks KV blocks among the candidates [num_sinks, window_begin) of a query block. A
// score is the maximum over the block's query rows and, of the query heads, those of the KV head's
// group, or with all_heads all. Ties: the lower block. Where there are no more candidates than
// that, all are taken. Selected blocks are stored in ascending order.
struct SelectParams {
  Selector selector = Selector::kScan;
  ProbePositions probes = ProbePositions::kRelative;  // kHip
  bool last_probe = false;  // kHip: a chunk's score is its last probe's, not its path's maximum
  bool all_heads = false;
  int32_t keep_blocks = 0;
  int32_t distance = 0;    // at which kScan sees every key and kRelative probes, about
  int32_t dilation = 0;    // kScan: a block takes the best score of those so many blocks around
  int32_t rerank = 1;      // kScan: so many times keep_blocks are scored again with stored keys
  int32_t sieve = 1;       // kScan: about one page of so many is scanned (SieveOf)
  int32_t num_stages = 0;  // kHip
  HipStage stages[kMaxStages];

  bool operator==(const SelectParams&) const = default;
};

// What a scan reads of `num_pages` pages, those with candidates, counted from the first of them.
// Page i is of group i % num_groups. Of each group those `keep` pages are scanned whose ranges
// promise most, the lower of equals; blocks of others have score -infinity. A page promises a row
// the sum over dimensions of its elements' products with the highs where they are positive, else
// with the lows. At least two pages for each block that is to be kept or scored again are scanned.
struct Sieve {
  int32_t num_groups =
      0;  // 0: all pages are scanned, since leaving out fewer than half would not pay
  int32_t keep = 0;
};

inline constexpr int kSieveGroupPages = 128;  // at most

constexpr Sieve SieveOf(const SelectParams& params, int64_t num_pages) {
  const int64_t least = int64_t{2} * params.keep_blocks * params.rerank;
  const int64_t share = (num_pages + params.sieve - 1) / params.sieve;
  const int64_t wanted = share > least ? share : least;
  if (params.sieve == 1 || 2 * wanted > num_pages) return {};
  const int64_t groups = (num_pages + kSieveGroupPages - 1) / kSieveGroupPages;
  return {static_cast<int32_t>(groups), static_cast<int32_t>((wanted + groups - 1) / groups)};
}

// Queries that read the same keys: the sinks [0, num_sinks), the blocks in `slot` of the Selection,
// and the window [window_begin, the query's own position]. All bounds are multiples of
// kBlockTokens, num_sinks <= window_begin. Dense attention is num_sinks = window_begin = 0.
struct QueryBlock {
  int32_t sequence = 0;
  int32_t first_row = 0;  // of the step's tokens
  int32_t num_rows = 0;
  int32_t num_sinks = 0;
  int64_t window_begin = 0;
  Positions positions = Positions::kTrue;
  int32_t clip_distance = 0;
  int32_t slot = -1;        // -1: no selection
  int32_t select = -1;      // which SelectParams
  int32_t first_stage = 0;  // stages before it keep their lists; num_stages (kScan: 1): all do
  bool first = true;        // the slot's lists are those of something else
};

// What the layers of one class read. Blocks are in the tokens' order, and no token is in two; what
// Attention writes of a token in none stays as it was.
struct AttentionPlan {
  int32_t num_blocks = 0;
  int32_t num_selects = 0;
  const QueryBlock* blocks = nullptr;
  const SelectParams* selects = nullptr;
};

// The ragged batch of one step: the new tokens of every sequence, back to back. Host arrays, read
// during BeginStep only. Token i of sequence s stands at position
//   context_begin[s] + i - query_begin[s]
// and sees positions up to its own. Page j of sequence s holds positions [64 j, 64 j + 64).
// Sequences of a step may be parts of one context, whose pages they share: what a token sees is
// stored before the step or by its StoreKv.
//
// The first num_decode tokens are decoded: each is a sequence's only one and in every plan a query
// block of its own or in none. What a backend rounds may depend on whether a token is decoded, but
// on nothing else of the batch.
struct StepLayout {
  int32_t num_sequences = 0;
  int32_t num_tokens = 0;
  int32_t num_decode = 0;
  const int32_t* tokens = nullptr;         // [num_tokens]
  const int32_t* query_begin = nullptr;    // [num_sequences + 1], cumulative
  const int64_t* context_begin = nullptr;  // [num_sequences], the first token's position
  const int32_t* pages = nullptr;          // page ids, sequence after sequence
  const int64_t* page_begin = nullptr;     // [num_sequences + 1], cumulative, into pages
  int32_t num_outputs = 0;
  const int32_t* output_rows = nullptr;  // [num_outputs], ascending: tokens whose logits are wanted
  int32_t num_plans = 0;
  const AttentionPlan* plans = nullptr;  // [num_plans], one per layer class
};

// out[t] = table[tokens[t]], as f32.
struct EmbedArgs {
  Matrix table;
  float* out = nullptr;  // [num_tokens][table.cols]

  bool operator==(const EmbedArgs&) const = default;
};

// out[i] = x[r(i)] / sqrt(mean(x[r(i)]^2) + eps) * weight, where r(i) is i, or with first_output >=
// 0 the step's output_rows[first_output + i].
struct RmsNormArgs {
  const float* x = nullptr;       // [*][width]
  const float* weight = nullptr;  // device, [width]
  void* out = nullptr;            // activations, [rows][width]
  int32_t rows = 0;
  int32_t width = 0;
  int32_t first_output = -1;
  float eps = 0.0f;

  bool operator==(const RmsNormArgs&) const = default;
};

// out[r][n] = sum_k x[r][k] * w[n][k] + bias[n], f32 accumulation.
// kActivations: out holds activations. kF32: out is f32. kAddF32: out is f32 and the result is
// added. The rounding of a row depends on whether it is one of the first decode_rows, and not on
// how many there are of either. Where w is quantised a backend may round x to multiples of 2^-19 of
// the largest of those inputs that share a scale in w (ScaledElements in quant.h).
enum class MatMulOut : uint8_t { kActivations, kF32, kAddF32 };
struct MatMulArgs {
  Matrix w;
  const void* x = nullptr;      // activations, [rows][x_stride >= w.cols]
  const float* bias = nullptr;  // device, [w.rows], or null
  void* out = nullptr;          // [rows][out_stride >= w.rows]
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  int32_t rows = 0;
  int32_t decode_rows = 0;  // of them, which come first
  MatMulOut mode = MatMulOut::kActivations;

  bool operator==(const MatMulArgs&) const = default;
};

// Normalises q and k per head where weights are given (q in place), then stores the step's k and v
// into the pages of their sequences, keys unrotated.
struct StoreKvArgs {
  KvCache cache;
  void* qkv = nullptr;            // activations, [num_tokens][(q_heads + 2 kv_heads) * head_dim]
  const float* q_norm = nullptr;  // device, [head_dim], or null
  const float* k_norm = nullptr;  // device, [head_dim], or null
  int64_t layer = 0;
  int32_t q_heads = 0;
  float eps = 0.0f;

  bool operator==(const StoreKvArgs&) const = default;
};

// Brings the index of every page that this step completes up to date. After StoreKv of the layer.
struct IndexKeysArgs {
  KvCache cache;
  KeyIndex index;
  int64_t layer = 0;

  bool operator==(const IndexKeysArgs&) const = default;
};

// Fills the lists of every query block that has a slot, from its first_stage on. After StoreKv and
// IndexKeys of the layer. Where the window is at least a page long, every candidate lies in a
// complete page, whatever the chunks; kScan relies on it.
struct SelectArgs {
  KvCache cache;
  KeyIndex index;
  Selection selection;
  Rope rope;                // unused where rotate is false
  const void* q = nullptr;  // as for Attention
  int64_t q_stride = 0;
  int64_t layer = 0;
  int32_t plan = 0;  // of StepLayout::plans
  int32_t q_heads = 0;
  bool rotate = true;

  bool operator==(const SelectArgs&) const = default;
};

// out = softmax(rot(q) rot(K)^T * scale) V over what the query's block reads.
// Query head h reads KV head h / (q_heads / kv_heads). Reads K and V from the cache only, so
// StoreKv of the same layer comes first. The rounding of a query's result is a function of its
// row, its position, its block's bounds and selection, the stored keys and whether it is decoded:
// neither batch, chunk nor thread count changes it.
struct AttentionArgs {
  KvCache cache;
  Selection selection;      // unused where no block has a slot
  Rope rope;                // unused where rotate is false
  const void* q = nullptr;  // activations, [num_tokens][q_stride], unrotated; heads back to back
  void* out = nullptr;      // activations, [num_tokens][q_heads * head_dim]
  // Device, [num_tokens][q_heads], or null: the log of the sum of exp(score) over what is read.
  float* lse = nullptr;
  int64_t q_stride = 0;
  int64_t layer = 0;
  int32_t plan = 0;  // of StepLayout::plans
  int32_t q_heads = 0;
  float scale = 0.0f;  // 1 / sqrt(head_dim), usually
  bool rotate = true;  // false: a layer without position embedding

  bool operator==(const AttentionArgs&) const = default;
};

// out[r][i] = silu(gate_up[r][i]) * gate_up[r][width + i].
struct GatedActivationArgs {
  const void* gate_up = nullptr;  // activations, [rows][2 * width]
  void* out = nullptr;            // activations, [rows][width]
  int32_t rows = 0;
  int32_t width = 0;

  bool operator==(const GatedActivationArgs&) const = default;
};

// What penalties and biases do to one token of one row. A repetition penalty r > 0 divides a
// positive logit by r and multiplies a negative one; then output_count * frequency + (output_count
// > 0) * presence is subtracted and bias added. A bias of -infinity forbids the token.
struct TokenAdjust {
  int32_t token = 0;
  int32_t output_count = 0;  // times among the output tokens
  float bias = 0.0f;
  bool in_context = false;  // among prompt or output tokens: the repetition penalty applies
};

// How one row of logits is sampled. Order: adjustments, temperature, top_k, top_p, min_p; then the
// token with the largest logit / temperature + GumbelNoise(seed, counter, token) (sampling.h) of
// those kept, the lower id on ties. Temperature 0 takes the largest adjusted logit. Ties at a top_k
// boundary: lower ids stay. top_p keeps the smallest set of most likely tokens whose share of what
// top_k kept reaches it. min_p keeps the tokens at least min_p times as likely as the most likely
// one. Forbidden tokens are never sampled, unless all are: then token 0 is.
struct SampleParams {
  float temperature = 0.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t top_k = 0;  // 0: all
  int32_t score_token =
      -1;               // >= 0: nothing is sampled, this token is scored (prompt log probabilities)
  int32_t num_top = 0;  // most likely tokens to report, at most SampleArgs::max_top
  int32_t adjust_begin = 0;  // range of SampleArgs::adjusts; each token at most once
  int32_t adjust_end = 0;
  uint64_t seed = 0;
  uint64_t counter = 0;  // index of the output token
};

// Samples every row. Log probabilities are those of the model: log softmax of the logits as given,
// before any adjustment. `logits` may be overwritten. Host arrays in and out: valid after Sync.
struct SampleArgs {
  float* logits = nullptr;               // device, [rows][vocab]
  const SampleParams* params = nullptr;  // host, [rows]
  const TokenAdjust* adjusts = nullptr;  // host
  int32_t* tokens = nullptr;             // host, [rows]
  float* logprobs = nullptr;             // host, [rows], of tokens; -infinity .. 0
  int32_t* top_tokens = nullptr;         // host, [rows][max_top], most likely first, then lower ids
  float* top_logprobs = nullptr;         // host, [rows][max_top]
  int32_t rows = 0;
  int32_t vocab = 0;
  int32_t max_top = 0;
};

// Copies whole pages, every layer, e.g. the last page of a forked sequence.
struct CopyPagesArgs {
  KvCache cache;
  KeyIndex index;                 // base null: none
  const int32_t* from = nullptr;  // host, [num_pages]
  const int32_t* to = nullptr;    // host, [num_pages]
  int64_t num_layers = 0;
  int32_t num_pages = 0;
};

}  // namespace everlong
