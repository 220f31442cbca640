// Small tokenizer.json documents for tests to use or to damage.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer.h"
#include "nlohmann/json.hpp"

namespace everlong {

// Byte-level: ids 0 to 255 are the bytes, in the order of their values, then follow the results of
// `merges`, written in GPT-2's alphabet, and then <|end|> and <|user|>, both special.
nlohmann::json ByteLevelJson(const std::vector<std::pair<std::string, std::string>>& merges);

// SentencePiece-style as Llama 2's: 0 <unk>, 1 <s> (put before a text), 2 </s>, 3 to 258 the bytes,
// then the pieces "_", "a", "b", "_a", "ab" and "_ab", where _ is U+2581.
nlohmann::json SentencePieceJson();

nlohmann::json AddedTokenJson(int id, const std::string& content, bool special);

// Both abort where the file is not accepted.
std::unique_ptr<Tokenizer> MakeTokenizer(const nlohmann::json& json);
std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text,
                            bool add_special = false, bool parse_special = false);

}  // namespace everlong
