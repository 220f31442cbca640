// A few threads for work that must not hold others up: reading a prompt of megabytes (gRPC may have
// as few as two threads to answer with), writing what the engine's thread has to say.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace everlong {

// Thread-safe. Destruction finishes the work that waits.
class WorkerPool {
 public:
  WorkerPool(int num_threads, size_t max_waiting);
  ~WorkerPool();

  // False, and nothing done, where max_waiting pieces of work wait already.
  bool Post(std::function<void()> work);

 private:
  void Run();

  const size_t max_waiting_;
  std::mutex mutex_;  // guards everything below
  std::condition_variable wake_;
  std::deque<std::function<void()>> waiting_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace everlong
