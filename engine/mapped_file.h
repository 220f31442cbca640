// A file's bytes, mapped read-only.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace everlong {

// Immutable: any thread may read. The bytes stay at their place when the object moves.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or, for what is no regular file, INVALID_ARGUMENT, naming `path`.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::string_view bytes() const { return bytes_; }

 private:
  MappedFile(std::string path, std::string_view bytes) : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  std::string_view bytes_;
};

}  // namespace everlong
