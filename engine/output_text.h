// Token ids of one output to the text that may be sent: never part of a UTF-8 sequence, never part
// of a stop string.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/tokenizer.h"

namespace everlong {

class OutputText {
 public:
  // `tokenizer` must outlive it.
  OutputText(const Tokenizer* tokenizer, bool skip_special, std::vector<std::string> stop);

  // Text that is now certain to be part of the output. Once a stop string is complete, the text
  // before it, and matched_stop() tells which.
  std::string Append(int32_t id);

  // What was held back, at the end of an output that no stop string ended.
  std::string Finish();

  // Index of the stop string that ended the output, or -1. Of several, the one that starts first.
  int matched_stop() const { return matched_stop_; }

 private:
  std::string Release(const std::string& text);

  StreamDecoder decoder_;
  std::vector<std::string> stop_;
  std::string held_;
  int matched_stop_ = -1;
};

}  // namespace everlong
