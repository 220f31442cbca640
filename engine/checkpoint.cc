#include "engine/checkpoint.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <utility>
#include <vector>

#include "engine/gguf_checkpoint.h"
#include "engine/json_object.h"
#include "engine/safetensors.h"
#include "engine/status.h"
#include "engine/synthetic_checkpoint.h"
#include "fmt/format.h"

namespace everlong {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr int64_t kMaxTextBytes = int64_t{256} << 20;

bool Exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

absl::StatusOr<std::string> ReadText(const fs::path& path) {
  std::error_code error;
  if (!Exists(path)) return Annotate(path.string(), absl::NotFoundError("no such file"));
  if (!fs::is_regular_file(path, error)) {
    return Annotate(path.string(), absl::InvalidArgumentError("not a regular file"));
  }
  const auto size = static_cast<int64_t>(fs::file_size(path, error));
  if (error || size > kMaxTextBytes) {
    return Annotate(path.string(), absl::InvalidArgumentError(fmt::format(
                                       "{} bytes exceed the limit of {}", size, kMaxTextBytes)));
  }
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), size)) {
    return Annotate(path.string(), absl::PermissionDeniedError("cannot be read"));
  }
  return text;
}

absl::StatusOr<std::string> ReadTextIfAny(const fs::path& path) {
  if (!Exists(path)) return "";
  return ReadText(path);
}

// tokenizer_config.json holds one template, or a list of {"name", "template"}.
std::string TemplateIn(const json& tokenizer_config) {
  const auto found = tokenizer_config.find("chat_template");
  if (found == tokenizer_config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return "";
  for (const json& named : *found) {
    if (!named.is_object() || named.value("name", json()) != "default") continue;
    const json text = named.value("template", json());
    if (text.is_string()) return text.get<std::string>();
  }
  return "";
}

absl::StatusOr<std::string> ReadChatTemplate(const fs::path& directory) {
  const fs::path alone = directory / "chat_template.jinja";
  if (Exists(alone)) return ReadText(alone);
  const fs::path path = directory / "tokenizer_config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadTextIfAny(path));
  if (text.empty()) return "";
  auto tokenizer_config = ParseJsonObject(text);
  if (!tokenizer_config.ok()) return Annotate(path.string(), tokenizer_config.status());
  return TemplateIn(*tokenizer_config);
}

// Element types that the kernels compute with.
absl::StatusOr<DType> SupportedType(std::string_view dtype) {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "BF16") return DType::kBF16;
  return absl::InvalidArgumentError(
      fmt::format("its type {} is not supported; F32, F16 and BF16 are", dtype));
}

class HuggingFaceDirectory final : public Checkpoint {
 public:
  absl::Status Read(const fs::path& directory);

  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<HostMatrix> Tensor(std::string_view name, int64_t rows,
                                    int64_t cols) const override;
  const std::string& tokenizer_json() const override { return tokenizer_json_; }
  const std::string& chat_template() const override { return chat_template_; }

 private:
  struct Place {
    const SafetensorsFile* file;
    const SafetensorsTensor* tensor;
  };

  absl::Status ReadConfig(const fs::path& directory);
  absl::Status ReadWeights(const fs::path& directory);
  absl::Status ReadIndex();
  absl::StatusOr<const SafetensorsFile*> OpenFile(const std::string& name);
  absl::Status RefuseWeights(const std::string& reason) const;

  fs::path weights_;  // the file that lists all tensors
  ModelConfig config_;
  std::string tokenizer_json_;
  std::string chat_template_;
  std::map<std::string, SafetensorsFile> files_;  // by their names
  std::map<std::string, Place, std::less<>> places_;
};

absl::Status HuggingFaceDirectory::Read(const fs::path& directory) {
  std::error_code ignored;
  if (!Exists(directory))
    return Annotate(directory.string(), absl::NotFoundError("no such directory"));
  if (!fs::is_directory(directory, ignored)) {
    return Annotate(directory.string(), absl::InvalidArgumentError("not a directory"));
  }
  RETURN_IF_ERROR(ReadConfig(directory));
  ASSIGN_OR_RETURN(tokenizer_json_, ReadText(directory / "tokenizer.json"));
  ASSIGN_OR_RETURN(chat_template_, ReadChatTemplate(directory));
  return ReadWeights(directory);
}

absl::Status HuggingFaceDirectory::ReadConfig(const fs::path& directory) {
  ASSIGN_OR_RETURN(const std::string config, ReadText(directory / "config.json"));
  ASSIGN_OR_RETURN(const std::string generation,
                   ReadTextIfAny(directory / "generation_config.json"));
  auto parsed = ParseModelConfig(config, generation);
  if (!parsed.ok()) {
    return {parsed.status().code(),
            fmt::format("{}/{}", directory.string(), Message(parsed.status()))};
  }
  config_ = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status HuggingFaceDirectory::ReadWeights(const fs::path& directory) {
  weights_ = directory / kSingleFile;
  if (Exists(weights_)) {
    ASSIGN_OR_RETURN(const SafetensorsFile* file, OpenFile(kSingleFile));
    for (const auto& [name, tensor] : file->tensors()) places_[name] = {file, &tensor};
    return absl::OkStatus();
  }
  weights_ = directory / kIndexFile;
  if (Exists(weights_)) return ReadIndex();
  return Annotate(directory.string(), absl::NotFoundError(fmt::format("neither {} nor {} is there",
                                                                      kSingleFile, kIndexFile)));
}

// {"weight_map": {tensor: file}}; the files lie beside it.
absl::Status HuggingFaceDirectory::ReadIndex() {
  ASSIGN_OR_RETURN(const std::string text, ReadText(weights_));
  auto index = ParseJsonObject(text);
  if (!index.ok()) return Annotate(weights_.string(), index.status());
  const json map = index->value("weight_map", json());
  if (!map.is_object()) return RefuseWeights("weight_map is not an object");
  for (const auto& [name, file_name] : map.items()) {
    if (!file_name.is_string()) {
      return RefuseWeights(fmt::format("tensor {}: no file name", DescribeJson(name)));
    }
    ASSIGN_OR_RETURN(const SafetensorsFile* file, OpenFile(file_name.get<std::string>()));
    const auto tensor = file->tensors().find(name);
    if (tensor == file->tensors().end()) {
      return RefuseWeights(fmt::format("tensor {} is not in {}", DescribeJson(name), file->path()));
    }
    places_[name] = {file, &tensor->second};
  }
  return absl::OkStatus();
}

absl::Status HuggingFaceDirectory::RefuseWeights(const std::string& reason) const {
  return Annotate(weights_.string(), absl::InvalidArgumentError(reason));
}

absl::StatusOr<const SafetensorsFile*> HuggingFaceDirectory::OpenFile(const std::string& name) {
  auto known = files_.find(name);
  if (known == files_.end()) {
    if (name.find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
      return RefuseWeights(fmt::format("{} is not the name of a file", DescribeJson(name)));
    }
    ASSIGN_OR_RETURN(SafetensorsFile file,
                     SafetensorsFile::Open((weights_.parent_path() / name).string()));
    known = files_.emplace(name, std::move(file)).first;
  }
  return &known->second;
}

absl::StatusOr<HostMatrix> HuggingFaceDirectory::Tensor(std::string_view name, int64_t rows,
                                                        int64_t cols) const {
  const auto place = places_.find(name);
  if (place == places_.end()) {
    return Annotate(weights_.string(),
                    absl::NotFoundError(fmt::format("tensor \"{}\" is missing", name)));
  }
  const auto& [file, tensor] = place->second;
  const std::string where = fmt::format("{}: tensor \"{}\"", file->path(), name);
  const auto type = SupportedType(tensor->dtype);
  if (!type.ok()) return Annotate(where, type.status());
  std::vector<int64_t> shape = {rows, cols};
  if (rows == 1 && tensor->shape.size() == 1) shape = {cols};
  if (tensor->shape != shape) {
    return Annotate(where, absl::InvalidArgumentError(fmt::format(
                               "its shape is [{}] where config.json implies [{}]",
                               fmt::join(tensor->shape, ", "), fmt::join(shape, ", "))));
  }
  return HostMatrix{.data = tensor->bytes.data(), .rows = rows, .cols = cols, .type = *type};
}

// The GGUF file in `directory`, "" where there is none.
absl::StatusOr<std::string> FindGguf(const fs::path& directory) {
  std::error_code ignored;
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    if (entry.path().extension() == ".gguf") found.push_back(entry.path().string());
  }
  if (found.size() > 1) {
    return Annotate(directory.string(),
                    absl::InvalidArgumentError(
                        fmt::format("{} GGUF files are there; name one of them", found.size())));
  }
  return found.empty() ? "" : found[0];
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  if (path.starts_with(kSyntheticPrefix)) return OpenSynthetic(path);
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored)) return OpenGguf(path);
  if (!Exists(fs::path(path) / "config.json")) {
    ASSIGN_OR_RETURN(const std::string file, FindGguf(path));
    if (!file.empty()) return OpenGguf(file);
  }
  auto checkpoint = std::make_unique<HuggingFaceDirectory>();
  RETURN_IF_ERROR(checkpoint->Read(path));
  return checkpoint;
}

}  // namespace everlong
