// What a client sent, checked and in the engine's terms. Errors name the field of the public proto.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "everlong/v1/inference.pb.h"
#include "server/served_model.h"

namespace everlong {

// NOT_FOUND unless `name` is empty or the served model's.
absl::Status CheckModel(const std::string& name, const ServedModel& served);

absl::StatusOr<std::vector<int32_t>> TextTokens(const std::string& text, bool add_special,
                                                const ServedModel& served);

// The messages as the model's template writes them. FAILED_PRECONDITION where it has none.
absl::StatusOr<std::vector<int32_t>> ChatTokens(const v1::Chat& chat, const ServedModel& served);

// Checks what the engine's ValidateRequest cannot see: absent fields, limits on counts. The
// deadline stays the caller's.
absl::StatusOr<Request> ToRequest(const v1::GenerateRequest& proto, const ServedModel& served);

// An error of Engine::Submit with the field called as in `proto`, e.g. sampling.top_p.
absl::Status NameProtoField(const absl::Status& status, const v1::GenerateRequest& proto);

}  // namespace everlong
