#include "client/load_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace everlong {
namespace {

// Of sorted values.
double Percentile(const std::vector<WeightedValue>& values, int64_t total_weight, int percent) {
  int64_t weight = 0;
  for (const WeightedValue& v : values) {
    weight += v.weight;
    if (weight * 100 >= total_weight * percent) return v.value;
  }
  return values.back().value;
}

double PerSecond(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

std::string TableRow(const char* name, const std::optional<Distribution>& times) {
  if (!times) return fmt::format("{:<18} none measured\n", name);
  constexpr double kMs = 1e3;
  return fmt::format("{:<18} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f}\n", name,
                     times->p50 * kMs, times->p90 * kMs, times->p99 * kMs, times->max * kMs,
                     times->mean * kMs);
}

nlohmann::ordered_json Json(const std::optional<Distribution>& times) {
  if (!times) return nullptr;
  return {{"mean", times->mean},
          {"p50", times->p50},
          {"p90", times->p90},
          {"p99", times->p99},
          {"max", times->max}};
}

}  // namespace

std::optional<Distribution> Summarize(std::vector<WeightedValue> values) {
  int64_t total_weight = 0;
  double sum = 0;
  for (const WeightedValue& v : values) {
    total_weight += v.weight;
    sum += v.value * static_cast<double>(v.weight);
  }
  if (total_weight == 0) return std::nullopt;
  std::sort(values.begin(), values.end(),
            [](const WeightedValue& a, const WeightedValue& b) { return a.value < b.value; });
  return Distribution{.mean = sum / static_cast<double>(total_weight),
                      .p50 = Percentile(values, total_weight, 50),
                      .p90 = Percentile(values, total_weight, 90),
                      .p99 = Percentile(values, total_weight, 99),
                      .max = values.back().value};
}

LoadReport MakeReport(const std::vector<CallRecord>& records) {
  LoadReport report;
  std::vector<WeightedValue> first_token, end_to_end, inter_token;
  double begin = records.empty() ? 0 : records.front().arrival;
  double end = begin;
  for (const CallRecord& record : records) {
    begin = std::min(begin, record.arrival);
    end = std::max(end, record.end);
    if (!record.status.ok()) {
      Failures& failures = report.failures[absl::StatusCodeToString(record.status.code())];
      if (failures.count++ == 0) failures.first_message = std::string(record.status.message());
      continue;
    }
    ++report.num_completed;
    report.prompt_tokens += record.prompt_tokens;
    report.output_tokens += record.output_tokens;
    end_to_end.push_back({record.end - record.arrival});
    if (record.output_tokens > 0) first_token.push_back({record.first_token - record.arrival});
    inter_token.insert(inter_token.end(), record.intervals.begin(), record.intervals.end());
  }
  report.duration = end - begin;
  report.first_token = Summarize(std::move(first_token));
  report.end_to_end = Summarize(std::move(end_to_end));
  report.inter_token = Summarize(std::move(inter_token));
  return report;
}

std::string ReportTable(const LoadReport& report) {
  std::string table =
      fmt::format("{} requests completed in {:.2f} s\n", report.num_completed, report.duration);
  for (const auto& [code, failures] : report.failures) {
    table += fmt::format("{} failed with {}, the first: {}\n", failures.count, code,
                         failures.first_message);
  }
  table += fmt::format("{:.2f} requests/s, {:.1f} output tokens/s, {:.1f} prompt tokens/s\n\n",
                       PerSecond(report.num_completed, report.duration),
                       PerSecond(report.output_tokens, report.duration),
                       PerSecond(report.prompt_tokens, report.duration));
  table += fmt::format("{:<18} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "milliseconds", "p50", "p90",
                       "p99", "max", "mean");
  table += TableRow("first token", report.first_token);
  table += TableRow("between tokens", report.inter_token);
  table += TableRow("end to end", report.end_to_end);
  return table;
}

std::string ReportJson(const LoadReport& report) {
  nlohmann::ordered_json failed = nlohmann::ordered_json::object();
  for (const auto& [code, failures] : report.failures) failed[code] = failures.count;
  const nlohmann::ordered_json json = {
      {"completed", report.num_completed},
      {"failed", failed},
      {"duration_seconds", report.duration},
      {"requests_per_second", PerSecond(report.num_completed, report.duration)},
      {"prompt_tokens_per_second", PerSecond(report.prompt_tokens, report.duration)},
      {"output_tokens_per_second", PerSecond(report.output_tokens, report.duration)},
      {"first_token_seconds", Json(report.first_token)},
      {"inter_token_seconds", Json(report.inter_token)},
      {"end_to_end_seconds", Json(report.end_to_end)}};
  return json.dump() + '\n';
}

}  // namespace everlong
