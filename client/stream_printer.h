// Shows the events of one Generate call: text on standard output as it comes; progress through the
// prompt, log probabilities and a summary on standard error.
#pragma once

#include <google/protobuf/message.h>

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "client/console.h"
#include "client/logprob_table.h"
#include "everlong/v1/inference.pb.h"

namespace everlong {

// The message as one line of protobuf's canonical JSON, with the line's end.
std::string JsonLine(const google::protobuf::Message& message);

// "[#####     ] 512/1024 tokens, 100 tokens/s, 5 s left"; a rate of 0 is not known yet.
std::string ProgressLine(const v1::Prefill& prefill, double tokens_per_second);

struct PrintOptions {
  bool json = false;      // each event as a line of JSON, and nothing else
  bool summary = false;   // usage and timings at the end
  bool end_line = false;  // ends the text's last line, whether or not the model did
  int num_samples = 1;    // several are printed one after the other, each under its number
  std::function<std::string(int32_t)> token_text;  // for tables of log probabilities
};

class StreamPrinter {
 public:
  StreamPrinter(Console& console, PrintOptions options);
  // Also of a call that failed: leaves a terminal's cursor at the beginning of a line.
  ~StreamPrinter();

  void Handle(const v1::GenerateEvent& event);

 private:
  struct Sample {
    bool begun = false;
    std::string pending;  // not yet printed: an earlier sample is still at it
    PositionLogprobs logprobs;
    std::optional<v1::SampleFinished> finished;
  };

  void HandlePrefill(const v1::Prefill& prefill);
  void PrintSamplesInOrder();
  void PrintText(const std::string& text);
  void EndLine();
  void PrintNote(const std::string& note);  // whole lines, on standard error
  void PrintLogprobs(std::string_view title, const PositionLogprobs& logprobs, int64_t position);
  void PrintSummary(const v1::Finished& finished);

  Console& console_;
  const PrintOptions options_;
  StatusLine status_line_;
  std::map<int, Sample> samples_;
  int current_sample_ = 0;  // the one that is printed as it comes
  bool at_line_start_ = true;
  PositionLogprobs prompt_logprobs_;
  // The first Prefill event, from which on progress is measured: before it the request waited.
  std::optional<std::chrono::steady_clock::time_point> prefill_time_;
  int64_t prefill_done_ = 0;
};

}  // namespace everlong
