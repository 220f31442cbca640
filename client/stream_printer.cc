#include "client/stream_printer.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <ostream>
#include <utility>

#include "absl/time/time.h"

namespace everlong {
namespace {

double Seconds(const google::protobuf::Duration& duration) {
  return google::protobuf::util::TimeUtil::DurationToNanoseconds(duration) / 1e9;
}

std::string DescribeEnd(const v1::SampleFinished& finished) {
  switch (finished.reason()) {
    case v1::FINISH_REASON_STOP_TOKEN:
      return fmt::format("token {}", finished.stop_token());
    case v1::FINISH_REASON_STOP_STRING:
      return "stop string " + Quote(finished.stop_string());
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return v1::FinishReason_Name(finished.reason());
  }
}

}  // namespace

std::string JsonLine(const google::protobuf::Message& message) {
  std::string line;
  // Cannot fail: none of our messages holds an Any.
  (void)google::protobuf::util::MessageToJsonString(message, &line);
  return line + '\n';
}

std::string ProgressLine(const v1::Prefill& prefill, double tokens_per_second) {
  constexpr int kWidth = 20;  // keeps the line of a million tokens within 80 columns
  const int64_t total = std::max<int64_t>(prefill.total_tokens(), 1);
  const int64_t done = std::clamp<int64_t>(prefill.done_tokens(), 0, total);
  const std::string bar(kWidth * done / total, '#');
  std::string line = fmt::format("[{:<{}}] {}/{} tokens", bar, kWidth, done, total);
  if (tokens_per_second > 0) {
    const auto left = static_cast<double>(total - done) / tokens_per_second;
    const absl::Duration rounded = absl::Floor(absl::Seconds(left + 0.5), absl::Seconds(1));
    line +=
        fmt::format(", {:.0f} tokens/s, {} left", tokens_per_second, absl::FormatDuration(rounded));
  }
  return line;
}

StreamPrinter::StreamPrinter(Console& console, PrintOptions options)
    : console_(console), options_(std::move(options)), status_line_(console) {}

StreamPrinter::~StreamPrinter() {
  EndLine();
}

void StreamPrinter::Handle(const v1::GenerateEvent& event) {
  if (options_.json) {
    console_.out << JsonLine(event) << std::flush;
    return;
  }
  switch (event.event_case()) {
    case v1::GenerateEvent::kAccepted:
      if (const std::string& warning = event.accepted().warning(); !warning.empty()) {
        PrintNote("warning: " + warning + '\n');
      }
      if (const int64_t ahead = event.accepted().queue_position(); ahead > 0) {
        status_line_.Show(fmt::format("waiting, {} ahead", ahead));
      }
      break;
    case v1::GenerateEvent::kPrefill:
      HandlePrefill(event.prefill());
      break;
    case v1::GenerateEvent::kOutput: {
      Sample& sample = samples_[event.output().sample()];
      sample.pending += event.output().text();
      sample.logprobs.MergeFrom(event.output().logprobs());
      PrintSamplesInOrder();
      break;
    }
    case v1::GenerateEvent::kSampleFinished:
      samples_[event.sample_finished().sample()].finished = event.sample_finished();
      PrintSamplesInOrder();
      break;
    case v1::GenerateEvent::kFinished:
      if (options_.summary) PrintSummary(event.finished());
      break;
    case v1::GenerateEvent::EVENT_NOT_SET:  // of a newer server
      break;
  }
}

void StreamPrinter::HandlePrefill(const v1::Prefill& prefill) {
  prompt_logprobs_.MergeFrom(prefill.prompt_logprobs());
  if (prefill.done_tokens() >= prefill.total_tokens()) {
    status_line_.Clear();
    // The prompt's first token has no log probability.
    PrintLogprobs("prompt", std::exchange(prompt_logprobs_, {}), 1);
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  double rate = 0;
  if (prefill_time_) {
    const std::chrono::duration<double> elapsed = now - *prefill_time_;
    rate = static_cast<double>(prefill.done_tokens() - prefill_done_) / elapsed.count();
  } else {
    prefill_time_ = now;
    prefill_done_ = prefill.done_tokens();
  }
  status_line_.Show(ProgressLine(prefill, rate));
}

void StreamPrinter::PrintSamplesInOrder() {
  while (current_sample_ < options_.num_samples) {
    Sample& sample = samples_[current_sample_];
    if (options_.num_samples > 1 && !std::exchange(sample.begun, true)) {
      PrintText(fmt::format("--- sample {} ---\n", current_sample_));
    }
    PrintText(std::exchange(sample.pending, {}));
    if (!sample.finished) return;
    PrintLogprobs(fmt::format("sample {}", current_sample_), sample.logprobs, 0);
    ++current_sample_;
    EndLine();
  }
}

void StreamPrinter::PrintText(const std::string& text) {
  if (text.empty()) return;
  status_line_.Clear();
  at_line_start_ = text.back() == '\n';
  console_.out << text << std::flush;
}

void StreamPrinter::EndLine() {
  status_line_.Clear();
  if (!at_line_start_ &&
      (options_.end_line || options_.num_samples > 1 || console_.out_is_terminal)) {
    PrintText("\n");
  }
}

void StreamPrinter::PrintNote(const std::string& note) {
  EndLine();
  // Standard output may reach the same terminal through another program.
  if (!at_line_start_ && console_.err_is_terminal) console_.err << '\n';
  console_.err << note << std::flush;
}

void StreamPrinter::PrintLogprobs(std::string_view title, const PositionLogprobs& logprobs,
                                  int64_t position) {
  if (logprobs.empty()) return;
  PrintNote(LogprobTable(title, logprobs, position, options_.token_text));
}

void StreamPrinter::PrintSummary(const v1::Finished& finished) {
  const v1::Usage& usage = finished.usage();
  const v1::Timings& timings = finished.timings();
  std::string line = fmt::format(
      "prompt {} tokens ({} cached), output {} tokens; waited {:.3f} s, first token after {:.3f} s",
      usage.prompt_tokens(), usage.cached_tokens(), usage.output_tokens(), Seconds(timings.queue()),
      Seconds(timings.first_token()));
  if (const double interval = Seconds(timings.per_token()); interval > 0) {
    line += fmt::format(", {:.1f} tokens/s", 1 / interval);
  }
  line += "; ended by";
  for (const auto& [index, sample] : samples_) {
    if (!sample.finished) continue;
    line += fmt::format("{} {}", index > 0 ? "," : "", DescribeEnd(*sample.finished));
  }
  PrintNote(line + '\n');
}

}  // namespace everlong
