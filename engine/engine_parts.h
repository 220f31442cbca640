// What an engine is made of: loaded once, then used by its thread.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/attention_policy.h"
#include "engine/chat_template.h"
#include "engine/checkpoint.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "engine/stats.h"
#include "engine/tokenizer.h"
#include "kernels/kernels.h"

namespace everlong {

struct EngineParts {
  std::unique_ptr<Kernels> kernels;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // null: the checkpoint has none
  std::unique_ptr<Model> model;
  std::shared_ptr<const AttentionPolicy> policy;
  ContextMemory memory;
  int32_t num_pages = 0;
  EngineOptions options;  // defaults resolved

  MemoryUse MemoryInUse() const;  // any thread

  // The server's policy with a request's wishes. INVALID_ARGUMENT where they are impossible or pass
  // what memory was laid out for.
  absl::StatusOr<std::shared_ptr<const AttentionPolicy>> PolicyFor(
      const AttentionOverrides& overrides) const;
};

absl::StatusOr<EngineParts> LoadEngineParts(std::unique_ptr<Checkpoint> checkpoint,
                                            std::unique_ptr<Kernels> kernels,
                                            EngineOptions options);

}  // namespace everlong
