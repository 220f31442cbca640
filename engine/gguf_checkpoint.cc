#include "engine/gguf_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/gguf.h"
#include "engine/gguf_config.h"
#include "engine/mapped_file.h"
#include "engine/status.h"
#include "engine/tokenizer/gguf.h"
#include "fmt/format.h"

namespace everlong {
namespace {

struct TensorName {
  std::string_view hugging_face;
  std::string_view gguf;
};

constexpr TensorName kModelNames[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};

// Behind "model.layers.N." and "blk.N.", without ".weight" or ".bias".
constexpr TensorName kLayerNames[] = {
    {"input_layernorm", "attn_norm"},    {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

std::string_view Translate(std::span<const TensorName> names, std::string_view name) {
  const auto found = std::find_if(names.begin(), names.end(), [name](const TensorName& known) {
    return known.hugging_face == name;
  });
  return found == names.end() ? name : found->gguf;
}

// What the file calls the tensor of that Hugging Face name.
std::string GgufName(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::string(Translate(kModelNames, name));
  const size_t layer_end = name.find('.', kPrefix.size());
  const size_t stem_end = name.rfind('.');
  return fmt::format("blk.{}.{}{}", name.substr(kPrefix.size(), layer_end - kPrefix.size()),
                     Translate(kLayerNames, name.substr(layer_end + 1, stem_end - layer_end - 1)),
                     name.substr(stem_end));
}

class GgufCheckpoint final : public Checkpoint {
 public:
  explicit GgufCheckpoint(MappedFile file) : file_(std::move(file)) {}

  absl::Status Read();

  const ModelConfig& config() const override { return model_.config; }
  absl::StatusOr<HostMatrix> Tensor(std::string_view name, int64_t rows,
                                    int64_t cols) const override;
  const std::string& tokenizer_json() const override { return tokenizer_.json; }
  const std::string& chat_template() const override { return chat_template_; }

 private:
  absl::Status CheckNames() const;
  bool IsPermuted(std::string_view name) const;
  HostMatrix InHalves(HostMatrix matrix) const;

  MappedFile file_;
  GgufFile contents_;
  GgufTokenizer tokenizer_;
  GgufModel model_;
  std::string chat_template_;
};

absl::Status GgufCheckpoint::Read() {
  ASSIGN_OR_RETURN(contents_, ParseGguf(file_.bytes()));
  ASSIGN_OR_RETURN(tokenizer_, TokenizerFromGguf(contents_));
  ASSIGN_OR_RETURN(model_, ModelFromGguf(contents_, tokenizer_));
  JsonObject metadata(contents_.scalars, "metadata");
  chat_template_ = metadata.String("tokenizer.chat_template", "");
  RETURN_IF_ERROR(metadata.status());
  return CheckNames();
}

// A tensor that the forward pass does not know would be missing from the result.
absl::Status GgufCheckpoint::CheckNames() const {
  std::vector<std::string> known = {"rope_freqs.weight"};
  for (const TensorName& name : kModelNames) known.emplace_back(name.gguf);
  const ModelConfig& config = model_.config;
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    for (const TensorName& name : kLayerNames) {
      const bool is_mlp = name.gguf.starts_with("ffn_") && name.gguf != "ffn_norm";
      const bool is_qkv = name.gguf == "attn_q" || name.gguf == "attn_k" || name.gguf == "attn_v";
      const bool has_bias = (is_mlp && config.mlp_bias) || (is_qkv && config.qkv_bias) ||
                            (name.gguf == "attn_output" && config.output_bias);
      const bool is_head_norm = name.gguf == "attn_q_norm" || name.gguf == "attn_k_norm";
      if (is_head_norm && !config.qk_norm) continue;
      known.push_back(fmt::format("blk.{}.{}.weight", layer, name.gguf));
      if (has_bias) known.push_back(fmt::format("blk.{}.{}.bias", layer, name.gguf));
    }
  }
  std::sort(known.begin(), known.end());
  for (const auto& [name, tensor] : contents_.tensors) {
    if (std::binary_search(known.begin(), known.end(), name)) continue;
    return absl::InvalidArgumentError(fmt::format("tensor {} is none that a {} of {} layers has",
                                                  DescribeJson(name), config.architecture,
                                                  config.num_layers));
  }
  return absl::OkStatus();
}

bool GgufCheckpoint::IsPermuted(std::string_view name) const {
  return model_.rotates_neighbours && (name.find(".attn_q.") != std::string_view::npos ||
                                       name.find(".attn_k.") != std::string_view::npos);
}

// A copy whose heads' rows (of a vector: elements) are in Hugging Face's order.
HostMatrix GgufCheckpoint::InHalves(HostMatrix matrix) const {
  const bool is_vector = matrix.rows == 1;
  const int64_t count = is_vector ? matrix.cols : matrix.rows;
  const int64_t bytes = RowBytes(matrix.type, is_vector ? 1 : matrix.cols);
  const int64_t half = model_.config.head_dim / 2;
  auto copy = std::make_shared<std::vector<char>>(count * bytes);
  const char* from = static_cast<const char*>(matrix.data);
  for (int64_t row = 0; row < count; ++row, from += bytes) {
    const int64_t in_head = row % (2 * half);
    const int64_t to = row - in_head + in_head % 2 * half + in_head / 2;
    std::memcpy(copy->data() + to * bytes, from, bytes);
  }
  matrix.data = copy->data();
  matrix.owner = std::move(copy);
  return matrix;
}

absl::StatusOr<HostMatrix> GgufCheckpoint::Tensor(std::string_view hugging_face_name, int64_t rows,
                                                  int64_t cols) const {
  const std::string name = GgufName(hugging_face_name);
  const auto found = contents_.tensors.find(name);
  if (found == contents_.tensors.end()) {
    return Annotate(file_.path(),
                    absl::NotFoundError(fmt::format("tensor \"{}\" is missing", name)));
  }
  const GgufTensor& tensor = found->second;
  const std::string where = fmt::format("{}: tensor \"{}\"", file_.path(), name);
  if (!tensor.dtype) {
    return Annotate(where, absl::InvalidArgumentError(fmt::format(
                               "its type {} is not supported; F32, F16, BF16, Q8_0, Q4_0, Q4_1, "
                               "Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are",
                               tensor.type)));
  }
  if (IsQuantized(*tensor.dtype) && tensor.shape.size() == 1) {
    return Annotate(where, absl::InvalidArgumentError(
                               fmt::format("a vector of type {} is not supported", tensor.type)));
  }
  std::vector<int64_t> shape = {rows, cols};
  if (rows == 1 && tensor.shape.size() == 1) shape = {cols};
  if (tensor.shape != shape) {
    return Annotate(where, absl::InvalidArgumentError(
                               fmt::format("its shape is [{}] where the metadata implies [{}]",
                                           fmt::join(tensor.shape, ", "), fmt::join(shape, ", "))));
  }
  HostMatrix matrix = {
      .data = tensor.bytes.data(), .rows = rows, .cols = cols, .type = *tensor.dtype};
  return IsPermuted(name) ? InHalves(matrix) : matrix;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  auto checkpoint = std::make_unique<GgufCheckpoint>(std::move(file));
  if (const absl::Status status = checkpoint->Read(); !status.ok()) return Annotate(path, status);
  return checkpoint;
}

}  // namespace everlong
