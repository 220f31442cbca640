#include "client/stream_printer.h"

#include <fmt/format.h>
#include <fmt/ostream.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <ostream>

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
      return fmt::format("'{}'", finished.stop_string());
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return "unknown reason";
  }
}

}  // namespace

std::string JsonLine(const google::protobuf::Message& message) {
  std::string line;
  // Cannot fail: none of our messages holds an Any.
  (void)google::protobuf::util::MessageToJsonString(message, &line);
  line += '\n';
  return line;
}

std::string ProgressLine(const v1::Prefill& prefill, double seconds) {
  constexpr int kWidth = 30;
  const double total = std::max<int64_t>(prefill.total_tokens(), 1);
  const int filled =
      std::clamp(static_cast<int>(prefill.done_tokens() / total * kWidth), 0, kWidth);
  std::string line = fmt::format("[{:<{}}] {}/{} tokens", std::string(filled, '#'), kWidth,
                                 prefill.done_tokens(), prefill.total_tokens());
  const auto computed = static_cast<double>(prefill.done_tokens() - prefill.cached_tokens());
  if (seconds > 0 && computed > 0) {
    const double rate = computed / seconds;
    line += fmt::format(", {:.0f} tok/s, {:.0f} s left", rate,
                        (total - static_cast<double>(prefill.done_tokens())) / rate);
  }
  return line;
}

StreamPrinter::StreamPrinter(Console& console, const PrintOptions& options)
    : console_(console), options_(options) {}

bool StreamPrinter::Handle(const v1::GenerateEvent& event) {
  if (options_.json) return WriteOut(console_, JsonLine(event));
  switch (event.event_case()) {
    case v1::GenerateEvent::kAccepted:
      prefill_start_ = std::chrono::steady_clock::now();
      if (event.accepted().queue_position() > 0) {
        ShowStatus(fmt::format("waiting, {} requests ahead", event.accepted().queue_position()));
      }
      return true;
    case v1::GenerateEvent::kPrefill: {
      const std::chrono::duration<double> elapsed =
          std::chrono::steady_clock::now() - prefill_start_;
      ShowStatus(ProgressLine(event.prefill(), elapsed.count()));
      return true;
    }
    case v1::GenerateEvent::kOutput:
      return HandleOutput(event.output());
    case v1::GenerateEvent::kSampleFinished: {
      Sample& sample = samples_[event.sample_finished().sample()];
      sample.finished = true;
      sample.ended_by = DescribeEnd(event.sample_finished());
      return PrintSamplesInOrder();
    }
    case v1::GenerateEvent::kFinished:
      End();
      ShowSummary(event.finished());
      return true;
    default:
      return true;
  }
}

bool StreamPrinter::HandleOutput(const v1::Output& output) {
  samples_[output.sample()].pending += output.text();
  return PrintSamplesInOrder();
}

bool StreamPrinter::PrintSamplesInOrder() {
  for (;; ++current_sample_) {
    Sample& sample = samples_[current_sample_];
    if (!Print(std::exchange(sample.pending, {}))) return false;
    if (!sample.finished || current_sample_ + 1 >= options_.num_samples) return true;
    if (!Print(fmt::format("{}--- sample {} ---\n", at_line_start_ ? "" : "\n",
                           current_sample_ + 1))) {
      return false;
    }
  }
}

bool StreamPrinter::Print(const std::string& text) {
  if (text.empty()) return true;
  ClearStatus();
  at_line_start_ = text.back() == '\n';
  return WriteOut(console_, text);
}

void StreamPrinter::ShowStatus(const std::string& line) {
  if (!console_.err_is_terminal) return;
  fmt::print(console_.err, "\r\033[K{}", line);
  console_.err.flush();
  status_shown_ = true;
}

void StreamPrinter::ClearStatus() {
  if (!std::exchange(status_shown_, false)) return;
  console_.err << "\r\033[K" << std::flush;
}

void StreamPrinter::End() {
  ClearStatus();
  if (console_.out_is_terminal && !at_line_start_) Print("\n");
}

void StreamPrinter::ShowSummary(const v1::Finished& finished) {
  if (!options_.verbose && !console_.err_is_terminal) return;
  const v1::Usage& usage = finished.usage();
  const v1::Timings& timings = finished.timings();
  std::string line =
      fmt::format("prompt {} tokens ({} cached), output {} tokens", usage.prompt_tokens(),
                  usage.cached_tokens(), usage.output_tokens());
  line += fmt::format("; waited {:.2f} s, first token after {:.2f} s", Seconds(timings.queue()),
                      Seconds(timings.first_token()));
  if (timings.has_per_token() && Seconds(timings.per_token()) > 0) {
    line += fmt::format(", {:.1f} tokens/s", 1 / Seconds(timings.per_token()));
  }
  line += "; ended by";
  for (const auto& [index, sample] : samples_) line += " " + sample.ended_by;
  console_.err << line << std::endl;
}

}  // namespace everlong
