// Block selection for one query block: greedy probing in stages or an exhaustive scan.
#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/check.h"
#include "kernels/dtype.h"
#include "kernels/reference/step.h"

namespace everlong::reference {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();
constexpr int64_t kPooledRows = 4;

struct Row {
  int64_t position;
  std::vector<double> q;
};

// Everything that one list of blocks is chosen by: the query rows of some KV heads over one
// candidate range.
class Chooser {
 public:
  Chooser(const SelectArgs& args, const StepSequence& sequence, const QueryBlock& block,
          const SelectParams& params, int64_t first_head, int64_t end_head)
      : args_(args),
        sequence_(sequence),
        block_(block),
        params_(params),
        first_head_(first_head),
        end_head_(end_head) {}

  // Stage lists are chunks by their first block; `lists[kFinalList]` the blocks.
  void Run(std::span<std::vector<int32_t>> lists) {
    const int32_t begin = block_.num_sinks / kBlockTokens;
    const auto end = static_cast<int32_t>(block_.window_begin / kBlockTokens);
    if (end - begin <= params_.keep_blocks) {
      lists[kFinalList].resize(end - begin);
      std::iota(lists[kFinalList].begin(), lists[kFinalList].end(), begin);
    } else if (params_.selector == Selector::kScan) {
      lists[kFinalList] = Scan(begin, end);
    } else {
      Probe(begin, end, lists);
    }
  }

 private:
  std::vector<int32_t> Scan(int32_t begin, int32_t end) {
    LoadRows(false);
    RotateRows(params_.distance);
    std::vector<double> scores(end - begin, kNone);
    for (const int64_t page : ScannedPages()) {
      const int64_t page_end = std::min<int64_t>((page + 1) * kPageBlocks, end);
      for (int64_t b = std::max<int64_t>(page * kPageBlocks, begin); b < page_end; ++b) {
        scores[b - begin] = IndexScore(b);
      }
    }
    if (params_.rerank > 1) {
      std::vector<double> exact(scores.size(), kNone);
      const auto candidates = static_cast<size_t>(params_.keep_blocks) * params_.rerank;
      for (const int32_t i : Best(scores, candidates)) {
        exact[i] = RangeScore((begin + i) * kBlockTokens, (begin + i + 1) * kBlockTokens);
      }
      scores = std::move(exact);
    }
    std::vector<int32_t> blocks = Best(Dilated(scores), params_.keep_blocks);
    for (int32_t& b : blocks) b += begin;
    return blocks;
  }

  // Those that the sieve leaves.
  std::vector<int64_t> ScannedPages() const {
    const PageSpan span = CandidatePages(block_);
    const Sieve sieve = SieveOf(params_, span.end - span.begin);
    std::vector<int64_t> pages;
    if (sieve.num_groups == 0) {
      for (int64_t page = span.begin; page < span.end; ++page) pages.push_back(page);
    }
    for (int64_t group = 0; group < sieve.num_groups; ++group) {
      std::vector<double> promises;
      for (int64_t page = span.begin + group; page < span.end; page += sieve.num_groups) {
        promises.push_back(Promise(page));
      }
      for (const int64_t i : Best(promises, sieve.keep)) {
        pages.push_back(span.begin + group + i * sieve.num_groups);
      }
    }
    return pages;
  }

  double Promise(int64_t page) const {
    double best = kNone;
    std::vector<double> lows(args_.index.head_dim);
    std::vector<double> highs(args_.index.head_dim);
    for (int64_t head = first_head_; head < end_head_; ++head) {
      ReadRanges(args_.index, RangesAt(args_.index, args_.layer, sequence_.pages[page], head), lows,
                 highs);
      for (const std::vector<double>& row : RowsOf(head)) {
        double sum = 0.0;
        for (size_t i = 0; i < row.size(); ++i) sum += row[i] * (row[i] > 0 ? highs : lows)[i];
        best = std::max(best, sum);
      }
    }
    return best;
  }

  std::vector<double> Dilated(const std::vector<double>& scores) const {
    std::vector<double> dilated(scores.size());
    const auto last = static_cast<int64_t>(scores.size()) - 1;
    for (int64_t i = 0; i <= last; ++i) {
      const int64_t from = std::max<int64_t>(i - params_.dilation, 0);
      const int64_t to = std::min<int64_t>(i + params_.dilation, last);
      dilated[i] = *std::max_element(scores.begin() + from, scores.begin() + to + 1);
    }
    return dilated;
  }

  void Probe(int32_t begin, int32_t end, std::span<std::vector<int32_t>> lists) {
    for (int32_t s = block_.first_stage; s < params_.num_stages; ++s) {
      const HipStage& stage = params_.stages[s];
      const int32_t length = stage.chunk_tokens / kBlockTokens;
      std::vector<int32_t> chunks;
      if (s == 0) {
        for (int32_t b = begin; b < end; b += length) chunks.push_back(b);
      } else {
        chunks = Cut(lists[s - 1], params_.stages[s - 1].chunk_tokens / kBlockTokens, length, end);
      }
      LoadRows(stage.pool_rows);
      std::vector<double> scores(chunks.size());
      for (size_t i = 0; i < chunks.size(); ++i) {
        scores[i] = ChunkScore(stage, chunks[i], static_cast<int64_t>(i),
                               static_cast<int64_t>(chunks.size()));
      }
      std::vector<int32_t> kept = Best(scores, stage.keep_chunks);
      for (int32_t& i : kept) i = chunks[i];
      if (s + 1 == params_.num_stages) {
        lists[kFinalList] = Cut(kept, length, 1, end);
      } else {
        lists[s] = std::move(kept);
      }
    }
  }

  // Each chunk of `from` blocks as chunks of `to` blocks, without those past the candidates.
  static std::vector<int32_t> Cut(const std::vector<int32_t>& chunks, int32_t from, int32_t to,
                                  int32_t end) {
    std::vector<int32_t> pieces;
    for (const int32_t chunk : chunks) {
      for (int32_t b = chunk; b < std::min(chunk + from, end); b += to) pieces.push_back(b);
    }
    return pieces;
  }

  // Greedy halving towards the best probe (arXiv 2502.08910, algorithm 1).
  double ChunkScore(const HipStage& stage, int32_t chunk, int64_t number, int64_t num_chunks) {
    int64_t low = int64_t{chunk} * kBlockTokens;
    if (stage.every_key) {
      RotateRows(params_.distance);
      return RangeScore(low, std::min(low + stage.chunk_tokens, block_.window_begin));
    }
    double best = kNone;
    double last = kNone;
    for (int64_t width = stage.chunk_tokens; width >= 2; width /= 2) {
      const int64_t half = width / 2;
      const double left = ProbeScore(low + half / 2, 1, number, num_chunks);
      const double right = ProbeScore(low + half + half / 2, 0, number, num_chunks);
      if (right >= left && right != kNone) low += half;
      last = std::max(left, right);
      best = std::max(best, last);
    }
    return params_.last_probe ? last : best;
  }

  // `further`: by how much more than `distance` a relative probe is away.
  double ProbeScore(int64_t position, int64_t further, int64_t number, int64_t num_chunks) {
    if (position >= block_.window_begin) return kNone;
    switch (params_.probes) {
      case ProbePositions::kRelative:
        RotateRows(params_.distance + further);
        break;
      case ProbePositions::kChunk:
        for (size_t i = 0; i < rows_.size(); ++i) {
          const int64_t own = std::min(rows_[i].position, num_chunks + params_.distance);
          RotateRow(i, own - number);
        }
        break;
      case ProbePositions::kNone:
        RotateRows(0);
        break;
    }
    return RangeScore(position, position + 1);
  }

  // Best score of the stored keys of positions [begin, end), for the rows as rotated last.
  double RangeScore(int64_t begin, int64_t end) {
    double best = kNone;
    std::vector<double> key(args_.cache.head_dim);
    for (int64_t head = first_head_; head < end_head_; ++head) {
      for (int64_t p = begin; p < end; ++p) {
        sequence_.Key(args_.cache, args_.layer, head, p).Read(key);
        best = std::max(best, BestDot(head, key));
      }
    }
    return best;
  }

  double IndexScore(int64_t b) {
    const int64_t position = b * kBlockTokens;
    const int32_t page = sequence_.pages[position / kPageTokens];
    double best = kNone;
    std::vector<double> key(args_.index.head_dim);
    for (int64_t head = first_head_; head < end_head_; ++head) {
      const IndexHeadView view = IndexHeadAt(args_.index, args_.layer, page, head);
      for (int64_t i = 0; i < kBlockTokens; ++i) {
        DecodeKey(args_.index, view, position % kPageTokens + i, key);
        best = std::max(best, BestDot(head, key));
      }
    }
    return best;
  }

  double BestDot(int64_t head, std::span<const double> key) const {
    double best = kNone;
    for (const std::vector<double>& row : RowsOf(head)) best = std::max(best, Dot(row, key));
    return best;
  }

  // As rotated last.
  std::span<const std::vector<double>> RowsOf(int64_t head) const {
    const size_t per_head = rotated_.size() / (end_head_ - first_head_);
    return std::span(rotated_).subspan((head - first_head_) * per_head, per_head);
  }

  // Rows of each KV head's group, head after head; pooled rows are means over aligned positions.
  void LoadRows(bool pool) {
    rows_.clear();
    const int64_t group = args_.q_heads / args_.cache.kv_heads;
    for (int64_t head = first_head_ * group; head < end_head_ * group; ++head) {
      for (int64_t row = block_.first_row; row < block_.first_row + block_.num_rows;) {
        const int64_t position = sequence_.Position(row);
        const int64_t wanted = pool ? kPooledRows - position % kPooledRows : 1;
        const int64_t end = std::min<int64_t>(row + wanted, block_.first_row + block_.num_rows);
        rows_.push_back({position, MeanQuery(head, row, end)});
        row = end;
      }
    }
    rotated_.resize(rows_.size());
  }

  std::vector<double> MeanQuery(int64_t head, int64_t begin, int64_t end) const {
    const int64_t dim = args_.cache.head_dim;
    std::vector<double> mean(dim);
    for (int64_t row = begin; row < end; ++row) {
      const float* q = static_cast<const float*>(args_.q) + row * args_.q_stride + head * dim;
      for (int64_t i = 0; i < dim; ++i) mean[i] += q[i] / static_cast<double>(end - begin);
    }
    return mean;
  }

  void RotateRows(int64_t distance) {
    for (size_t i = 0; i < rows_.size(); ++i) RotateRow(i, distance);
  }

  void RotateRow(size_t i, int64_t distance) {
    rotated_[i] = rows_[i].q;
    if (args_.rotate) Rotate(rotated_[i], distance, args_.rope);
  }

  // Indices of the `count` largest scores, ascending; of equal ones the first.
  static std::vector<int32_t> Best(const std::vector<double>& scores, size_t count) {
    std::vector<int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    order.resize(std::min(order.size(), count));
    std::sort(order.begin(), order.end());
    return order;
  }

  const SelectArgs& args_;
  const StepSequence& sequence_;
  const QueryBlock& block_;
  const SelectParams& params_;
  int64_t first_head_;
  int64_t end_head_;
  std::vector<Row> rows_;
  std::vector<std::vector<double>> rotated_;  // [rows], as last asked for
};

}  // namespace

void SelectBlocks(const SelectArgs& args, const Step& step, const QueryBlock& block,
                  const SelectParams& params) {
  const int32_t num_stages = params.selector == Selector::kHip ? params.num_stages : 1;
  if (block.first_stage >= num_stages) return;
  const Selection& selection = args.selection;
  const StepSequence& sequence = step.sequences[block.sequence];
  for (int64_t head = 0; head < args.cache.kv_heads; ++head) {
    std::vector<std::vector<int32_t>> lists(kMaxStages);
    for (int32_t s = 0; s < kMaxStages; ++s) {
      const int64_t list = selection.List(args.layer, block.slot, head, s);
      const int32_t* from = selection.blocks + list * selection.capacity;
      lists[s].assign(from, from + selection.counts[list]);
    }
    const int64_t first = params.all_heads ? 0 : head;
    const int64_t end = params.all_heads ? args.cache.kv_heads : head + 1;
    const std::vector<int32_t> before = lists[kFinalList];
    Chooser(args, sequence, block, params, first, end).Run(lists);
    if (!block.first) {
      int64_t* reuse = selection.reuse + selection.Reuse(block.slot, args.layer, head);
      reuse[0] += static_cast<int64_t>(lists[kFinalList].size());
      reuse[1] += std::count_if(lists[kFinalList].begin(), lists[kFinalList].end(), [&](int32_t b) {
        return std::binary_search(before.begin(), before.end(), b);
      });
    }
    for (int32_t s = 0; s < kMaxStages; ++s) {
      EVERLONG_CHECK(lists[s].size() <= static_cast<size_t>(selection.capacity));
      const int64_t list = selection.List(args.layer, block.slot, head, s);
      std::copy(lists[s].begin(), lists[s].end(), selection.blocks + list * selection.capacity);
      selection.counts[list] = static_cast<int32_t>(lists[s].size());
    }
  }
}

}  // namespace everlong::reference
