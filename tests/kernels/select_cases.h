// Selections to test: ways to choose, and problems that are drawn for them.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "tests/kernels/device.h"
#include "tests/kernels/select_oracle.h"

namespace everlong {

inline constexpr int32_t kSelectLayers = 2;
inline constexpr int32_t kSelectLayer = 1;
inline constexpr int32_t kSelectSinks = 16;

struct SelectCase {
  std::string name;
  SelectParams params;
  int32_t bits = 4;
  int32_t head_dim = 32;
  std::vector<SequenceShape> sequences = {{700, 1}, {1030, 1}, {450, 70},
                                          {40, 3},  {300, 1},  {515, 6}};
};

inline void PrintTo(const SelectCase& c, std::ostream* out) {
  *out << c.name;
}

std::vector<SelectCase> ScanCases();
std::vector<SelectCase> HipCases();

// What keys and queries are drawn from. Of integers, every score is an integer below 2^24 or a part
// of one, so f32 is exact in any order and ties are many.
//   kIntegers      nothing rotates; a row's largest element is 127, so that rounding it to 127ths
//                  of that changes nothing
//   kQuarterTurns  distances turn queries by quarters, to what 16 bits hold; so it is for scans
//   kNormal        any values and turns
enum class Drawing { kIntegers, kQuarterTurns, kNormal };

// Query blocks of up to 64 rows with sinks, window and a slot each, but the last, which has none.
Step SelectingStep(std::mt19937& random, const std::vector<SequenceShape>& sequences);

// One layer's keys, their index and queries of the case's sequences. Lists have room for
// `capacity`.
SelectProblem MakeSelectProblem(const SelectCase& c, const KvFamily& kv, Drawing drawing,
                                uint32_t seed, int32_t capacity = 40);

}  // namespace everlong
