// When a serving process ends, and with which status.
#include "server/lifetime.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <string>
#include <vector>

namespace everlong {
namespace {

// A server that notes what is asked of it.
class NotingServer final : public Server {
 public:
  const std::string& grpc_address() const override { return address_; }
  const std::string& metrics_address() const override { return address_; }
  void Serve(ServedModel) override {}
  void Drain() override {
    calls.push_back("drain");
    if (signal_while_draining) raise(SIGUSR2);
  }
  bool Idle() const override { return idle; }
  bool Healthy() const override { return healthy; }
  void Stop() override { calls.push_back("stop"); }

  bool idle = true;
  bool healthy = true;
  bool signal_while_draining = false;
  std::vector<std::string> calls;

 private:
  std::string address_;
};

class LifetimeTest : public ::testing::Test {
 protected:
  LifetimeTest() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGUSR1);
    sigaddset(&signals_, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  }
  ~LifetimeTest() override { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  sigset_t signals_;
  sigset_t before_;
  NotingServer server_;
};

TEST_F(LifetimeTest, ASignalDrainsAndEndsWithZero) {
  raise(SIGUSR1);
  EXPECT_EQ(ServeUntilSignalled(server_, signals_, absl::Seconds(60)), 0);
  EXPECT_EQ(server_.calls, (std::vector<std::string>{"drain", "stop"}));
}

TEST_F(LifetimeTest, TheDrainHasALimit) {
  server_.idle = false;
  raise(SIGUSR1);
  EXPECT_EQ(ServeUntilSignalled(server_, signals_, absl::Milliseconds(20)), 0);
  EXPECT_EQ(server_.calls, (std::vector<std::string>{"drain", "stop"}));
}

TEST_F(LifetimeTest, ASecondSignalEndsTheDrainWithOne) {
  server_.idle = false;
  server_.signal_while_draining = true;
  raise(SIGUSR1);
  EXPECT_EQ(ServeUntilSignalled(server_, signals_, absl::Seconds(60)), 1);
  EXPECT_EQ(server_.calls, std::vector<std::string>{"drain"});
}

// Requests have ended with INTERNAL by then; draining turns health NOT_SERVING.
TEST_F(LifetimeTest, ADeviceFaultEndsWithOneAtOnce) {
  server_.idle = false;
  server_.healthy = false;
  EXPECT_EQ(ServeUntilSignalled(server_, signals_, absl::Seconds(60)), 1);
  EXPECT_EQ(server_.calls, (std::vector<std::string>{"drain", "stop"}));
}

}  // namespace
}  // namespace everlong
