#include "kernels/cpu/choice.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/check.h"

namespace everlong::cpu {
namespace {

constexpr int64_t kPooledRows = 4;

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

void ReserveAs(SelectWorkspace& from, SelectWorkspace& to) {
  const auto sizes =
      std::apply([](auto&... v) { return std::array{v.capacity()...}; }, from.vectors());
  std::apply(
      [&](auto&... v) {
        size_t i = 0;
        (v.reserve(sizes[i++]), ...);
      },
      to.vectors());
}

}  // namespace

void ShareRoom(std::vector<SelectWorkspace>& workspaces) {
  for (SelectWorkspace& w : workspaces) ReserveAs(w, workspaces[0]);
  for (SelectWorkspace& w : workspaces) ReserveAs(workspaces[0], w);
}

void Turn::Set(const Rope& rope, int64_t head_dim, int64_t position) {
  cos.resize(head_dim / 2);
  sin.resize(head_dim / 2);
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double angle = static_cast<double>(position) * rope.inv_freq[i];
    cos[i] = static_cast<float>(std::cos(angle) * rope.scale);
    sin[i] = static_cast<float>(std::sin(angle) * rope.scale);
  }
}

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

void LoadRows(const SelectArgs& args, const Choice& choice, int64_t head, bool pool,
              SelectWorkspace& w) {
  const int64_t dim = args.cache.head_dim;
  const int64_t group = args.q_heads / args.cache.kv_heads;
  const QueryBlock& block = *choice.block;
  w.rows.clear();
  w.positions.clear();
  for (int64_t h = head * group; h < (head + 1) * group; ++h) {
    for (int64_t row = block.first_row; row < block.first_row + block.num_rows;) {
      const int64_t position = choice.sequence->position(row);
      const int64_t wanted = pool ? kPooledRows - position % kPooledRows : 1;
      const int64_t end = std::min<int64_t>(row + wanted, block.first_row + block.num_rows);
      const auto count = static_cast<float>(end - row);
      const size_t at = w.rows.size();
      w.rows.resize(at + dim);
      for (; row < end; ++row) {
        const float* q = static_cast<const float*>(args.q) + row * args.q_stride + h * dim;
        for (int64_t i = 0; i < dim; ++i) w.rows[at + i] += q[i] / count;
      }
      w.positions.push_back(position);
    }
  }
}

void StoreList(const SelectArgs& args, const Choice& choice, int32_t list,
               std::span<const int32_t> blocks) {
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
