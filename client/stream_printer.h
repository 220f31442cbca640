// Shows the events of one Generate call: text on standard output as it comes, progress through the
// prompt and a summary on standard error.
#pragma once

#include <google/protobuf/message.h>

#include <chrono>
#include <map>
#include <string>

#include "client/console.h"
#include "everlong/v1/inference.pb.h"

namespace everlong {

// The message as one line of protobuf's canonical JSON, with the line's end.
std::string JsonLine(const google::protobuf::Message& message);

// "[#####     ] 512/1024 tokens, 100 tok/s, 5 s left". Without a rate while `seconds` is 0.
std::string ProgressLine(const v1::Prefill& prefill, double seconds);

struct PrintOptions {
  bool json = false;     // each event as a line of JSON in place of text
  bool verbose = false;  // a summary even where standard error is not a terminal
  int num_samples =
      1;  // several are printed one after the other, each under a line with its number
};

class StreamPrinter {
 public:
  StreamPrinter(Console& console, const PrintOptions& options);

  // False once standard output takes no more.
  bool Handle(const v1::GenerateEvent& event);

  // To be called after the last event, also of a call that failed: leaves both streams at the
  // beginning of a line where they are terminals.
  void End();

 private:
  bool HandleOutput(const v1::Output& output);
  bool PrintSamplesInOrder();
  void ShowStatus(const std::string& line);
  void ClearStatus();
  void ShowSummary(const v1::Finished& finished);
  bool Print(const std::string& text);

  struct Sample {
    std::string pending;  // not yet printed: an earlier sample is still at it
    bool finished = false;
    std::string ended_by;
  };

  Console& console_;
  const PrintOptions options_;
  std::map<int, Sample> samples_;
  int current_sample_ = 0;  // the one that is printed as it comes
  bool at_line_start_ = true;
  bool status_shown_ = false;
  std::chrono::steady_clock::time_point prefill_start_{};
};

}  // namespace everlong
