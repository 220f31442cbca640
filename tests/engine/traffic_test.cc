// Many requests that come and go at random, on one thread and from several.
#include <gtest/gtest.h>

#include <chrono>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/engine/engine_fixture.h"

namespace everlong {
namespace {

// Requests arrive, are cancelled, pause and expire at random; nothing leaks, every one ends once.
TEST(TrafficTest, RandomTrafficLeavesNothingBehind) {
  EngineOptions options = SmallOptions();
  options.max_context = 256;
  options.kv_device_bytes = 9 * kTinyPageBytes;
  absl::Time now = absl::FromUnixSeconds(1000);
  options.clock = [&now] { return now; };
  auto engine = MakeTinyEngine(options, MakeReferenceKernels());
  std::mt19937 random(5);
  std::map<RequestId, std::shared_ptr<RecordingSink>> sinks;
  for (int step = 0; step < 600; ++step) {
    now += absl::Milliseconds(10);
    if (random() % 3 == 0) {
      Request request = GreedyRequest(RandomPrompt(step, 1 + random() % 200), 1 + random() % 50);
      request.num_samples = 1 + static_cast<int32_t>(random() % 4);
      request.priority = static_cast<int32_t>(random() % 3);
      if (random() % 4 == 0) request.deadline = now + absl::Milliseconds(random() % 400);
      if (random() % 4 == 0) request.prompt_logprobs = 2;
      auto sink = std::make_shared<RecordingSink>();
      const auto id = engine->Submit(request, sink);
      ASSERT_TRUE(id.ok()) << id.status();
      sinks[*id] = sink;
    }
    if (!sinks.empty()) {
      auto it = std::next(sinks.begin(), static_cast<ptrdiff_t>(random() % sinks.size()));
      if (random() % 8 == 0) engine->Cancel(it->first);
      it->second->backlogged = random() % 2 == 0;
    }
    engine->Step();
    const EngineStats stats = engine->Stats();
    ASSERT_LE(stats.kv_pages_used, stats.kv_pages_total);
  }
  for (auto& [id, sink] : sinks) sink->backlogged = false;
  RunToEnd(*engine);
  size_t completed = 0;
  for (auto& [id, sink] : sinks) {
    ASSERT_EQ(sink->terminal.size(), 1u) << "request " << id;
    completed += sink->end().status.ok() ? 1 : 0;
  }
  EXPECT_GT(completed, sinks.size() / 4);
  EXPECT_GT(engine->Stats().preemptions, 0u);
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

TEST(TrafficTest, ManyThreadsSubmitAndCancel) {
  auto engine = MakeTinyEngine(SmallOptions(), MakeCpuKernels(2));
  engine->Start();
  std::vector<std::thread> threads;
  std::vector<std::shared_ptr<RecordingSink>> sinks(24);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 6; ++i) {
        auto sink = std::make_shared<RecordingSink>();
        const auto id = engine->Submit(GreedyRequest(RandomPrompt(t * 6 + i, 50), 20), sink);
        ASSERT_TRUE(id.ok());
        sinks[t * 6 + i] = sink;
        if (i % 3 == 2) engine->Cancel(*id);
        (void)engine->Stats();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int wait = 0; wait < 2000 && !engine->Idle(); ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(engine->Idle());
  engine->Stop();
  for (const auto& sink : sinks) EXPECT_TRUE(sink->finished());
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

}  // namespace
}  // namespace everlong
