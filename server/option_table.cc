#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <string_view>

#include "engine/attention_presets.h"
#include "engine/status.h"
#include "fmt/format.h"
#include "kernels/dtype.h"
#include "server/attention_options.h"
#include "server/options.h"

namespace everlong {
namespace {

using Read = std::function<absl::Status(const std::string&, ServerOptions&)>;

absl::Status Invalid(const std::string& message) {
  return absl::InvalidArgumentError(message);
}

template <class Number>
absl::StatusOr<Number> ParseNumber(std::string_view text, Number low, Number high) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::invalid_argument || end != text.data() + text.size()) {
    return Invalid(fmt::format("'{}' is not a number", text));
  }
  if (error != std::errc() || !(value >= low && value <= high)) {
    return Invalid(fmt::format("{} is outside [{}, {}]", text, low, high));
  }
  return value;
}

Read Text(std::string ServerOptions::*member) {
  return [=](const std::string& value, ServerOptions& options) {
    options.*member = value;
    return absl::OkStatus();
  };
}

Read OneOf(std::string ServerOptions::*member, const std::vector<std::string>& choices) {
  return [=](const std::string& value, ServerOptions& options) {
    for (const std::string& choice : choices) {
      if (value != choice) continue;
      options.*member = value;
      return absl::OkStatus();
    }
    return Invalid(fmt::format("'{}' is not one of {}", value, fmt::join(choices, ", ")));
  };
}

Read Address(std::string ServerOptions::*member) {
  return [=](const std::string& value, ServerOptions& options) -> absl::Status {
    const size_t colon = value.rfind(':');
    if (colon == std::string::npos || colon == 0) {
      return Invalid(fmt::format("'{}' is not HOST:PORT", value));
    }
    RETURN_IF_ERROR(ParseNumber<int32_t>(value.substr(colon + 1), 0, 65535).status());
    options.*member = value;
    return absl::OkStatus();
  };
}

// `member` picks the number to set; its type limits the range too.
template <class Number>
Read Count(std::function<Number&(ServerOptions&)> member, Number low, Number high) {
  return [=](const std::string& value, ServerOptions& options) -> absl::Status {
    ASSIGN_OR_RETURN(member(options), ParseNumber<Number>(value, low, high));
    return absl::OkStatus();
  };
}

template <class Number>
Read Size(std::function<Number&(ServerOptions&)> member, int64_t low) {
  return [=](const std::string& value, ServerOptions& options) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t bytes, ParseSize(value));
    constexpr int64_t kHigh = std::numeric_limits<Number>::max();
    if (bytes < low || bytes > kHigh) {
      return Invalid(fmt::format("{} bytes are outside [{}, {}]", bytes, low, kHigh));
    }
    member(options) = static_cast<Number>(bytes);
    return absl::OkStatus();
  };
}

absl::Status ReadDrain(const std::string& value, ServerOptions& options) {
  ASSIGN_OR_RETURN(const double seconds, ParseNumber<double>(value, 0.0, 86400.0));
  options.drain = absl::Seconds(seconds);
  return absl::OkStatus();
}

// One of the plain types that `names` has.
Read Type(const std::function<std::optional<DType>&(ServerOptions&)>& member,
          const std::vector<std::string_view>& names) {
  return [=](const std::string& value, ServerOptions& options) {
    for (const auto& [name, type] : kPlainTypes) {
      if (value != name || std::find(names.begin(), names.end(), name) == names.end()) continue;
      member(options) = type;
      return absl::OkStatus();
    }
    return Invalid(fmt::format("'{}' is not one of {}", value, fmt::join(names, ", ")));
  };
}

Read Attention(const char* field) {
  return [=](const std::string& value, ServerOptions& options) {
    return SetAttention(field, value, options.engine.attention.all);
  };
}

absl::Status ReadLayers(const std::string& value, ServerOptions& options) {
  return SetAttentionLayers(value, options.engine.attention);
}

template <class Number>
std::function<Number&(ServerOptions&)> OfEngine(Number EngineOptions::*member) {
  return [=](ServerOptions& options) -> Number& { return options.engine.*member; };
}

template <class Number>
std::function<Number&(ServerOptions&)> OfServer(Number ServerOptions::*member) {
  return [=](ServerOptions& options) -> Number& { return options.*member; };
}

std::vector<Option> MakeTable() {
  using S = ServerOptions;
  using E = EngineOptions;
  constexpr int32_t kMax32 = std::numeric_limits<int32_t>::max();
  const E engine;
  const auto text = [](auto number) { return fmt::to_string(number); };
  return {
      {"model", "PATH", "", "Checkpoint: Hugging Face directory or GGUF file; required",
       Text(&S::model)},
      {"listen", "HOST:PORT", "127.0.0.1:50051", "gRPC address; port 0 takes a free one",
       Address(&S::listen)},
      {"metrics-listen", "HOST:PORT", "127.0.0.1:50052", "HTTP address of /metrics",
       Address(&S::metrics_listen)},
      {"device", "cpu|cuda|auto", "auto", "Where the model runs",
       OneOf(&S::device, {"cpu", "cuda", "auto"})},
      {"threads", "N", "0", "Threads of the CPU backend; 0: one per core",
       Count<int32_t>(OfServer(&S::threads), 0, 4096)},
      {"weight-type", "bf16|fp8", "",
       "Element type of the weights on cuda; bf16 where it is left out",
       Type(OfServer(&S::weight_type), {"bf16", "fp8"})},
      {"max-context", "N", text(engine.max_context),
       "Tokens of prompt and output together; 0: as many as the model was trained on",
       Count<int64_t>(OfEngine(&E::max_context), 0, int64_t{1} << 30)},
      {"max-batch-tokens", "N", text(engine.max_batch_tokens),
       "Tokens of one step of the engine; 0: 512 on the cpu, 8192 on cuda",
       Count<int32_t>(OfEngine(&E::max_batch_tokens), 0, kMax32)},
      {"max-running", "N", text(engine.max_running), "Outputs generated at a time",
       Count<int32_t>(OfEngine(&E::max_running), 1, kMax32)},
      {"max-waiting", "N", text(engine.max_waiting), "Requests that may wait; more are refused",
       Count<int32_t>(OfEngine(&E::max_waiting), 0, kMax32)},
      {"kv-device-bytes", "SIZE", text(engine.kv_device_bytes),
       "KV cache, e.g. 4GiB; 0: four contexts, at most a quarter of the memory, on cuda what is "
       "free",
       Size<int64_t>(OfEngine(&E::kv_device_bytes), 0)},
      {"kv-type", "TYPE", "",
       "Element type of the KV cache: f32, f16 (default) or bf16 on the cpu, bf16 (default) or fp8 "
       "on cuda",
       Type(OfEngine(&E::kv_type), {"f32", "f16", "bf16", "fp8"})},
      {"attention", "MODE", "auto",
       "auto (dense within the trained length, infinite_hip after it), dense or infinite_hip",
       Attention("mode")},
      {"preset", "NAME", "",
       fmt::format("Settings of infinite_hip: {}", fmt::join(PresetNames(), ", ")),
       Attention("preset")},
      {"selector", "hip|scan|window", "",
       "What picks the tokens that are read; as the preset has it", Attention("selector")},
      {"positions", "RULE", "", "auto, true, streaming or clipped; as the preset has it",
       Attention("positions")},
      {"budget", "N", "", "Tokens that the selector picks", Attention("budget")},
      {"sinks", "N", "", "First tokens, which are always read", Attention("sinks")},
      {"window", "N", "", "Latest tokens, which are always read", Attention("window")},
      {"refresh", "N,...", "", "Output tokens for which a selection serves, by stage",
       Attention("refresh")},
      {"stages", "LIST", "",
       "Stages of hip, CHUNK:KEEP in tokens each, e.g. \"256:32768:pool,32:8192,8:2048:every-key\"",
       Attention("stages")},
      {"chunk-score", "path|last", "", "hip: a chunk's best probe, or its last one, is its score",
       Attention("chunk-score")},
      {"head-reduction", "kv_head|all", "", "Whether all heads share a selection",
       Attention("head-reduction")},
      {"dilation", "N", "", "scan: a block's score is the best of so many around it",
       Attention("dilation")},
      {"rerank", "N", "",
       "scan: so many times the budget are scored again with the keys themselves",
       Attention("rerank")},
      {"sieve", "N", "", "scan: of so many pages of 64 tokens about one is scanned",
       Attention("sieve")},
      {"attention-layers", "LIST", "",
       "Layers that differ, e.g. \"0,1 mode=dense; 4-7 budget=4096\"", ReadLayers},
      {"index-bits", "1|2|4", text(engine.index_bits),
       "Bits for each value of the keys' copy that the scan reads",
       Count<int32_t>(OfEngine(&E::index_bits), 1, 4)},
      {"fidelity-sample-every", "N", text(engine.fidelity_every),
       "Compares one of N output tokens with dense attention; 0: none",
       Count<int32_t>(OfEngine(&E::fidelity_every), 0, kMax32)},
      {"ready-file", "PATH", "", "Gets the addresses as JSON once requests are served",
       Text(&S::ready_file)},
      {"drain-seconds", "S", "30", "Time for running requests to finish after SIGTERM", ReadDrain},
      {"max-message-bytes", "SIZE", "64MiB", "Longest request message",
       Size<int32_t>(OfServer(&S::max_message_bytes), 1024)},
      {"log-level", "LEVEL", "info", "trace, debug, info, warn, error or off",
       OneOf(&S::log_level, {"trace", "debug", "info", "warn", "error", "off"})},
  };
}

}  // namespace

const std::vector<Option>& OptionTable() {
  static const auto* table = new std::vector<Option>(MakeTable());
  return *table;
}

absl::StatusOr<int64_t> ParseSize(const std::string& text) {
  static constexpr std::pair<std::string_view, int> kUnits[] = {
      {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}, {"", 0}};
  for (const auto& [unit, shift] : kUnits) {
    if (!std::string_view(text).ends_with(unit)) continue;
    const std::string_view digits(text.data(), text.size() - unit.size());
    const auto number =
        ParseNumber<int64_t>(digits, 0, std::numeric_limits<int64_t>::max() >> shift);
    if (number.ok()) return *number << shift;
    break;
  }
  return Invalid(fmt::format("'{}' is not a size such as 4GiB, 512MiB, 64KiB or 4096", text));
}

}  // namespace everlong
