#include "server/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace everlong {
namespace {

TEST(WorkerPoolTest, DestructionFinishesWhatWaits) {
  std::atomic<int> done{0};
  {
    WorkerPool pool(2, 1000);
    for (int i = 0; i < 500; ++i) ASSERT_TRUE(pool.Post([&] { ++done; }));
  }
  EXPECT_EQ(done, 500);
}

TEST(WorkerPoolTest, RefusesWorkPastItsBound) {
  std::promise<void> release;
  std::promise<void> started;
  std::atomic<int> done{0};
  {
    WorkerPool pool(1, 2);
    ASSERT_TRUE(pool.Post([&] {
      started.set_value();
      release.get_future().wait();
    }));
    started.get_future().wait();
    EXPECT_TRUE(pool.Post([&] { ++done; }));
    EXPECT_TRUE(pool.Post([&] { ++done; }));
    EXPECT_FALSE(pool.Post([&] { ++done; }));
    release.set_value();
  }
  EXPECT_EQ(done, 2);
}

}  // namespace
}  // namespace everlong
