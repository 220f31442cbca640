#include "engine/tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/status.h"

namespace everlong {
namespace {

constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();

// Up to here the quadratic search of MergeShort beats a heap.
constexpr size_t kShortWord = 32;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

std::string_view LastSymbol(std::string_view text, bool byte_level) {
  size_t begin = text.size() - 1;
  while (!byte_level && begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Bpe>> Bpe::Create(StringTable tokens,
                                                 const std::vector<int32_t>& ids,
                                                 const StringTable& merges, BpeOptions options) {
  std::unique_ptr<Bpe> bpe(new Bpe(std::move(tokens), std::move(options)));
  RETURN_IF_ERROR(bpe->AddIds(ids));
  RETURN_IF_ERROR(bpe->AddWords(ids));
  bpe->AddSymbols();
  RETURN_IF_ERROR(bpe->AddMerges(merges));
  return bpe;
}

absl::Status Bpe::AddIds(const std::vector<int32_t>& ids) {
  const int32_t max_id = ids.empty() ? -1 : *std::max_element(ids.begin(), ids.end());
  index_of_.assign(max_id + 1, -1);
  for (size_t i = 0; i < ids.size(); ++i) {
    int32_t& index = index_of_[ids[i]];
    if (index >= 0) {
      return absl::InvalidArgumentError(fmt::format("tokens \"{}\" and \"{}\" both have id {}",
                                                    contents_[index], contents_[i], ids[i]));
    }
    index = static_cast<int32_t>(i);
  }
  whole_ = std::make_unique<std::atomic<Whole>[]>(index_of_.size());
  for (size_t id = 0; options_.ignore_merges && id < index_of_.size(); ++id) {
    whole_[id] = Whole::kYes;
  }
  return absl::OkStatus();
}

absl::Status Bpe::AddWords(const std::vector<int32_t>& ids) {
  word_ids_.reserve(ids.size());
  if (options_.byte_level) {
    for (size_t i = 0; i < ids.size(); ++i) {
      words_.Append(BytesFromAlphabet(contents_[i]).value_or(""));
    }
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string_view word = options_.byte_level ? words_[i] : contents_[i];
    const bool reachable = !word.empty();
    IdMap& map = reachable ? word_ids_ : other_ids_;
    if (!map.emplace(reachable ? word : contents_[i], ids[i]).second) {
      return absl::InvalidArgumentError(fmt::format("token \"{}\" appears twice", contents_[i]));
    }
    max_word_bytes_ = std::max(max_word_bytes_, word.size());
  }
  return absl::OkStatus();
}

void Bpe::AddSymbols() {
  for (int byte = 0; byte < 256; ++byte) {
    const char symbol = static_cast<char>(byte);
    symbol_ids_[byte] = FindWord({&symbol, 1});
    fallback_ids_[byte] = options_.byte_fallback ? Find(fmt::format("<0x{:02X}>", byte)) : -1;
  }
  unk_id_ = options_.unk_token.empty() ? -1 : Find(options_.unk_token);
}

absl::Status Bpe::AddMerges(const StringTable& merges) {
  merges_.reserve(merges.size() / 2);
  std::string result;
  for (size_t i = 0; i + 1 < merges.size(); i += 2) {
    const std::string_view left = merges[i], right = merges[i + 1];
    if (left.empty() || right.empty()) {
      return absl::InvalidArgumentError(fmt::format("merge {} has an empty part", i / 2));
    }
    result.assign(left).append(right);
    const int32_t left_id = Find(left), right_id = Find(right), id = Find(result);
    if (left_id < 0 || right_id < 0 || id < 0) {
      return absl::InvalidArgumentError(fmt::format(
          "merge {} (\"{}\", \"{}\") needs token \"{}\", which is not in the vocabulary", i / 2,
          left, right,
          left_id < 0    ? left
          : right_id < 0 ? right
                         : result));
    }
    // Of merges that repeat the last one counts, as in Hugging Face tokenizers.
    merges_[PairKey(left_id, right_id)] = {static_cast<uint32_t>(i / 2), id};
    AddJoint(left_id, right_id);
  }
  return absl::OkStatus();
}

void Bpe::AddJoint(int32_t left, int32_t right) {
  const auto word_of = [this](int32_t id) {
    return options_.byte_level ? words_[index_of_[id]] : contents_[index_of_[id]];
  };
  const std::string_view left_word = word_of(left), right_word = word_of(right);
  // Byte and unknown tokens are symbols that their own text does not show.
  const auto is_opaque = [this](int32_t id, std::string_view word) {
    return word.empty() || id == unk_id_ ||
           std::find(fallback_ids_.begin(), fallback_ids_.end(), id) != fallback_ids_.end();
  };
  if (is_opaque(left, left_word) || is_opaque(right, right_word)) {
    can_cut_ = false;
    return;
  }
  joints_.insert(PairKey(SymbolId(LastSymbol(left_word, options_.byte_level)),
                         SymbolId(right_word.substr(0, SymbolLength(right_word)))));
}

void Bpe::Hide(int32_t id) {
  if (id < vocab_size()) whole_[id] = Whole::kNo;
}

int32_t Bpe::Find(std::string_view content) const {
  if (options_.byte_level) {
    if (const auto bytes = BytesFromAlphabet(content); bytes && !bytes->empty()) {
      return FindWord(*bytes);
    }
    const auto found = other_ids_.find(content);
    return found == other_ids_.end() ? -1 : found->second;
  }
  return FindWord(content);
}

std::string_view Bpe::Content(int32_t id) const {
  return id >= vocab_size() || index_of_[id] < 0 ? std::string_view() : contents_[index_of_[id]];
}

int32_t Bpe::FindWord(std::string_view word) const {
  const auto found = word_ids_.find(word);
  return found == word_ids_.end() ? -1 : found->second;
}

size_t Bpe::SymbolLength(std::string_view text) const {
  return options_.byte_level ? 1 : Utf8Length(text);
}

int32_t Bpe::SymbolId(std::string_view symbol) const {
  return symbol.size() == 1 ? symbol_ids_[static_cast<uint8_t>(symbol[0])] : FindWord(symbol);
}

bool Bpe::AppendFallback(std::string_view symbol, std::vector<int32_t>* symbols) const {
  for (const char byte : symbol) {
    if (fallback_ids_[static_cast<uint8_t>(byte)] < 0) return false;
  }
  for (const char byte : symbol) symbols->push_back(fallback_ids_[static_cast<uint8_t>(byte)]);
  return true;
}

void Bpe::AppendSymbols(std::string_view word, std::vector<int32_t>* symbols) const {
  // An unknown symbol is written when the next one shows that it is not fused; bytes of the
  // fallback in between overtake it, as in Hugging Face tokenizers.
  bool pending_unk = false;
  while (!word.empty()) {
    const std::string_view symbol = word.substr(0, SymbolLength(word));
    word.remove_prefix(symbol.size());
    const int32_t id = SymbolId(symbol);
    if (id < 0 && AppendFallback(symbol, symbols)) continue;
    if (id < 0 && unk_id_ < 0) continue;
    if (pending_unk && (id >= 0 || !options_.fuse_unk)) symbols->push_back(unk_id_);
    pending_unk = id < 0;
    if (id >= 0) symbols->push_back(id);
  }
  if (pending_unk) symbols->push_back(unk_id_);
}

Bpe::Merge Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? Merge{kNoMerge, -1} : found->second;
}

bool Bpe::Joins(int32_t left, int32_t right) const {
  return joints_.contains(PairKey(left, right));
}

void Bpe::Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const {
  const int32_t whole = word.size() <= max_word_bytes_ ? FindWord(word) : -1;
  if (whole >= 0 && whole_[whole].load(std::memory_order_relaxed) == Whole::kYes) {
    ids->push_back(whole);
    return;
  }
  const size_t begin = ids->size();
  scratch->symbols.clear();
  AppendSymbols(word, &scratch->symbols);
  MergeAll(scratch->symbols, scratch, ids);
  if (whole >= 0) {
    const bool is_whole = ids->size() == begin + 1 && ids->back() == whole;
    whole_[whole].store(is_whole ? Whole::kYes : Whole::kNo, std::memory_order_relaxed);
  }
}

void Bpe::MergeAll(std::span<int32_t> symbols, Scratch* scratch, std::vector<int32_t>* ids) const {
  while (!symbols.empty()) {
    size_t length = 1;
    if (symbols.size() <= kShortWord || !can_cut_) length = symbols.size();
    while (length < symbols.size() && Joins(symbols[length - 1], symbols[length])) ++length;
    if (length <= kShortWord) {
      MergeShort(symbols.first(length), scratch, ids);
    } else {
      MergeLong(symbols.first(length), scratch, ids);
    }
    symbols = symbols.subspan(length);
  }
}

void Bpe::MergeShort(std::span<int32_t> symbols, Scratch* scratch,
                     std::vector<int32_t>* ids) const {
  std::vector<Merge>& merges = scratch->merges;  // [i]: of symbols i and i + 1
  merges.clear();
  for (size_t i = 1; i < symbols.size(); ++i) {
    merges.push_back(FindMerge(symbols[i - 1], symbols[i]));
  }
  const auto by_rank = [](const Merge& a, const Merge& b) { return a.rank < b.rank; };
  while (!merges.empty()) {
    const auto best = std::min_element(merges.begin(), merges.end(), by_rank);
    if (best->rank == kNoMerge) break;
    const size_t i = best - merges.begin();
    symbols[i] = best->id;
    std::copy(symbols.begin() + i + 2, symbols.end(), symbols.begin() + i + 1);
    symbols = symbols.first(symbols.size() - 1);
    merges.erase(best);
    if (i > 0) merges[i - 1] = FindMerge(symbols[i - 1], symbols[i]);
    if (i < merges.size()) merges[i] = FindMerge(symbols[i], symbols[i + 1]);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.end());
}

// A list of symbols linked in both directions and a heap of the merges of neighbours, lowest rank
// and then leftmost first. Entries of the heap whose symbols have merged otherwise meanwhile are
// skipped.
void Bpe::MergeLong(std::span<int32_t> symbols, Scratch* scratch, std::vector<int32_t>* ids) const {
  constexpr int32_t kGone = -1;
  const int32_t size = static_cast<int32_t>(symbols.size());
  std::vector<int32_t>&previous = scratch->previous, &next = scratch->next;
  std::vector<uint64_t>& heap = scratch->heap;
  previous.resize(size);
  next.resize(size);
  heap.clear();
  const auto push = [&](int32_t left) {
    const Merge merge = FindMerge(symbols[left], symbols[next[left]]);
    if (merge.rank != kNoMerge) heap.push_back(uint64_t{merge.rank} << 32 | left);
    return merge.rank != kNoMerge;
  };
  for (int32_t i = 0; i < size; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1;
    if (i + 1 < size) push(i);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    const auto left = static_cast<int32_t>(heap.back() & 0xFFFFFFFF);
    heap.pop_back();
    const int32_t right = next[left];
    if (symbols[left] == kGone || right == size) continue;
    const Merge merge = FindMerge(symbols[left], symbols[right]);
    if (merge.rank != rank) continue;
    symbols[left] = merge.id;
    symbols[right] = kGone;
    next[left] = next[right];
    if (next[left] < size) previous[next[left]] = left;
    for (const int32_t i : {previous[left], left}) {
      if (i >= 0 && next[i] < size && push(i)) {
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
      }
    }
  }
  for (int32_t i = 0; i < size; i = next[i]) ids->push_back(symbols[i]);
}

}  // namespace everlong
