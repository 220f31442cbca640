#include "engine/chat_template.h"
namespace everlong {
absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view) {
  return absl::UnimplementedError("chat templates");
}
}  // namespace everlong
