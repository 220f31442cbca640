#include "engine/tokenizer/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

namespace everlong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Pair = std::pair<std::string, std::string>;

absl::StatusOr<std::unique_ptr<Bpe>> Make(const std::vector<std::string>& tokens,
                                          const std::vector<Pair>& merges, BpeOptions options) {
  StringTable token_table, merge_table;
  std::vector<int32_t> ids;
  for (const std::string& token : tokens) {
    ids.push_back(static_cast<int32_t>(ids.size()));
    token_table.Append(token);
  }
  for (const auto& [left, right] : merges) {
    merge_table.Append(left);
    merge_table.Append(right);
  }
  return Bpe::Create(std::move(token_table), ids, merge_table, std::move(options));
}

std::vector<int32_t> Encode(const Bpe& bpe, std::string_view word) {
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  bpe.Encode(word, &scratch, &ids);
  return ids;
}

// The definition: again and again the neighbours whose merge has the lowest rank, leftmost first.
std::vector<std::string> MergeByDefinition(std::vector<std::string> symbols,
                                           const std::map<Pair, int>& ranks) {
  while (true) {
    size_t best = symbols.size();
    int best_rank = static_cast<int>(ranks.size());
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto rank = ranks.find({symbols[i], symbols[i + 1]});
      if (rank == ranks.end() || rank->second >= best_rank) continue;
      best = i;
      best_rank = rank->second;
    }
    if (best == symbols.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<int64_t>(best) + 1);
  }
}

// Merges in an order that no training gives, words around and far above the length at which the
// algorithm changes.
TEST(Bpe, RandomWordsEqualTheDefinition) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const std::string letters = round % 2 == 0 ? "abcd" : "ab";
    std::vector<std::string> tokens;
    for (const char letter : letters) tokens.emplace_back(1, letter);
    std::vector<Pair> merges;
    std::map<Pair, int> ranks;
    for (int i = 0; i < 40; ++i) {
      const Pair merge(tokens[random() % tokens.size()], tokens[random() % tokens.size()]);
      const std::string result = merge.first + merge.second;
      if (ranks.contains(merge) || result.size() > 12) continue;
      merges.push_back(merge);
      ranks[merge] = 0;
      if (std::find(tokens.begin(), tokens.end(), result) == tokens.end()) tokens.push_back(result);
    }
    std::shuffle(merges.begin(), merges.end(), random);
    for (size_t i = 0; i < merges.size(); ++i) ranks[merges[i]] = static_cast<int>(i);
    const auto bpe = Make(tokens, merges, {.byte_level = round % 3 == 0});
    ASSERT_TRUE(bpe.ok()) << bpe.status();
    for (const size_t length : {1, 2, 7, 31, 32, 33, 40, 90, 300}) {
      std::vector<std::string> symbols;
      std::string word;
      for (size_t i = 0; i < length; ++i) word += letters[random() % letters.size()];
      for (const char letter : word) symbols.emplace_back(1, letter);
      std::vector<std::string> encoded;
      for (const int32_t id : Encode(**bpe, word)) encoded.push_back(tokens[id]);
      ASSERT_EQ(encoded, MergeByDefinition(symbols, ranks)) << word;
      ASSERT_EQ(Encode(**bpe, word), Encode(**bpe, word));
    }
  }
}

TEST(Bpe, WordsThatAreTokensAreMergedAllTheSame) {
  const std::vector<std::string> tokens = {"a", "b", "c", "ab", "abc"};
  const std::vector<Pair> merges = {{"a", "b"}};
  const auto merged = *Make(tokens, merges, {});
  EXPECT_THAT(Encode(*merged, "abc"), ElementsAre(3, 2));
  EXPECT_THAT(Encode(*merged, "ab"), ElementsAre(3));
  const auto whole = *Make(tokens, merges, {.ignore_merges = true});
  EXPECT_THAT(Encode(*whole, "abc"), ElementsAre(4));
  whole->Hide(4);
  EXPECT_THAT(Encode(*whole, "abc"), ElementsAre(3, 2));
  EXPECT_THAT(Encode(*whole, "ab"), ElementsAre(3));
}

TEST(Bpe, UnknownSymbolsVanishOrBecomeTheUnknownToken) {
  const std::vector<std::string> tokens = {"<unk>", "a", "b"};
  EXPECT_THAT(Encode(**Make(tokens, {}, {}), "axyb"), ElementsAre(1, 2));
  EXPECT_THAT(Encode(**Make(tokens, {}, {.unk_token = "<unk>"}), "axyb"), ElementsAre(1, 0, 0, 2));
  EXPECT_THAT(Encode(**Make(tokens, {}, {.fuse_unk = true, .unk_token = "<unk>"}), "axybz"),
              ElementsAre(1, 0, 2, 0));
}

TEST(Bpe, CodePointsWithoutTokenFallBackToBytes) {
  const std::vector<std::string> tokens = {"<unk>", "<0xC3>", "<0xA9>", "a", "\u00FC"};
  const auto bpe =
      *Make(tokens, {}, {.byte_fallback = true, .fuse_unk = true, .unk_token = "<unk>"});
  EXPECT_THAT(Encode(*bpe, "a\u00E9\u00FC"), ElementsAre(3, 1, 2, 4));
  // One of its bytes has no token.
  EXPECT_THAT(Encode(*bpe, "\u00E8"), ElementsAre(0));
}

TEST(Bpe, TokensAreFoundByContent) {
  const auto bpe =
      *Make({"\u0120", "\u00C3", "\u00A9", "\u00C3\u00A9", "\u2581x"}, {}, {.byte_level = true});
  EXPECT_EQ(bpe->Find("\u00C3\u00A9"), 3);
  EXPECT_EQ(bpe->Find("\u2581x"), 4);
  EXPECT_EQ(bpe->Find("x"), -1);
  EXPECT_EQ(bpe->Find(""), -1);
  EXPECT_EQ(bpe->Content(4), "\u2581x");
  EXPECT_EQ(bpe->vocab_size(), 5);
}

TEST(Bpe, IdsMayHaveGaps) {
  StringTable tokens;
  tokens.Append("a");
  tokens.Append("b");
  const auto bpe = *Bpe::Create(std::move(tokens), {7, 2}, {}, {});
  EXPECT_EQ(bpe->vocab_size(), 8);
  EXPECT_EQ(bpe->Content(3), "");
  EXPECT_THAT(Encode(*bpe, "ab"), ElementsAre(7, 2));
}

std::string ErrorOf(const std::vector<std::string>& tokens, const std::vector<Pair>& merges) {
  const auto bpe = Make(tokens, merges, {});
  return bpe.ok() ? "" : std::string(bpe.status().message());
}

TEST(Bpe, ContradictionsAreNamed) {
  EXPECT_THAT(ErrorOf({"a", "b", "a"}, {}), HasSubstr("token \"a\" appears twice"));
  EXPECT_THAT(ErrorOf({"a", "b"}, {{"a", "b"}}), HasSubstr("needs token \"ab\""));
  EXPECT_THAT(ErrorOf({"a", "ab"}, {{"a", "b"}}), HasSubstr("needs token \"b\""));
  EXPECT_THAT(ErrorOf({"a", ""}, {{"a", ""}}), HasSubstr("merge 0 has an empty part"));
  StringTable tokens;
  tokens.Append("a");
  tokens.Append("b");
  EXPECT_THAT(std::string(Bpe::Create(std::move(tokens), {3, 3}, {}, {}).status().message()),
              HasSubstr("tokens \"a\" and \"b\" both have id 3"));
}

}  // namespace
}  // namespace everlong
