#include "engine/output_text.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace everlong {
namespace {

// Length of the longest end of `text` that begins `stop`.
size_t Overlap(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.ends_with(stop.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

OutputText::OutputText(const Tokenizer* tokenizer, bool skip_special, std::vector<std::string> stop)
    : decoder_(tokenizer, skip_special), stop_(std::move(stop)) {}

std::string OutputText::Append(int32_t id) {
  return Release(decoder_.Append(id));
}

std::string OutputText::Finish() {
  std::string text = Release(decoder_.Finish());
  if (matched_stop_ < 0) text += std::exchange(held_, {});
  return text;
}

std::string OutputText::Release(const std::string& text) {
  held_ += text;
  size_t first = std::string::npos;
  size_t overlap = 0;
  for (size_t i = 0; i < stop_.size(); ++i) {
    const size_t at = held_.find(stop_[i]);
    if (at < first) {
      first = at;
      matched_stop_ = static_cast<int>(i);
    }
    overlap = std::max(overlap, Overlap(held_, stop_[i]));
  }
  if (matched_stop_ >= 0) return std::exchange(held_, {}).substr(0, first);
  std::string certain = held_.substr(0, held_.size() - overlap);
  held_.erase(0, certain.size());
  return certain;
}

}  // namespace everlong
