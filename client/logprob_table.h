// Log probabilities for people.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "everlong/v1/inference.pb.h"

namespace everlong {

using PositionLogprobs = google::protobuf::RepeatedPtrField<v1::PositionLogprobs>;

// Under `title`, a line for each position, of which the first is `first_position`: token id, log
// probability and text of the token that is there, then of the most likely ones. `token_text` gives
// a token's text.
std::string LogprobTable(std::string_view title, const PositionLogprobs& positions,
                         int64_t first_position,
                         const std::function<std::string(int32_t)>& token_text);

// In double quotes, with control characters, quotes and backslashes escaped as in C.
std::string Quote(std::string_view text);

}  // namespace everlong
