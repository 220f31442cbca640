// What the tests of the whole engine share, by whatever side they look at it from.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/engine/hooked_kernels.h"
#include "tests/engine/tiny_model.h"

namespace everlong {

// An engine on the reference backend, whose time is the test's.
class EngineTest : public ::testing::Test {
 protected:
  EngineTest() { Restart(SmallOptions()); }

  void Restart(EngineOptions options) {
    options.clock = [this] { return now_; };
    engine_ = MakeTinyEngine(options, MakeReferenceKernels());
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::unique_ptr<Engine> engine_;
};

// The parameter is a backend's name.
class EngineBackendTest : public ::testing::TestWithParam<std::string> {};

// Far more context than sinks, selection and window hold.
inline AttentionOverrides SparseAttention(const char* preset) {
  return {.mode = AttentionMode::kInfiniteHip,
          .preset = preset,
          .positions = PositionRule::kClipped,
          .budget = 64,
          .num_sinks = 16,
          .window = 64};
}

// What an engine of its own gives a request.
inline std::vector<int32_t> OutputAlone(const EngineOptions& options, const std::string& backend,
                                        const Request& request, int32_t sample = 0) {
  auto engine = MakeTinyEngine(options, MakeKernels(backend));
  auto sink = SubmitTo(*engine, request);
  RunToEnd(*engine);
  EXPECT_TRUE(sink->finished() && sink->end().status.ok());
  return sink->tokens(sample);
}

// What Submit says of a request.
inline absl::Status Submitted(Engine& engine, const Request& request) {
  return engine.Submit(request, std::make_shared<RecordingSink>()).status();
}

}  // namespace everlong
