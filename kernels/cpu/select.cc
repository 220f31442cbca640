#include "kernels/cpu/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/check.h"
#include "kernels/kv_address.h"

namespace everlong::cpu {

void Turn::Set(const Rope& rope, int64_t head_dim, int64_t position) {
  cos.resize(head_dim / 2);
  sin.resize(head_dim / 2);
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double angle = static_cast<double>(position) * rope.inv_freq[i];
    cos[i] = static_cast<float>(std::cos(angle) * rope.scale);
    sin[i] = static_cast<float>(std::sin(angle) * rope.scale);
  }
}

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int64_t kPooledRows = 4;
// Pages that one task scans: enough to outlast its start.
constexpr int64_t kScanPages = 128;
// By so many pages a scan fetches ahead.
constexpr int64_t kPagesAhead = 2;
// Keys that are gathered, then scored together; they stay in the first cache.
constexpr int64_t kGatheredKeys = 48;

// out[d * width + row] is dimension d of the turned row.
void AppendColumn(const float* row, const Turn* turn, int64_t head_dim, int64_t width,
                  int64_t column, float* out) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = row[i];
    const float b = row[half + i];
    const float c = turn == nullptr ? 1.0f : turn->cos[i];
    const float s = turn == nullptr ? 0.0f : turn->sin[i];
    out[i * width + column] = a * c - b * s;
    out[(half + i) * width + column] = b * c + a * s;
  }
}

int64_t ColumnWidth(int64_t num_rows) {
  return (num_rows + kRowUnit - 1) / kRowUnit * kRowUnit;
}

// Rows of one KV head's group; pooled ones are means over aligned positions.
void LoadRows(const SelectArgs& args, const Choice& choice, int64_t head, bool pool,
              std::vector<float>& rows, std::vector<int64_t>& positions) {
  const int64_t dim = args.cache.head_dim;
  const int64_t group = args.q_heads / args.cache.kv_heads;
  const QueryBlock& block = *choice.block;
  rows.clear();
  positions.clear();
  for (int64_t h = head * group; h < (head + 1) * group; ++h) {
    for (int64_t row = block.first_row; row < block.first_row + block.num_rows;) {
      const int64_t position = choice.sequence->position(row);
      const int64_t wanted = pool ? kPooledRows - position % kPooledRows : 1;
      const int64_t end = std::min<int64_t>(row + wanted, block.first_row + block.num_rows);
      const auto count = static_cast<float>(end - row);
      const size_t at = rows.size();
      rows.resize(at + dim);
      for (; row < end; ++row) {
        const float* q = static_cast<const float*>(args.q) + row * args.q_stride + h * dim;
        for (int64_t i = 0; i < dim; ++i) rows[at + i] += q[i] / count;
      }
      positions.push_back(position);
    }
  }
}

// A number whose order is that of scores.
uint32_t Ordered(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes 0
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// Scores are counted by their bits above these.
constexpr int kLowerBits = 19;
constexpr size_t kRankingCounts = size_t{1} << (32 - kLowerBits);

// Indices of the `count` largest scores, ascending; of equal ones the first. Counting how many
// scores share their upper bits tells which are among them whatever the rest; only those that share
// the upper bits of the last one are put in order.
void Best(std::span<const float> scores, int64_t count, Ranking& ranking,
          std::vector<int32_t>& best) {
  const auto size = static_cast<int64_t>(scores.size());
  best.resize(std::min(count, size));
  if (count == 0 || count >= size) {
    std::iota(best.begin(), best.end(), 0);
    return;
  }
  ranking.counts.assign(kRankingCounts, 0);
  for (const float score : scores) ++ranking.counts[Ordered(score) >> kLowerBits];
  int64_t left = count;
  uint32_t last = kRankingCounts - 1;
  while (ranking.counts[last] < left) left -= ranking.counts[last--];
  ranking.ties.clear();
  best.clear();
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t ordered = Ordered(scores[i]);
    if (ordered >> kLowerBits < last) continue;
    if (ordered >> kLowerBits > last) {
      best.push_back(static_cast<int32_t>(i));
    } else {
      ranking.ties.push_back(uint64_t{ordered} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(i)));
    }
  }
  std::nth_element(ranking.ties.begin(), ranking.ties.begin() + left - 1, ranking.ties.end(),
                   std::greater<>());
  for (int64_t i = 0; i < left; ++i) {
    best.push_back(static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(ranking.ties[i])));
  }
  std::sort(best.begin(), best.end());
}

// The best scores of windows of 2 * reach + 1 neighbours.
void Dilate(std::span<const float> scores, int64_t reach, std::vector<float>& dilated) {
  const auto size = static_cast<int64_t>(scores.size());
  dilated.assign(scores.begin(), scores.end());
  const float* from = scores.data();
  float* to = dilated.data();
  for (int64_t d = 1; d <= reach; ++d) {
    for (int64_t i = 0; i + d < size; ++i) to[i] = std::max(to[i], from[i + d]);
    for (int64_t i = d; i < size; ++i) to[i] = std::max(to[i], from[i - d]);
  }
}

// Blocks of two ascending lists that both have.
int64_t CountCommon(std::span<const int32_t> a, std::span<const int32_t> b) {
  int64_t common = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    common += a[i] == b[j] ? 1 : 0;
    const bool advance_a = a[i] <= b[j];
    const bool advance_b = b[j] <= a[i];
    i += advance_a ? 1 : 0;
    j += advance_b ? 1 : 0;
  }
  return common;
}

const std::byte* Key(const SelectArgs& args, const Choice& choice, int64_t head, int64_t position) {
  const int64_t page = choice.sequence->pages[position / kPageTokens];
  return KeyAddress(args.cache, args.layer, page, head, position % kPageTokens);
}

void Gather(const SelectArgs& args, const Choice& choice, int64_t head, int64_t position,
            const Turn* turn, float* key) {
  LoadKey(Key(args, choice, head, position), args.cache.type, args.cache.head_dim,
          turn == nullptr ? nullptr : turn->cos.data(),
          turn == nullptr ? nullptr : turn->sin.data(), key);
}

// Into the second cache: what is fetched early would not stay in the first.
void Prefetch(const std::byte* from, int64_t bytes) {
  constexpr int64_t kLineBytes = 64;
  for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(from + at, 0, 2);
}

IndexHeadView IndexHead(const SelectArgs& args, const Choice& choice, int64_t head, int64_t page) {
  return IndexHeadAt(args.index, args.layer, choice.sequence->pages[page], head);
}

}  // namespace

// Greedy probing in stages, for one choice (arXiv 2502.08910, algorithm 1).
class Select::Probing {
 public:
  Probing(const SelectArgs& args, const Choice& choice, std::span<const Turn> chunk_turns,
          Workspace& w)
      : args_(args), choice_(choice), chunk_turns_(chunk_turns), w_(w), dim_(args.cache.head_dim) {}

  // Scores of the candidate blocks `w.kept` by their stored keys, into w.sums.
  void ScoreBlocks() {
    LoadColumns(false, ProbePositions::kRelative, 0);
    w_.chunks.assign(w_.kept.begin(), w_.kept.end());
    ScoreRanges(kBlockTokens);
  }

  // Runs one stage over w.chunks; leaves the chunks that stay in w.kept.
  void RunStage(const HipStage& stage) {
    if (stage.every_key) {
      LoadColumns(stage.pool_rows, ProbePositions::kRelative, 0);
      ScoreRanges(stage.chunk_tokens);
    } else {
      LoadColumns(stage.pool_rows, choice_.params->probes, 1);
      Descend(stage.chunk_tokens);
    }
    Best(w_.sums, stage.keep_chunks, w_.ranking, w_.kept);
    for (int32_t& i : w_.kept) i = w_.chunks[i];
  }

 private:
  // Columns of the rows of every head, as probes see them: left ones `further` away.
  void LoadColumns(bool pool, ProbePositions probes, int64_t further) {
    probes_ = probes;
    w_.near.clear();
    w_.far.clear();
    for (int64_t head = choice_.first_head; head < choice_.end_head; ++head) {
      LoadRows(args_, choice_, head, pool, w_.rows, w_.positions);
      const auto num_rows = static_cast<int64_t>(w_.positions.size());
      width_ = ColumnWidth(num_rows);
      const size_t at = w_.near.size();
      w_.near.resize(at + dim_ * width_);
      w_.far.resize(at + dim_ * width_);
      for (int64_t column = 0; column < width_; ++column) {
        const int64_t row = std::min(column, num_rows - 1);
        const float* q = w_.rows.data() + row * dim_;
        AppendColumn(q, TurnFor(further, row), dim_, width_, column, w_.near.data() + at);
        AppendColumn(q, TurnFor(0, row), dim_, width_, column, w_.far.data() + at);
      }
    }
  }

  // Null where nothing turns.
  const Turn* TurnFor(int64_t further, int64_t row) {
    if (!args_.rotate || probes_ == ProbePositions::kNone) return nullptr;
    int64_t distance = choice_.params->distance + further;
    if (probes_ == ProbePositions::kChunk) {
      const auto num_chunks = static_cast<int64_t>(w_.chunks.size());
      distance = std::min(w_.positions[row], num_chunks + choice_.params->distance);
    }
    if (turn_at_ != distance) w_.turn.Set(args_.rope, dim_, distance);
    turn_at_ = distance;
    return &w_.turn;
  }

  RowColumns Columns(const std::vector<float>& columns, int64_t head) const {
    return {.data = columns.data() + (head - choice_.first_head) * dim_ * width_,
            .head_dim = dim_,
            .width = width_};
  }

  // w.sums[i] = best score of the keys of chunk i.
  void ScoreRanges(int64_t length) {
    w_.sums.assign(w_.chunks.size(), kNone);
    w_.keys.resize(length * dim_);
    w_.scores.resize(length);
    for (size_t i = 0; i < w_.chunks.size(); ++i) {
      const int64_t begin = int64_t{w_.chunks[i]} * kBlockTokens;
      const int64_t end = std::min(begin + length, choice_.block->window_begin);
      for (int64_t head = choice_.first_head; head < choice_.end_head; ++head) {
        for (int64_t p = begin; p < end; ++p) {
          Gather(args_, choice_, head, p, nullptr, w_.keys.data() + (p - begin) * dim_);
        }
        ScoreKeys(Columns(w_.far, head), w_.keys.data(), end - begin, w_.scores.data());
        for (int64_t j = 0; j < end - begin; ++j) w_.sums[i] = std::max(w_.sums[i], w_.scores[j]);
      }
    }
  }

  // Greedy halving of some chunks at a time, whose memory then stays near; w.sums[i] is chunk i's
  // score.
  void Descend(int64_t length) {
    const auto n = static_cast<int64_t>(w_.chunks.size());
    w_.lows.resize(n);
    for (int64_t i = 0; i < n; ++i) w_.lows[i] = int64_t{w_.chunks[i]} * kBlockTokens;
    w_.sums.assign(n, kNone);
    w_.keys.resize(kGatheredKeys * dim_);
    float left[kGatheredKeys];
    float right[kGatheredKeys];
    for (int64_t first = 0; first < n; first += kGatheredKeys) {
      const int64_t end = std::min(first + kGatheredKeys, n);
      Fetch(end, std::min(end + kGatheredKeys, n), length / 4);
      for (int64_t width = length; width >= 2; width /= 2) {
        const int64_t half = width / 2;
        Fetch(first, end, half + half / 2);
        Probe(first, end, half / 2, w_.near, left);
        Probe(first, end, half + half / 2, w_.far, right);
        for (int64_t i = first; i < end; ++i) {
          const float l = left[i - first];
          const float r = right[i - first];
          if (r >= l && r != kNone) w_.lows[i] += half;
          const float probe = std::max(l, r);
          w_.sums[i] = choice_.params->last_probe ? probe : std::max(w_.sums[i], probe);
        }
      }
    }
  }

  // scores[i - first] = score of the key at lows[i] + offset, for chunks [first, end).
  void Probe(int64_t first, int64_t end, int64_t offset, const std::vector<float>& columns,
             float* scores) {
    std::fill_n(scores, end - first, kNone);
    float gathered[kGatheredKeys];
    for (int64_t head = choice_.first_head; head < choice_.end_head; ++head) {
      for (int64_t i = first; i < end; ++i) {
        Gather(args_, choice_, head, ProbedAt(i, offset), KeyTurn(i),
               w_.keys.data() + (i - first) * dim_);
      }
      ScoreKeys(Columns(columns, head), w_.keys.data(), end - first, gathered);
      for (int64_t i = first; i < end; ++i) {
        if (w_.lows[i] + offset >= choice_.block->window_begin) continue;
        scores[i - first] = std::max(scores[i - first], gathered[i - first]);
      }
    }
  }

  int64_t ProbedAt(int64_t i, int64_t offset) const {
    return std::min(w_.lows[i] + offset, choice_.block->window_begin - 1);
  }

  void Fetch(int64_t first, int64_t end, int64_t offset) const {
    const int64_t bytes = dim_ * ByteSize(args_.cache.type);
    for (int64_t head = choice_.first_head; head < choice_.end_head; ++head) {
      for (int64_t i = first; i < end; ++i) {
        Prefetch(Key(args_, choice_, head, ProbedAt(i, offset)), bytes);
      }
    }
  }

  // A chunk's key stands at its number, so seen from the query it is turned by that.
  const Turn* KeyTurn(int64_t number) const {
    if (probes_ != ProbePositions::kChunk || !args_.rotate) return nullptr;
    return &chunk_turns_[number];
  }

  const SelectArgs& args_;
  const Choice& choice_;
  std::span<const Turn> chunk_turns_;
  Workspace& w_;
  int64_t dim_;
  int64_t width_ = 0;
  ProbePositions probes_ = ProbePositions::kNone;
  int64_t turn_at_ = std::numeric_limits<int64_t>::min();
};

void Select::Run(const SelectArgs& args, const Step& step, ThreadPool& pool) {
  workspaces_.resize(pool.num_threads());
  PlanChoices(args, step);
  PrepareChunkTurns(args);
  pool.Run(static_cast<int64_t>(probed_.size()), [&](int64_t i, int thread) {
    const Choice& choice = probed_[i];
    Workspace& w = workspaces_[thread];
    const SelectParams& params = *choice.params;
    Probing probing(args, choice, chunk_turns_, w);
    for (int32_t s = choice.block->first_stage; s < params.num_stages; ++s) {
      Chunks(args, choice, s, w);
      probing.RunStage(params.stages[s]);
      if (s + 1 < params.num_stages) Store(args, choice, s, w.kept);
    }
    Cut(w.kept, params.stages[params.num_stages - 1].chunk_tokens / kBlockTokens, 1,
        choice.end_block(), w.chunks);
    Store(args, choice, kFinalList, w.chunks);
  });
  Scan(args, pool);
}

// Blocks whose lists stay are left out; those that take all candidates are done at once.
void Select::PlanChoices(const SelectArgs& args, const Step& step) {
  probed_.clear();
  scanned_.clear();
  int64_t num_scores = 0;
  const StepPlan& plan = step.plan(args.plan);
  for (const QueryBlock& block : plan.blocks) {
    if (block.slot < 0) continue;
    const SelectParams& params = plan.selects[block.select];
    const bool probes = params.selector == Selector::kHip;
    if (block.first_stage >= (probes ? params.num_stages : 1)) continue;
    const int64_t heads = args.cache.kv_heads;
    for (int64_t head = 0; head < (params.all_heads ? 1 : heads); ++head) {
      Choice choice = {.block = &block,
                       .params = &params,
                       .sequence = &step.sequences()[block.sequence],
                       .first_head = head,
                       .end_head = params.all_heads ? heads : head + 1};
      if (choice.num_candidates() <= params.keep_blocks) {
        std::vector<int32_t>& all = workspaces_[0].kept;
        all.resize(choice.num_candidates());
        std::iota(all.begin(), all.end(), static_cast<int32_t>(choice.first_block()));
        Store(args, choice, kFinalList, all);
      } else if (probes) {
        probed_.push_back(choice);
      } else {
        choice.first_score = num_scores;
        num_scores += choice.num_candidates();
        scanned_.push_back(choice);
      }
    }
  }
  if (static_cast<int64_t>(scores_.size()) < num_scores)
    scores_.resize(num_scores + num_scores / 2);
  ReserveForScans(args);
}

// Whichever threads choose: each can hold the largest scan of the step, and of those that follow
// for a while.
void Select::ReserveForScans(const SelectArgs& args) {
  int64_t candidates = 0;
  int64_t rows = 0;
  int64_t kept = 0;
  for (const Choice& choice : scanned_) {
    candidates = std::max(candidates, choice.num_candidates());
    rows = std::max<int64_t>(rows, choice.block->num_rows);
    kept = std::max(kept, int64_t{choice.params->keep_blocks} * choice.params->rerank);
  }
  rows *= args.q_heads / args.cache.kv_heads;
  for (Workspace& w : workspaces_) {
    if (static_cast<int64_t>(w.scores.capacity()) < candidates) {
      w.scores.reserve(candidates + candidates / 2);
      w.ranking.ties.reserve(candidates + candidates / 2);
    }
    w.kept.reserve(kept);
    w.rows.reserve(rows * args.cache.head_dim);
    w.positions.reserve(rows);
    w.ranking.counts.reserve(kRankingCounts);
  }
}

// Chunks of a context are few beside its keys, so their turns are kept.
void Select::PrepareChunkTurns(const SelectArgs& args) {
  int64_t most_chunks = 0;
  for (const Choice& choice : probed_) {
    const SelectParams& params = *choice.params;
    if (!args.rotate || params.probes != ProbePositions::kChunk) continue;
    for (int32_t s = 0; s < params.num_stages; ++s) {
      const int64_t blocks = s == 0 ? choice.num_candidates()
                                    : int64_t{params.stages[s - 1].keep_chunks} *
                                          params.stages[s - 1].chunk_tokens / kBlockTokens;
      const int64_t length = params.stages[s].chunk_tokens / kBlockTokens;
      most_chunks = std::max(most_chunks, (blocks + length - 1) / length);
    }
  }
  const int64_t half = args.cache.head_dim / 2;
  const std::span<const float> inv_freq(args.rope.inv_freq, most_chunks == 0 ? 0 : half);
  if (most_chunks > 0 && !std::equal(inv_freq.begin(), inv_freq.end(), chunk_inv_freq_.begin(),
                                     chunk_inv_freq_.end())) {
    chunk_turns_.clear();
    chunk_inv_freq_.assign(inv_freq.begin(), inv_freq.end());
  }
  while (static_cast<int64_t>(chunk_turns_.size()) < most_chunks) {
    const auto number = static_cast<int64_t>(chunk_turns_.size());
    chunk_turns_.emplace_back().Set(args.rope, args.cache.head_dim, number);
  }
}

// Each chunk of `from` blocks as chunks of `to` blocks, without those past the candidates.
void Select::Cut(std::span<const int32_t> chunks, int64_t from, int64_t to, int64_t end,
                 std::vector<int32_t>& pieces) {
  pieces.clear();
  for (const int32_t chunk : chunks) {
    for (int64_t b = chunk; b < std::min(chunk + from, end); b += to) {
      pieces.push_back(static_cast<int32_t>(b));
    }
  }
}

// What stage `s` chooses from, into w.chunks.
void Select::Chunks(const SelectArgs& args, const Choice& choice, int32_t s, Workspace& w) {
  const SelectParams& params = *choice.params;
  const int64_t length = params.stages[s].chunk_tokens / kBlockTokens;
  if (s == 0) {
    const auto first = static_cast<int32_t>(choice.first_block());
    Cut({&first, 1}, choice.num_candidates(), length, choice.end_block(), w.chunks);
    return;
  }
  const Selection& selection = args.selection;
  const int64_t list = selection.List(args.layer, choice.block->slot, choice.first_head, s - 1);
  const std::span<const int32_t> kept(selection.blocks + list * selection.capacity,
                                      static_cast<size_t>(selection.counts[list]));
  Cut(kept, params.stages[s - 1].chunk_tokens / kBlockTokens, length, choice.end_block(), w.chunks);
}

// Pages one by one, all heads that choose from them: their index lies side by side.
void Select::Scan(const SelectArgs& args, ThreadPool& pool) {
  struct Range {
    std::span<const Choice> choices;
    const ScanQuery* queries;
    int64_t first_page;
    int64_t end_page;
  };
  const int64_t heads = args.cache.kv_heads;
  if (queries_.size() < scanned_.size() * heads) queries_.resize(scanned_.size() * heads);
  thread_local std::vector<Range> ranges;
  ranges.clear();
  for (size_t i = 0, next = 0; i < scanned_.size(); i = next) {
    while (next < scanned_.size() && scanned_[next].block == scanned_[i].block) ++next;
    const int64_t end = scanned_[i].end_page();
    for (int64_t page = scanned_[i].first_block() / kPageBlocks; page < end; page += kScanPages) {
      ranges.push_back({.choices = {&scanned_[i], next - i},
                        .queries = &queries_[i * heads],
                        .first_page = page,
                        .end_page = std::min(page + kScanPages, end)});
    }
  }
  const std::vector<Range>& all_ranges = ranges;
  pool.Run(static_cast<int64_t>(scanned_.size()), [&](int64_t i, int thread) {
    const Choice& choice = scanned_[i];
    for (int64_t head = choice.first_head; head < choice.end_head; ++head) {
      PrepareScan(args, choice, head, queries_[i * heads + head], workspaces_[thread]);
    }
  });
  pool.Run(static_cast<int64_t>(all_ranges.size()), [&](int64_t i, int) {
    const Range& range = all_ranges[i];
    for (int64_t page = range.first_page; page < range.end_page; ++page) {
      const int64_t next = std::min(page + kPagesAhead, range.choices[0].end_page() - 1);
      for (size_t c = 0; c < range.choices.size(); ++c) {
        ScanOnePage(args, range.choices[c], range.queries + c * heads, page, next);
      }
    }
  });
  pool.Run(static_cast<int64_t>(scanned_.size()),
           [&](int64_t i, int thread) { ChooseScanned(args, scanned_[i], workspaces_[thread]); });
}

ScanRows Select::ScanQuery::view(int64_t head_dim) const {
  return {.rows = rows.data(),
          .bytes = bytes.data(),
          .scales = scales.data(),
          .totals = totals.data(),
          .num_rows = static_cast<int64_t>(scales.size()),
          .head_dim = head_dim};
}

// Turns the rows and rounds them to bytes: their error is small beside that of the codes.
void Select::PrepareScan(const SelectArgs& args, const Choice& choice, int64_t head,
                         ScanQuery& query, Workspace& w) {
  const int64_t dim = args.cache.head_dim;
  LoadRows(args, choice, head, false, w.rows, w.positions);
  const auto num_rows = static_cast<int64_t>(w.positions.size());
  if (args.rotate) query.turn.Set(args.rope, dim, choice.params->distance);
  query.rows.resize(num_rows * dim);
  query.bytes.resize(num_rows * dim);
  query.scales.resize(num_rows);
  query.totals.assign(num_rows, 0);
  for (int64_t r = 0; r < num_rows; ++r) {
    float* row = query.rows.data() + r * dim;
    AppendColumn(w.rows.data() + r * dim, args.rotate ? &query.turn : nullptr, dim, 1, 0, row);
    float largest = 0.0f;
    for (int64_t i = 0; i < dim; ++i) largest = std::max(largest, std::abs(row[i]));
    const float scale = largest / 127.0f;
    query.scales[r] = scale;
    for (int64_t i = 0; i < dim; ++i) {
      const float byte = scale == 0.0f ? 0.0f : std::nearbyint(row[i] / scale);
      query.bytes[r * dim + i] = static_cast<int8_t>(byte);
      query.totals[r] += query.bytes[r * dim + i];
    }
  }
}

void Select::ScanOnePage(const SelectArgs& args, const Choice& choice, const ScanQuery* queries,
                         int64_t page, int64_t next) {
  float blocks[kPageBlocks];
  std::fill_n(blocks, kPageBlocks, kNone);
  for (int64_t head = choice.first_head; head < choice.end_head; ++head) {
    float best[kPageBlocks];
    ScanPage(queries[head].view(args.cache.head_dim), IndexHead(args, choice, head, page),
             IndexHead(args, choice, head, next), args.index.bits, best);
    for (int64_t b = 0; b < kPageBlocks; ++b) blocks[b] = std::max(blocks[b], best[b]);
  }
  float* scores = scores_.data() + choice.first_score;
  const int64_t begin = std::max(page * kPageBlocks, choice.first_block());
  const int64_t end = std::min((page + 1) * kPageBlocks, choice.end_block());
  for (int64_t b = begin; b < end; ++b) {
    scores[b - choice.first_block()] = blocks[b - page * kPageBlocks];
  }
}

void Select::ChooseScanned(const SelectArgs& args, const Choice& choice, Workspace& w) {
  const SelectParams& params = *choice.params;
  std::span<float> scores(scores_.data() + choice.first_score, choice.num_candidates());
  const auto first = static_cast<int32_t>(choice.first_block());
  if (params.rerank > 1) {
    Best(scores, int64_t{params.keep_blocks} * params.rerank, w.ranking, w.kept);
    for (int32_t& b : w.kept) b += first;
    Probing(args, choice, chunk_turns_, w).ScoreBlocks();
    std::fill(scores.begin(), scores.end(), kNone);
    for (size_t i = 0; i < w.kept.size(); ++i) scores[w.kept[i] - first] = w.sums[i];
  }
  Dilate(scores, params.dilation, w.scores);
  Best(w.scores, params.keep_blocks, w.ranking, w.kept);
  for (int32_t& b : w.kept) b += first;
  Store(args, choice, kFinalList, w.kept);
}

void Select::Store(const SelectArgs& args, const Choice& choice, int32_t list,
                   std::span<const int32_t> blocks) const {
  const Selection& selection = args.selection;
  EVERLONG_CHECK(blocks.size() <= static_cast<size_t>(selection.capacity));
  for (int64_t head = choice.first_head; head < choice.end_head; ++head) {
    const int64_t at = selection.List(args.layer, choice.block->slot, head, list);
    if (list == kFinalList && !choice.block->first) {
      const std::span<const int32_t> before(selection.blocks + at * selection.capacity,
                                            static_cast<size_t>(selection.counts[at]));
      int64_t* reuse = selection.reuse + selection.Reuse(choice.block->slot, args.layer, head);
      reuse[0] += static_cast<int64_t>(blocks.size());
      reuse[1] += CountCommon(before, blocks);
    }
    std::copy(blocks.begin(), blocks.end(), selection.blocks + at * selection.capacity);
    selection.counts[at] = static_cast<int32_t>(blocks.size());
  }
}

}  // namespace everlong::cpu
