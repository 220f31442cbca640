#include "engine/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "engine/json_object.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kMaxNameBytes = 1 << 16;  // of keys and tensors
constexpr uint32_t kMaxDimensions = 4;
constexpr int64_t kMaxDimension = int64_t{1} << 40;  // bytes of a row must not overflow
constexpr int kMaxArrayDepth = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;

struct TensorType {
  uint32_t id;
  std::string_view name;
  std::optional<DType> dtype;
};

// As ggml numbers them. Types 4, 5, 31 to 33 and 36 to 38 are no longer in use.
constexpr TensorType kTensorTypes[] = {
    {0, "F32", DType::kF32},      {1, "F16", DType::kF16},       {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", DType::kQ4_1},    {6, "Q5_0", DType::kQ5_0},     {7, "Q5_1", DType::kQ5_1},
    {8, "Q8_0", DType::kQ8_0},    {9, "Q8_1", std::nullopt},     {10, "Q2_K", std::nullopt},
    {11, "Q3_K", std::nullopt},   {12, "Q4_K", DType::kQ4K},     {13, "Q5_K", DType::kQ5K},
    {14, "Q6_K", DType::kQ6K},    {15, "Q8_K", std::nullopt},    {16, "IQ2_XXS", std::nullopt},
    {17, "IQ2_XS", std::nullopt}, {18, "IQ3_XXS", std::nullopt}, {19, "IQ1_S", std::nullopt},
    {20, "IQ4_NL", std::nullopt}, {21, "IQ3_S", std::nullopt},   {22, "IQ2_S", std::nullopt},
    {23, "IQ4_XS", std::nullopt}, {24, "I8", std::nullopt},      {25, "I16", std::nullopt},
    {26, "I32", std::nullopt},    {27, "I64", std::nullopt},     {28, "F64", std::nullopt},
    {29, "IQ1_M", std::nullopt},  {30, "BF16", DType::kBF16},    {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},  {39, "MXFP4", std::nullopt},
};

// 0: not of a fixed size, or none that there is.
constexpr uint64_t SizeOf(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

template <typename T>
T Load(std::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

// Calls visit(value) with the number, of `type`'s C++ type, at the beginning of `bytes`.
template <typename Visit>
auto VisitNumber(GgufType type, std::string_view bytes, Visit visit) {
  switch (type) {
    case GgufType::kInt8:
      return visit(Load<int8_t>(bytes));
    case GgufType::kUint16:
      return visit(Load<uint16_t>(bytes));
    case GgufType::kInt16:
      return visit(Load<int16_t>(bytes));
    case GgufType::kUint32:
      return visit(Load<uint32_t>(bytes));
    case GgufType::kInt32:
      return visit(Load<int32_t>(bytes));
    case GgufType::kFloat32:
      return visit(Load<float>(bytes));
    case GgufType::kUint64:
      return visit(Load<uint64_t>(bytes));
    case GgufType::kInt64:
      return visit(Load<int64_t>(bytes));
    case GgufType::kFloat64:
      return visit(Load<double>(bytes));
    default:
      return visit(Load<uint8_t>(bytes));
  }
}

// Reads a file from front to back.
class Reader {
 public:
  explicit Reader(std::string_view file) : file_(file), rest_(file) {}

  absl::StatusOr<GgufFile> Read();

 private:
  // Where a tensor says that it begins, from the end of the table on.
  struct Placed {
    uint64_t offset;
    std::string_view name;
    GgufTensor* tensor;
  };

  absl::StatusOr<std::string_view> Take(uint64_t bytes);
  template <typename T>
  absl::StatusOr<T> Number();
  absl::StatusOr<std::string_view> String(uint64_t max_bytes);
  absl::StatusOr<std::string> Name(std::string_view kind);

  absl::Status ReadHeader();
  absl::Status ReadValue(const std::string& key);
  absl::StatusOr<json> ReadScalar(GgufType type);
  absl::StatusOr<GgufArray> ReadArray(int depth);
  absl::Status SkipElements(const GgufArray& array, int depth);
  absl::Status ReadAlignment();
  absl::Status ReadTensor(GgufTensor& tensor, uint64_t& offset);
  absl::Status PlaceTensors();
  absl::Status PlaceTensor(const Placed& placed, std::string_view data);
  absl::Status CheckOverlap(std::string_view data);

  std::string_view file_;
  std::string_view rest_;
  uint64_t num_tensors_ = 0;
  uint64_t num_values_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  std::vector<Placed> placed_;
  GgufFile result_;
};

absl::StatusOr<std::string_view> Reader::Take(uint64_t bytes) {
  if (bytes > rest_.size()) {
    return absl::InvalidArgumentError(
        fmt::format("{} bytes wanted at byte {}, but only {} are left: the file is cut short or "
                    "damaged",
                    bytes, file_.size() - rest_.size(), rest_.size()));
  }
  const std::string_view taken = rest_.substr(0, bytes);
  rest_.remove_prefix(bytes);
  return taken;
}

template <typename T>
absl::StatusOr<T> Reader::Number() {
  ASSIGN_OR_RETURN(const std::string_view bytes, Take(sizeof(T)));
  return Load<T>(bytes);
}

absl::StatusOr<std::string_view> Reader::String(uint64_t max_bytes) {
  ASSIGN_OR_RETURN(const auto length, Number<uint64_t>());
  if (length > max_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("a name of {} bytes exceeds the limit of {}", length, max_bytes));
  }
  return Take(length);
}

absl::StatusOr<std::string> Reader::Name(std::string_view kind) {
  auto name = String(kMaxNameBytes);
  if (!name.ok()) return Annotate(kind, name.status());
  return std::string(*name);
}

absl::Status Reader::ReadHeader() {
  if (!rest_.starts_with(kMagic)) return absl::InvalidArgumentError("not a GGUF file");
  rest_.remove_prefix(kMagic.size());
  ASSIGN_OR_RETURN(const auto version, Number<uint32_t>());
  if (version != 2 && version != 3) {
    const bool swapped = version != 0 && (version & 0xFFFF) == 0;
    return absl::InvalidArgumentError(
        swapped ? "the file is big-endian; only little-endian ones are supported"
                : fmt::format("GGUF version {} is not supported; 2 and 3 are", version));
  }
  ASSIGN_OR_RETURN(num_tensors_, Number<uint64_t>());
  ASSIGN_OR_RETURN(num_values_, Number<uint64_t>());
  return absl::OkStatus();
}

absl::StatusOr<json> Reader::ReadScalar(GgufType type) {
  if (type == GgufType::kString) {
    ASSIGN_OR_RETURN(const std::string_view text, String(rest_.size()));
    return json(text);
  }
  const uint64_t size = SizeOf(type);
  if (size == 0) {
    return absl::InvalidArgumentError(
        fmt::format("{} is not the number of a type", static_cast<uint32_t>(type)));
  }
  ASSIGN_OR_RETURN(const std::string_view bytes, Take(size));
  if (type == GgufType::kBool) return json(bytes[0] != 0);
  return VisitNumber(type, bytes, [](auto number) { return json(number); });
}

// The elements are looked at where that takes to find their end.
absl::Status Reader::SkipElements(const GgufArray& array, int depth) {
  if (const uint64_t size = SizeOf(array.type); size != 0) {
    if (array.size > rest_.size() / size) {
      return absl::InvalidArgumentError(fmt::format(
          "{} elements of {} bytes exceed the {} that are left", array.size, size, rest_.size()));
    }
    return Take(array.size * size).status();
  }
  if (array.type != GgufType::kString && array.type != GgufType::kArray) {
    return absl::InvalidArgumentError(
        fmt::format("{} is not the number of a type", static_cast<uint32_t>(array.type)));
  }
  for (uint64_t i = 0; i < array.size; ++i) {
    RETURN_IF_ERROR(array.type == GgufType::kString ? String(rest_.size()).status()
                                                    : ReadArray(depth + 1).status());
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufArray> Reader::ReadArray(int depth) {
  if (depth > kMaxArrayDepth) {
    return absl::InvalidArgumentError(
        fmt::format("arrays are nested deeper than {} levels", kMaxArrayDepth));
  }
  GgufArray array;
  ASSIGN_OR_RETURN(const auto type, Number<uint32_t>());
  array.type = static_cast<GgufType>(type);
  ASSIGN_OR_RETURN(array.size, Number<uint64_t>());
  const std::string_view elements = rest_;
  RETURN_IF_ERROR(SkipElements(array, depth));
  array.bytes = elements.substr(0, elements.size() - rest_.size());
  return array;
}

absl::Status Reader::ReadValue(const std::string& key) {
  if (result_.scalars.contains(key) || result_.arrays.contains(key)) {
    return absl::InvalidArgumentError("it is there twice");
  }
  ASSIGN_OR_RETURN(const auto type, Number<uint32_t>());
  if (static_cast<GgufType>(type) == GgufType::kArray) {
    ASSIGN_OR_RETURN(result_.arrays[key], ReadArray(1));
  } else {
    ASSIGN_OR_RETURN(result_.scalars[key], ReadScalar(static_cast<GgufType>(type)));
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadAlignment() {
  JsonObject metadata(result_.scalars, "metadata");
  constexpr std::string_view kKey = "general.alignment";
  alignment_ = metadata.Int(kKey, {1, kMaxAlignment}, kDefaultAlignment);
  if (!std::has_single_bit(alignment_)) metadata.Refuse(kKey, "it must be a power of two");
  return metadata.status();
}

// Dimensions stand in the file innermost first.
absl::Status Reader::ReadTensor(GgufTensor& tensor, uint64_t& offset) {
  ASSIGN_OR_RETURN(const auto num_dimensions, Number<uint32_t>());
  if (num_dimensions == 0 || num_dimensions > kMaxDimensions) {
    return absl::InvalidArgumentError(
        fmt::format("it has {} dimensions; 1 to {} are possible", num_dimensions, kMaxDimensions));
  }
  for (uint32_t i = 0; i < num_dimensions; ++i) {
    ASSIGN_OR_RETURN(const auto dimension, Number<int64_t>());
    if (dimension < 1 || dimension > kMaxDimension) {
      return absl::InvalidArgumentError(fmt::format(
          "one of its dimensions is {}; 1 to {} are possible", dimension, kMaxDimension));
    }
    tensor.shape.insert(tensor.shape.begin(), dimension);
  }
  ASSIGN_OR_RETURN(const auto id, Number<uint32_t>());
  const auto* const type = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                        [id = id](const TensorType& t) { return t.id == id; });
  const bool known = type != std::end(kTensorTypes);
  tensor.type = known ? std::string(type->name) : fmt::format("number {}", id);
  if (known) tensor.dtype = type->dtype;
  ASSIGN_OR_RETURN(offset, Number<uint64_t>());
  return absl::OkStatus();
}

// Nothing on overflow.
std::optional<int64_t> ByteCount(const GgufTensor& tensor) {
  int64_t bytes = RowBytes(*tensor.dtype, tensor.shape.back());
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    if (__builtin_mul_overflow(bytes, tensor.shape[i], &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::Status Reader::PlaceTensor(const Placed& placed, std::string_view data) {
  GgufTensor& tensor = *placed.tensor;
  const uint64_t offset = placed.offset;
  if (offset % alignment_ != 0) {
    return absl::InvalidArgumentError(
        fmt::format("its offset {} is not a multiple of the alignment {}", offset, alignment_));
  }
  if (!tensor.dtype) return absl::OkStatus();
  if (const int64_t block = BlockOf(*tensor.dtype).elements; tensor.shape.back() % block != 0) {
    return absl::InvalidArgumentError(fmt::format("its rows of {} are no multiple of {}'s block {}",
                                                  tensor.shape.back(), tensor.type, block));
  }
  const auto bytes = ByteCount(tensor);
  if (!bytes) return absl::InvalidArgumentError("the product of its shape is too large");
  if (offset > data.size() || static_cast<uint64_t>(*bytes) > data.size() - offset) {
    return absl::InvalidArgumentError(fmt::format(
        "its {} bytes at offset {} exceed the {} that hold tensors: the file is cut short or "
        "damaged",
        *bytes, offset, data.size()));
  }
  tensor.bytes = data.substr(offset, *bytes);
  return absl::OkStatus();
}

absl::Status Reader::CheckOverlap(std::string_view data) {
  std::sort(placed_.begin(), placed_.end(),
            [](const Placed& a, const Placed& b) { return a.offset < b.offset; });
  uint64_t end = 0;
  for (const Placed& placed : placed_) {
    if (placed.tensor->bytes.empty()) continue;
    if (placed.offset < end) {
      return absl::InvalidArgumentError(fmt::format(
          "tensor {}: its data begins at byte {} of {}, inside the tensor that ends at {}",
          DescribeJson(placed.name), placed.offset, data.size(), end));
    }
    end = placed.offset + placed.tensor->bytes.size();
  }
  return absl::OkStatus();
}

absl::Status Reader::PlaceTensors() {
  const uint64_t table_end = file_.size() - rest_.size();
  const uint64_t begin = (table_end + alignment_ - 1) / alignment_ * alignment_;
  const std::string_view data = file_.substr(std::min<uint64_t>(begin, file_.size()));
  for (const Placed& placed : placed_) {
    const absl::Status status = PlaceTensor(placed, data);
    if (!status.ok()) return Annotate("tensor " + DescribeJson(placed.name), status);
  }
  return CheckOverlap(data);
}

absl::StatusOr<GgufFile> Reader::Read() {
  RETURN_IF_ERROR(ReadHeader());
  for (uint64_t i = 0; i < num_values_; ++i) {
    ASSIGN_OR_RETURN(const std::string key, Name(fmt::format("metadata key {}", i)));
    const absl::Status status = ReadValue(key);
    if (!status.ok()) return Annotate("metadata key " + DescribeJson(key), status);
  }
  RETURN_IF_ERROR(ReadAlignment());
  for (uint64_t i = 0; i < num_tensors_; ++i) {
    ASSIGN_OR_RETURN(const std::string name, Name(fmt::format("tensor {}", i)));
    const auto [entry, is_new] = result_.tensors.try_emplace(name);
    uint64_t offset = 0;
    const absl::Status status = is_new ? ReadTensor(entry->second, offset)
                                       : absl::InvalidArgumentError("it is there twice");
    if (!status.ok()) return Annotate("tensor " + DescribeJson(name), status);
    placed_.push_back({offset, entry->first, &entry->second});
  }
  RETURN_IF_ERROR(PlaceTensors());
  return std::move(result_);
}

}  // namespace

std::optional<std::vector<std::string_view>> GgufArray::Strings() const {
  if (type != GgufType::kString) return std::nullopt;
  std::vector<std::string_view> strings;
  for (std::string_view rest = bytes; !rest.empty();) {
    const auto length = Load<uint64_t>(rest);
    strings.push_back(rest.substr(sizeof(length), length));
    rest.remove_prefix(sizeof(length) + length);
  }
  return strings;
}

std::optional<std::vector<double>> GgufArray::Numbers() const {
  const uint64_t stride = SizeOf(type);
  if (stride == 0 || type == GgufType::kBool) return std::nullopt;
  std::vector<double> numbers;
  for (uint64_t at = 0; at < bytes.size(); at += stride) {
    numbers.push_back(VisitNumber(type, bytes.substr(at),
                                  [](auto number) { return static_cast<double>(number); }));
  }
  return numbers;
}

absl::StatusOr<GgufFile> ParseGguf(std::string_view file) {
  return Reader(file).Read();
}

}  // namespace everlong
