// Two macros around absl::Status. Environment and caller errors travel as absl::Status; messages
// name the field, the value and the limit.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define EVERLONG_CONCAT_INNER(a, b) a##b
#define EVERLONG_CONCAT(a, b) EVERLONG_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                         \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

// NOLINTBEGIN(bugprone-macro-parentheses): lhs may be a declaration.
#define ASSIGN_OR_RETURN(lhs, expression) \
  ASSIGN_OR_RETURN_INNER(EVERLONG_CONCAT(status_or_, __LINE__), lhs, expression)
#define ASSIGN_OR_RETURN_INNER(result, lhs, expression) \
  auto result = (expression);                           \
  if (!result.ok()) return result.status();             \
  lhs = std::move(result).value()
// NOLINTEND(bugprone-macro-parentheses)

namespace everlong {

// Abseil may have a string_view type of its own.
inline std::string_view Message(const absl::Status& status) {
  return {status.message().data(), status.message().size()};
}

// The same error with the file or tensor in front that it is about.
inline absl::Status Annotate(std::string_view where, const absl::Status& status) {
  return {status.code(), std::string(where).append(": ").append(Message(status))};
}

}  // namespace everlong
