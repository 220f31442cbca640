// The options that shape an answer, as generate and chat have them.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "everlong/v1/inference.pb.h"

namespace everlong {

// Options left out stay out of the request: the server's defaults and limits are the only ones.
struct GenerationOptions {
  std::optional<int64_t> max_output_tokens;
  std::optional<int64_t> min_output_tokens;
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::optional<std::string> attention;
  std::optional<std::string> preset;
  std::optional<std::string> selector;
  std::optional<std::string> positions;
  std::optional<int32_t> budget;
  std::optional<int32_t> sinks;
  std::optional<int32_t> window;
  std::vector<int32_t> refresh;
  std::optional<int32_t> dilation;
  std::optional<int32_t> rerank;
  std::optional<int32_t> sieve;
  std::optional<int32_t> fidelity_every;
};

void AddGenerationOptions(CLI::App& command, GenerationOptions& options);

// Fills in sampling and stopping. The error names a stop string that is not UTF-8.
absl::Status ApplyGenerationOptions(const GenerationOptions& options, v1::GenerateRequest& request);

void AddMessage(std::string role, std::string content, v1::Chat& chat);

}  // namespace everlong
