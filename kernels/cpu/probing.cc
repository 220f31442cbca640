#include "kernels/cpu/probing.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cpu/select_scores.h"
#include "kernels/kv_address.h"

namespace everlong::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
// Keys that are gathered, then scored together; they stay in the first cache.
constexpr int64_t kGatheredKeys = 48;

int64_t ColumnWidth(int64_t num_rows) {
  return (num_rows + kRowUnit - 1) / kRowUnit * kRowUnit;
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

// Each chunk of `from` blocks as chunks of `to` blocks, without those past the candidates.
void Cut(std::span<const int32_t> chunks, int64_t from, int64_t to, int64_t end,
         std::vector<int32_t>& pieces) {
  pieces.clear();
  for (const int32_t chunk : chunks) {
    for (int64_t b = chunk; b < std::min(chunk + from, end); b += to) {
      pieces.push_back(static_cast<int32_t>(b));
    }
  }
}

// What stage `s` chooses from, into w.chunks.
void Chunks(const SelectArgs& args, const Choice& choice, int32_t s, SelectWorkspace& w) {
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

class Probing {
 public:
  Probing(const SelectArgs& args, const Choice& choice, std::span<const Turn> chunk_turns,
          SelectWorkspace& w)
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
      LoadRows(args_, choice_, head, pool, w_);
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
  SelectWorkspace& w_;
  int64_t dim_;
  int64_t width_ = 0;
  ProbePositions probes_ = ProbePositions::kNone;
  int64_t turn_at_ = std::numeric_limits<int64_t>::min();
};

}  // namespace

void ChooseByProbing(const SelectArgs& args, const Choice& choice,
                     std::span<const Turn> chunk_turns, SelectWorkspace& w) {
  const SelectParams& params = *choice.params;
  Probing probing(args, choice, chunk_turns, w);
  for (int32_t s = choice.block->first_stage; s < params.num_stages; ++s) {
    Chunks(args, choice, s, w);
    probing.RunStage(params.stages[s]);
    if (s + 1 < params.num_stages) StoreList(args, choice, s, w.kept);
  }
  Cut(w.kept, params.stages[params.num_stages - 1].chunk_tokens / kBlockTokens, 1,
      choice.end_block(), w.chunks);
  StoreList(args, choice, kFinalList, w.chunks);
}

void ScoreBlocks(const SelectArgs& args, const Choice& choice, SelectWorkspace& w) {
  Probing(args, choice, {}, w).ScoreBlocks();
}

}  // namespace everlong::cpu
