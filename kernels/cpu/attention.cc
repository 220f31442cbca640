#include "kernels/cpu/attention.h"

#include <algorithm>

#include "kernels/check.h"

namespace everlong::cpu {
namespace {

constexpr int64_t kMostRows = 128;   // that are computed together and share the work on a tile
constexpr int64_t kFewestRows = 16;  // as many or fewer may be computed by segments
constexpr int64_t kTasksPerThread = 4;

// Key halves fill up vectors, values panels.
int64_t PaddedWidth(int64_t head_dim) {
  return (head_dim + 31) / 32 * 32;
}

KeyList KeysOf(const AttentionArgs& args, const QueryBlock& block, int64_t kv_head) {
  KeyList keys = {.num_sinks = block.num_sinks,
                  .window_begin = block.window_begin,
                  .numbered_alike = block.positions == Positions::kStreaming};
  if (block.slot >= 0) {
    const Selection& selection = args.selection;
    const int64_t list = selection.List(args.layer, block.slot, kv_head, kFinalList);
    keys.selected = {selection.blocks + list * selection.capacity,
                     static_cast<size_t>(selection.counts[list])};
  }
  return keys;
}

}  // namespace

void Attention::Run(const AttentionArgs& args, const Step& step, ThreadPool& pool) {
  EVERLONG_CHECK(args.q_heads % args.cache.kv_heads == 0 && args.cache.head_dim % 2 == 0);
  if (args.rotate) PrepareRope(args, step);
  PlanRows(args, step, pool.num_threads());
  PlanTasks(pool.num_threads());

  int64_t most_rows = 0;
  for (const QueryRows& rows : rows_) most_rows = std::max<int64_t>(most_rows, rows.num_rows());
  const int64_t scratch_floats =
      (AttentionScratchFloats(most_rows, PaddedWidth(args.cache.head_dim)) + 15) / 16 * 16;
  scratch_.Reserve(scratch_floats * pool.num_threads());

  pool.Run(static_cast<int64_t>(tasks_.size()), [&](int64_t i, int thread) {
    const Task& task = tasks_[i];
    const QueryRows& rows = rows_[task.rows];
    float* scratch = scratch_.data() + thread * scratch_floats;
    if (task.segment < 0) return AttendWhole(rows, scratch);
    AttendSegment(rows, task.segment, scratch,
                  SoftmaxState::In(states_.data() + task.state, rows.num_rows()));
  });
  pool.Run(static_cast<int64_t>(merges_.size()), [&](int64_t i, int) {
    MergeSegments(rows_[merges_[i].rows], states_.data() + merges_[i].state);
  });
}

void Attention::PrepareRope(const AttentionArgs& args, const Step& step) {
  int64_t num_pages = step.max_pages() + 1;
  for (const QueryBlock& block : step.plan(args.plan).blocks) {
    num_pages = std::max<int64_t>(num_pages, block.clip_distance / kPageTokens + 1);
  }
  rope_.Prepare(args.rope, args.cache.head_dim, num_pages);
}

// Many rows together share more work, few occupy more threads.
void Attention::PlanRows(const AttentionArgs& args, const Step& step, int num_threads) {
  const int64_t group = args.q_heads / args.cache.kv_heads;
  for (int64_t rows = kMostRows; rows >= kFewestRows; rows /= 2) {
    rows_.clear();
    for (const QueryBlock& block : step.plan(args.plan).blocks) {
      AppendRows(args, step, block, std::max<int64_t>(1, rows / group));
    }
    if (static_cast<int64_t>(rows_.size()) >= kTasksPerThread * num_threads) break;
  }
}

void Attention::AppendRows(const AttentionArgs& args, const Step& step, const QueryBlock& block,
                           int64_t most_tokens) {
  const StepSequence& sequence = step.sequences()[block.sequence];
  for (int32_t head = 0; head < args.cache.kv_heads; ++head) {
    KeyList keys = KeysOf(args, block, head);
    for (int64_t begin = 0; begin < block.num_rows; begin += most_tokens) {
      const int64_t num_tokens = std::min(most_tokens, block.num_rows - begin);
      const int64_t first_token = block.first_row + begin;
      keys.end = sequence.position(first_token + num_tokens);
      rows_.push_back({.args = &args,
                       .rope = &rope_,
                       .sequence = &sequence,
                       .block = &block,
                       .keys = keys,
                       .width = PaddedWidth(args.cache.head_dim),
                       .first_token = static_cast<int32_t>(first_token),
                       .num_tokens = static_cast<int32_t>(num_tokens),
                       .kv_head = head,
                       .group = args.q_heads / args.cache.kv_heads});
    }
  }
}

// The later rows of a prompt read more keys: they come first.
void Attention::PlanTasks(int num_threads) {
  tasks_.clear();
  merges_.clear();
  int64_t state = 0;
  const auto size = static_cast<int64_t>(rows_.size());
  const bool by_segments = num_threads > 1 && size < kTasksPerThread * num_threads;
  for (int64_t i = size - 1; i >= 0; --i) {
    const QueryRows& rows = rows_[i];
    const int64_t segments = rows.num_segments();
    if (!by_segments || segments == 1 || rows.num_rows() > kFewestRows) {
      tasks_.push_back({.rows = i, .segment = -1});
      continue;
    }
    merges_.push_back({.rows = i, .segment = -1, .state = state});
    for (int64_t segment = 0; segment < segments; ++segment) {
      tasks_.push_back({.rows = i, .segment = segment, .state = state});
      state += SoftmaxFloats(rows.num_rows(), rows.width);
    }
  }
  states_.Reserve(state);
}

}  // namespace everlong::cpu
