#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <ostream>

#include "absl/strings/numbers.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/load.h"
#include "client/load_report.h"

namespace everlong {
namespace {

struct BenchOptions {
  ConnectionOptions connection;
  LoadPlan plan{.prompt_tokens = {256, 256}, .output_tokens = {64, 64}};
  int64_t num_warmups = 1;
  bool json = false;
};

constexpr int64_t kDefaultConcurrency = 1;
constexpr int64_t kDefaultRequests = 32;

// "N" or "MIN-MAX".
LengthRange ParseRange(const std::string& text) {
  const size_t dash = text.find('-');
  LengthRange range;
  bool parsed = absl::SimpleAtoi(text.substr(0, dash), &range.min);
  range.max = range.min;
  if (dash != std::string::npos) parsed &= absl::SimpleAtoi(text.substr(dash + 1), &range.max);
  if (!parsed || range.min < 1 || range.max < range.min) {
    throw CLI::ValidationError(fmt::format("'{}' is neither N nor MIN-MAX, from 1", text));
  }
  return range;
}

void AddRangeOption(CLI::App& command, const char* name, LengthRange& range,
                    const char* description) {
  command
      .add_option_function<std::string>(
          name, [&range](const std::string& text) { range = ParseRange(text); }, description)
      ->type_name("N|MIN-MAX")
      ->default_str(fmt::format("{}", range.min));
}

class BenchProgress {
 public:
  // `num_requests` is 0 where their number is open.
  BenchProgress(Console& console, int64_t num_requests)
      : line_(console), of_all_(num_requests > 0 ? fmt::format(" of {}", num_requests) : "") {}

  void operator()(int64_t ended, int64_t in_flight) {
    constexpr std::chrono::milliseconds kInterval(200);
    const auto now = std::chrono::steady_clock::now();
    if (now - shown_ < kInterval) return;
    shown_ = now;
    line_.Show(fmt::format("{}{} requests ended, {} in flight", ended, of_all_, in_flight));
  }

 private:
  StatusLine line_;
  const std::string of_all_;
  std::chrono::steady_clock::time_point shown_{};
};

std::vector<CallRecord> WarmUpAndRun(Connection& connection, const BenchOptions& options,
                                     const std::atomic<bool>& stop, Console& console) {
  BenchProgress progress(console, options.plan.num_requests);
  if (options.num_warmups > 0) {
    LoadPlan warmup = options.plan;
    warmup.num_requests = options.num_warmups;
    warmup.duration_seconds = 0;
    warmup.rate = 0;
    warmup.concurrency = std::max(options.plan.concurrency, kDefaultConcurrency);
    warmup.seed = ~options.plan.seed;  // other prompts: none may be found in a cache later
    RunLoad(connection, warmup, stop, [](int64_t, int64_t) {});
  }
  return RunLoad(connection, options.plan, stop, std::ref(progress));
}

int RunBench(BenchOptions options, Console& console) {
  LoadPlan& plan = options.plan;
  if (plan.rate == 0 && plan.concurrency == 0) plan.concurrency = kDefaultConcurrency;
  if (plan.num_requests == 0 && plan.duration_seconds == 0) plan.num_requests = kDefaultRequests;
  Connection connection(options.connection);
  const absl::StatusOr<v1::Model> model = connection.GetModel(plan.model);
  if (!model.ok()) return Finish(console, model.status());
  plan.vocab_size = model->vocab_size();
  if (plan.prompt_tokens.max > model->served_length() - plan.output_tokens.max) {
    return FailUsage(console, absl::InvalidArgumentError(fmt::format(
                                  "--prompt-tokens {} and --output-tokens {} exceed the {} tokens "
                                  "that {} is served with",
                                  plan.prompt_tokens.max, plan.output_tokens.max,
                                  model->served_length(), model->name())));
  }
  std::atomic<bool> stop = false;
  const Interrupts::Watch watch(console.interrupts, [&] { stop = true; });
  const LoadReport report = MakeReport(WarmUpAndRun(connection, options, stop, console));
  console.out << (options.json ? ReportJson(report) : ReportTable(report)) << std::flush;
  if (stop) return kExitInterrupted;
  return report.failures.empty() ? Finish(console, absl::OkStatus()) : kExitFailed;
}

}  // namespace

Command AddBench(CLI::App& app) {
  CLI::App& command = *app.add_subcommand("bench", "Puts a load on the server and measures it");
  const auto options = std::make_shared<BenchOptions>();
  LoadPlan& plan = options->plan;
  command
      .add_option("--concurrency", plan.concurrency,
                  "Requests in flight at most; 1 by default, with --rate any number")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command
      .add_option("--rate", plan.rate,
                  "Mean arrivals per second (Poisson); by default one follows the other")
      ->check(CLI::PositiveNumber)
      ->type_name("X");
  command.add_option("--requests", plan.num_requests, "How many; 32 by default")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command.add_option("--duration", plan.duration_seconds, "How long requests arrive")
      ->check(CLI::PositiveNumber)
      ->type_name("SECONDS");
  AddRangeOption(command, "--prompt-tokens", plan.prompt_tokens, "Length of prompts");
  AddRangeOption(command, "--output-tokens", plan.output_tokens, "Length of outputs");
  command.add_option("--seed", plan.seed, "The same seed makes the same requests and arrivals")
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--warmup", options->num_warmups, "Requests before the measurement")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N")
      ->capture_default_str();
  command.add_flag("--json", options->json, "Prints the report as a line of JSON");
  AddConnectionOptions(command, options->connection);
  AddModelOption(command, plan.model);
  return [options](Console& console) { return RunBench(*options, console); };
}

}  // namespace everlong
