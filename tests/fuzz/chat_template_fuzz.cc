// A template, and behind a NUL byte the JSON of its context. Whatever they are, rendering ends.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/jinja/interpreter.h"
#include "engine/jinja/parser.h"
#include "engine/text.h"
#include "nlohmann/json.hpp"

namespace {

using Json = nlohmann::ordered_json;

const Json& DefaultContext() {
  static const auto& context = *new Json(Json::parse(R"({
    "messages": [{"role": "user", "content": "Grüße \u00a0 <b>"},
                 {"role": "assistant", "content": null, "tool_calls": [
                   {"function": {"name": "f", "arguments": {"x": [1, 2.5, true, {"y": "z"}]}}}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {"b": []}}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "x": "a,b c\n\nd", "n": -7, "f": 0.5})"));
  return context;
}

Json ContextOf(std::string_view json) {
  Json context = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  return context.is_object() ? context : DefaultContext();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string_view source = input.substr(0, end);
  if (everlong::FindInvalidUtf8(source) != std::string_view::npos) return 0;
  try {
    const auto program = everlong::jinja::ParseTemplate(source);
    everlong::jinja::Render(*program, ContextOf(input.substr(std::min(end + 1, size))),
                            {.steps = 100'000, .bytes = 4 << 20});
  } catch (const everlong::jinja::Error&) {
    // Refused, as it should be.
  }
  return 0;
}
