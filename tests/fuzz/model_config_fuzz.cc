// Any bytes as config.json and, after a zero byte, generation_config.json: refused, or a geometry
// that the forward pass can be sized for.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "engine/check.h"
#include "engine/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t end = text.find('\0');
  const std::string_view generation =
      end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  const auto config = everlong::ParseModelConfig(text.substr(0, end), generation);
  if (!config.ok()) {
    EVERLONG_CHECK(!config.status().message().empty());
    return 0;
  }
  EVERLONG_CHECK(config->q_heads % config->kv_heads == 0);
  EVERLONG_CHECK(config->rope_inv_freq.size() == static_cast<size_t>(config->head_dim / 2));
  EVERLONG_CHECK(config->rotate.size() == static_cast<size_t>(config->num_layers));
  EVERLONG_CHECK(std::isfinite(config->rope_scale) && config->rope_scale > 0);
  for (float frequency : config->rope_inv_freq) {
    EVERLONG_CHECK(std::isfinite(frequency) && frequency > 0);
  }
  for (int32_t id : config->eos_ids) EVERLONG_CHECK(id >= 0 && id < config->vocab_size);
  return 0;
}
