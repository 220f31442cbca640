// Byte pair encoding: words to token ids by merging neighbours in order of rank, as Hugging Face
// tokenizers does it. Works on bytes (GPT-2's byte-level form) or on code points with an optional
// fallback to byte tokens (SentencePiece's form).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "engine/text.h"

namespace everlong {

struct BpeOptions {
  bool byte_level = false;     // words are bytes, the vocabulary is written in GPT-2's alphabet
  bool byte_fallback = false;  // code points without a token become tokens <0x00> ... <0xFF>
  bool fuse_unk = false;       // a run of unknown symbols is one unknown token
  bool ignore_merges = false;  // a word that is a token is this token, whatever the merges say
  std::string unk_token;       // empty or not in the vocabulary: unknown symbols vanish
};

// Immutable but for a cache of atomics; Encode may be called from any thread with its own scratch.
class Bpe {
 public:
  // `ids[i]`, in [0, kMaxVocabSize), is the id of `tokens[i]`; `merges` alternates left and right
  // parts. INVALID_ARGUMENT for ids or tokens that repeat and for merges whose parts or result are
  // not in the vocabulary.
  static absl::StatusOr<std::unique_ptr<Bpe>> Create(StringTable tokens,
                                                     const std::vector<int32_t>& ids,
                                                     const StringTable& merges, BpeOptions options);

  struct Merge {
    uint32_t rank;  // kNoMerge where two symbols do not merge
    int32_t id;     // of the token that results
  };
  struct Scratch {
    std::vector<int32_t> symbols;
    std::vector<Merge> merges;
    std::vector<int32_t> previous, next;
    std::vector<uint64_t> heap;
  };

  // Appends the tokens of `word`. Takes O(n log n) for n symbols.
  void Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

  // Words never become this token whole, only where merges make it. Not while others use it.
  void Hide(int32_t id);

  // Largest id + 1.
  int64_t vocab_size() const { return static_cast<int64_t>(index_of_.size()); }

  // Id of the token `content`, as the vocabulary writes it, or -1.
  int32_t Find(std::string_view content) const;

  // How the vocabulary writes a token; empty for ids that it does not have.
  std::string_view Content(int32_t id) const;

 private:
  using IdMap = absl::flat_hash_map<std::string_view, int32_t, std::hash<std::string_view>>;
  enum class Whole : uint8_t { kUnknown, kYes, kNo };

  Bpe(StringTable tokens, BpeOptions options)
      : options_(std::move(options)), contents_(std::move(tokens)) {}

  absl::Status AddIds(const std::vector<int32_t>& ids);
  absl::Status AddWords(const std::vector<int32_t>& ids);
  absl::Status AddMerges(const StringTable& merges);
  void AddSymbols();
  void AddJoint(int32_t left, int32_t right);

  int32_t FindWord(std::string_view word) const;
  void AppendSymbols(std::string_view word, std::vector<int32_t>* symbols) const;
  size_t SymbolLength(std::string_view text) const;
  int32_t SymbolId(std::string_view symbol) const;
  bool AppendFallback(std::string_view symbol, std::vector<int32_t>* symbols) const;
  bool Joins(int32_t left, int32_t right) const;
  Merge FindMerge(int32_t left, int32_t right) const;
  void MergeAll(std::span<int32_t> symbols, Scratch* scratch, std::vector<int32_t>* ids) const;
  void MergeShort(std::span<int32_t> symbols, Scratch* scratch, std::vector<int32_t>* ids) const;
  void MergeLong(std::span<int32_t> symbols, Scratch* scratch, std::vector<int32_t>* ids) const;

  BpeOptions options_;
  StringTable contents_;           // what the vocabulary writes
  std::vector<int32_t> index_of_;  // id -> index into contents_, -1 for gaps
  StringTable words_;  // byte_level: the bytes of each content, empty outside the alphabet
  IdMap word_ids_;     // by what Encode sees: bytes where byte_level, else the content
  IdMap other_ids_;    // byte_level: contents outside the alphabet, which no text reaches
  size_t max_word_bytes_ = 0;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by pair of ids
  std::array<int32_t, 256> symbol_ids_{};        // of one-byte symbols, -1 where there is none
  std::array<int32_t, 256> fallback_ids_{};      // of <0xXX>, -1 where there is none
  int32_t unk_id_ = -1;
  // Pairs of symbols that some merge brings together: the last of its left and the first of its
  // right part. Between all others a long word can be cut without changing the result.
  absl::flat_hash_set<uint64_t> joints_;
  bool can_cut_ = true;
  // Per id, whether the merges make this token of its own text. Found out when first needed.
  std::unique_ptr<std::atomic<Whole>[]> whole_;
};

}  // namespace everlong
