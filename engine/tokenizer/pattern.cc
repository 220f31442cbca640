#include "engine/tokenizer/pattern.h"

#include <fmt/format.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "engine/status.h"
#include "engine/text.h"

namespace everlong {
namespace {

constexpr size_t kMaxExpressionBytes = 1 << 16;

// A match of the expressions that models use takes a step or two per character at most.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKiB = 64 << 10;
constexpr size_t kJitStackBytes = 1 << 20;

struct Free {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

// What pcre2_match writes to, one per thread.
struct MatchSpace {
  std::unique_ptr<pcre2_match_context, Free> context{pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_jit_stack, Free> stack{
      pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr)};
  std::unique_ptr<pcre2_match_data, Free> data{pcre2_match_data_create(1, nullptr)};

  MatchSpace() {
    pcre2_set_match_limit(context.get(), kMatchLimit);
    pcre2_set_heap_limit(context.get(), kHeapLimitKiB);
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

std::string Pcre2Message(int error) {
  char message[256] = "";
  pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
  return message;
}

// The shortest beginning of `expression` (not empty) whose parts have no meaning of their own.
std::string_view FirstItem(std::string_view expression, bool in_class) {
  const auto through = [expression](std::string_view end) {
    const size_t at = expression.find(end);
    return expression.substr(0, at == expression.npos ? at : at + end.size());
  };
  if (in_class && expression.starts_with("[:")) return through(":]");
  if (!in_class && expression.starts_with("[^]")) return expression.substr(0, 3);
  if (!in_class && expression.starts_with("[]")) return expression.substr(0, 2);
  if (expression[0] != '\\') return expression.substr(0, 1);
  const bool has_argument = expression.starts_with("\\p{") || expression.starts_with("\\P{") ||
                            expression.starts_with("\\x{");
  return has_argument ? through("}") : expression.substr(0, 2);
}

// What `item` is in PCRE2, nothing where it means something else there or is hard to tell. PCRE2's
// own \s knows one space more, U+180E.
std::string_view TranslateItem(std::string_view item, std::string_view after, bool in_class) {
  if (item == R"(\s)") return R"(\p{White_Space})";
  if (item == R"(\S)") return R"(\P{White_Space})";
  const bool is_nested_class = in_class && (item == "[" || (item == "&" && after.starts_with("&")));
  const bool is_repeated_interval = !in_class && item == "}" && after.starts_with("+");
  const bool is_other_escape =
      item == "\\" || (item.size() == 2 && item[0] == '\\' &&
                       std::string_view("wWbBhHK").find(item[1]) != std::string_view::npos);
  return is_nested_class || is_repeated_interval || is_other_escape ? std::string_view() : item;
}

absl::StatusOr<std::string> ToPcre2(std::string_view expression) {
  std::string result;
  bool in_class = false;
  for (std::string_view rest = expression; !rest.empty();) {
    const std::string_view item = FirstItem(rest, in_class);
    rest.remove_prefix(item.size());
    const std::string_view translated = TranslateItem(item, rest, in_class);
    if (translated.empty()) {
      return absl::InvalidArgumentError(
          fmt::format("regular expression \"{}\": \"{}\" at byte {} is not supported", expression,
                      item, expression.size() - rest.size() - item.size()));
    }
    if (!in_class && item[0] == '[')
      in_class = true;
    else if (item == "]")
      in_class = false;
    result += translated;
  }
  return result;
}

}  // namespace

absl::StatusOr<Pattern> Pattern::Literal(std::string text) {
  if (text.empty()) return absl::InvalidArgumentError("the pattern is an empty string");
  return Pattern(std::move(text), nullptr);
}

absl::StatusOr<Pattern> Pattern::Regex(std::string_view expression) {
  ASSIGN_OR_RETURN(const std::string translated, ToPcre2(expression));
  std::unique_ptr<pcre2_compile_context, Free> context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_max_pattern_length(context.get(), kMaxExpressionBytes);
  int error = 0;
  size_t error_offset = 0;
  pcre2_code* const code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                    &error_offset, context.get());
  if (code == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("regular expression \"{}\": {}", expression, Pcre2Message(error)));
  }
  // Where the system allows no code at run time, pcre2_match interprets.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return Pattern(std::string(expression), std::shared_ptr<const pcre2_code>(code, [](auto* last) {
                   pcre2_code_free(const_cast<pcre2_code*>(last));
                 }));
}

absl::StatusOr<Pattern> Pattern::FromJson(const nlohmann::json& component) {
  const auto pattern = component.find("pattern");
  if (pattern != component.end() && pattern->is_object() && pattern->size() == 1 &&
      pattern->front().is_string()) {
    const std::string source = pattern->front().get<std::string>();
    if (pattern->contains("String")) return Literal(source);
    if (pattern->contains("Regex")) return Regex(source);
  }
  return absl::InvalidArgumentError(R"(pattern should be {"String": "..."} or {"Regex": "..."})");
}

absl::StatusOr<Pattern::Range> Pattern::Find(std::string_view text, size_t offset) const {
  if (code_ == nullptr) {
    const size_t begin = text.find(source_, offset);
    return Range{begin, begin + source_.size()};
  }
  static thread_local const MatchSpace space;
  const int result =
      pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), offset,
                  PCRE2_NO_UTF_CHECK, space.data.get(), space.context.get());
  if (result == PCRE2_ERROR_NOMATCH) return Range{text.npos, text.npos};
  if (result < 0) {
    return absl::InvalidArgumentError(
        fmt::format("the text takes too long to split by the regular expression \"{}\": {}",
                    source_, Pcre2Message(result)));
  }
  const size_t* const range = pcre2_get_ovector_pointer(space.data.get());
  return Range{range[0], range[1]};
}

absl::Status Pattern::Split(std::string_view text, Visit visit) const {
  size_t done = 0;  // up to here `text` has been visited
  bool any_match = false;
  for (size_t offset = 0; offset <= text.size();) {
    ASSIGN_OR_RETURN(const Range match, Find(text, offset));
    if (match.begin == text.npos) break;
    if (any_match && match.end == match.begin && match.end == done) {
      // An empty match right behind another does not count.
      offset += done < text.size() ? Utf8Length(text.substr(offset)) : 1;
      continue;
    }
    if (match.begin > done) RETURN_IF_ERROR(visit(text.substr(done, match.begin - done), false));
    RETURN_IF_ERROR(visit(text.substr(match.begin, match.end - match.begin), true));
    any_match = true;
    done = offset = match.end;
  }
  return done < text.size() ? visit(text.substr(done), false) : absl::OkStatus();
}

absl::Status Pattern::Replace(std::string_view content, std::string* text) const {
  std::string result;
  result.reserve(text->size());
  RETURN_IF_ERROR(Split(*text, [&](std::string_view part, bool is_match) {
    result += is_match ? content : part;
    return absl::OkStatus();
  }));
  *text = std::move(result);
  return absl::OkStatus();
}

}  // namespace everlong
