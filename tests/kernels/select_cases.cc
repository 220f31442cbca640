#include "tests/kernels/select_cases.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace everlong {
namespace {

constexpr int32_t kWindow = 72;

}  // namespace

std::vector<SelectCase> ScanCases() {
  // Of several groups of pages.
  const std::vector<SequenceShape> long_ones = {{8300, 1}, {17001, 1}, {9000, 3},
                                                {10, 1},   {450, 2},   {515, 6}};
  return {{"Scan", {.keep_blocks = 10, .distance = 136}},
          {"ScanOf2Bits", {.keep_blocks = 10, .distance = 136}, 2},
          {"ScanOf1Bit", {.keep_blocks = 10, .distance = 136}, 1},
          {"ScanDilated", {.keep_blocks = 9, .distance = 136, .dilation = 1}},
          {"ScanReranked", {.keep_blocks = 5, .distance = 136, .rerank = 4}, 1},
          {"ScanRerankedDilatedOverHeads",
           {.all_heads = true, .keep_blocks = 8, .distance = 136, .dilation = 2, .rerank = 2},
           2},
          {"ScanDilatedFar", {.keep_blocks = 30, .distance = 136, .dilation = 9}},
          {"ScanSieved", {.keep_blocks = 2, .distance = 136, .sieve = 4}},
          {"ScanSievedOf128Dimensions", {.keep_blocks = 2, .distance = 136, .sieve = 4}, 4, 128},
          {"LongScanSieved", {.keep_blocks = 6, .distance = 136, .sieve = 8}, 4, 32, long_ones},
          {"LongScanSievedDilated",
           {.keep_blocks = 24, .distance = 136, .dilation = 9, .sieve = 4},
           1,
           32,
           long_ones},
          {"LongScanSievedRerankedOverHeads",
           {.all_heads = true,
            .keep_blocks = 6,
            .distance = 136,
            .dilation = 1,
            .rerank = 2,
            .sieve = 8},
           2,
           32,
           long_ones}};
}

std::vector<SelectCase> HipCases() {
  const HipStage coarse = {.chunk_tokens = 64, .keep_chunks = 7, .pool_rows = true};
  const HipStage middle = {.chunk_tokens = 32, .keep_chunks = 8, .pool_rows = true};
  const HipStage fine = {.chunk_tokens = 8, .keep_chunks = 9};
  const SelectParams hip = {.selector = Selector::kHip,
                            .keep_blocks = 9,
                            .distance = kWindow,
                            .num_stages = 3,
                            .stages = {coarse, middle, fine}};
  SelectParams by_chunk = hip;
  by_chunk.probes = ProbePositions::kChunk;
  SelectParams unrotated = hip;
  unrotated.probes = ProbePositions::kNone;
  unrotated.last_probe = true;
  unrotated.all_heads = true;
  SelectParams every_key = hip;
  every_key.stages[1].every_key = true;
  every_key.stages[2].every_key = true;
  SelectParams one_stage = hip;
  one_stage.num_stages = 1;
  one_stage.stages[0] = fine;
  SelectParams wide = hip;
  wide.num_stages = 2;
  wide.keep_blocks = 12;
  wide.stages[0] = {.chunk_tokens = 256, .keep_chunks = 2};
  wide.stages[1] = {.chunk_tokens = 16, .keep_chunks = 6};
  return {{"Hip", hip},
          {"HipByChunk", by_chunk},
          {"HipUnrotatedLastProbeOverHeads", unrotated},
          {"HipEveryKey", every_key},
          {"HipInOneStage", one_stage},
          {"HipWithWideChunks", wide},
          {"HipOf64Dimensions", by_chunk, 4, 64},
          {"HipOf128Dimensions", hip, 4, 128},
          {"HipByChunkOf128Dimensions", by_chunk, 4, 128}};
}

Step SelectingStep(std::mt19937& random, const std::vector<SequenceShape>& sequences) {
  Step step(random, sequences);
  step.blocks.clear();
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    for (int32_t row = step.query_begin[s]; row < step.query_begin[s + 1];) {
      const int64_t position = step.position(s, row);
      const auto rows = static_cast<int32_t>(
          std::min<int64_t>(64 - position % 64, step.query_begin[s + 1] - row));
      step.blocks.push_back(
          {.sequence = s,
           .first_row = row,
           .num_rows = rows,
           .num_sinks = kSelectSinks,
           .window_begin = std::max<int64_t>((position - kWindow) / 8 * 8, kSelectSinks),
           .select = 0});
      row += rows;
    }
  }
  // The last block has no slot: nothing is selected for it.
  const auto count = static_cast<int32_t>(step.blocks.size());
  for (int32_t i = 0; i + 1 < count; ++i) step.blocks[i].slot = (i + 2) % count;
  return step;
}

namespace {

// Of 16 pairs of dimensions, however many there are: quarters of a float are not exact.
const float* QuarterTurns(int32_t head_dim) {
  static std::map<int32_t, std::vector<float>> known;
  std::vector<float>& inv_freq = known[head_dim];
  inv_freq.resize(head_dim / 2);
  const int32_t apart = head_dim / 32;
  for (int32_t i = 0; i < head_dim / 2; i += apart) {
    inv_freq[i] = static_cast<float>(static_cast<double>(i / apart % 4) * std::acos(0.0));
  }
  return inv_freq.data();
}

// Means of four neighbouring rows are of few bits: 127 stands in even dimensions of even rows and
// in odd ones of odd rows.
Values DrawQueries(Drawing drawing, const SelectCase& c, const Step& step, int32_t heads,
                   DType type, std::mt19937& random) {
  const bool scans = c.params.selector == Selector::kScan;
  const int64_t row_width = int64_t{heads} * c.head_dim;
  Values q = RandomValues(random, step.num_tokens() * row_width, type);
  if (drawing == Drawing::kQuarterTurns) {
    for (float& v : q) v = static_cast<float>(random() % 4 * 2 + 1);
    // What does not turn at all stays a row's largest element exactly.
    for (size_t head = 0; head < q.size() && scans; head += c.head_dim) {
      q[head + random() % 8 * 4 * (c.head_dim / 32)] = 127.0f;
    }
  } else if (drawing == Drawing::kIntegers) {
    for (float& v : q) v = static_cast<float>(static_cast<int32_t>(random() % 5) - 2) * 4;
    for (size_t head = 0; head < q.size(); head += c.head_dim) {
      q[head + random() % 16 * 2 + head / row_width % 2] = 127.0f;
    }
  }
  return q;
}

// Makes pages' keys shorter or longer, so that a sieve sees which are best whatever it rounds.
void VaryPages(const Step& step, HostCache& cache, std::mt19937& random) {
  for (int32_t page = 0; page < step.num_pages(); ++page) {
    for (int32_t head = 0; head < cache.shape.kv_heads; ++head) {
      const float factor = std::exp2(static_cast<float>(random() % 1000) / 250.0f - 2.0f);
      for (int64_t slot = 0; slot < kPageTokens; ++slot) {
        const int64_t byte = cache.KeyByte(kSelectLayer, page, head, slot);
        Values key = cache.At(byte);
        for (float& v : key) v *= factor;
        cache.Set(byte, key);
      }
    }
  }
}

}  // namespace

SelectProblem MakeSelectProblem(const SelectCase& c, const KvFamily& kv, Drawing drawing,
                                uint32_t seed, int32_t capacity) {
  std::mt19937 random(seed);
  const AttentionShape shape = {
      .q_heads = 6, .kv_heads = 2, .head_dim = c.head_dim, .rotate = drawing != Drawing::kIntegers};
  Step step = SelectingStep(random, c.sequences);
  HostCache cache(kv.kv_type, shape.kv_heads, shape.head_dim, step.num_pages(), kSelectLayers);
  if (drawing == Drawing::kNormal) {
    FillCache(cache, step, kSelectLayer, random);
    if (c.params.sieve > 1) VaryPages(step, cache, random);
  } else {
    for (int32_t page = 0; page < step.num_pages(); ++page) {
      FillPageOnLevels(cache, kSelectLayer, page, c.bits, random);
    }
  }
  const DType type = kv.family.activation_type();
  Values q = DrawQueries(drawing, c, step, shape.q_heads, type, random);
  HostSelection selection(kSelectLayers, static_cast<int32_t>(step.blocks.size()), shape.kv_heads,
                          capacity);
  for (std::vector<int32_t>& list : selection.lists) list.assign(3, 7);
  HostIndex index = HostIndex::Of(cache, step, c.bits, kSelectLayers, kSelectLayer);
  return {.shape = shape,
          .step = std::move(step),
          .cache = std::move(cache),
          .index = std::move(index),
          .selection = std::move(selection),
          .q = std::move(q),
          .activation_type = type,
          .inv_freq = drawing == Drawing::kQuarterTurns ? QuarterTurns(c.head_dim)
                                                        : InverseFrequencies(c.head_dim, 1.0),
          .quarter_turns = drawing == Drawing::kQuarterTurns,
          .selects = {c.params},
          .layer = kSelectLayer};
}

}  // namespace everlong
