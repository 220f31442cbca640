// A fixed set of threads for loops of a few microseconds: idle workers spin for a while before they
// sleep, and starting a loop neither locks nor allocates.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace everlong::cpu {

class ThreadPool {
 public:
  // `num_threads` counts the caller of Run; 0: one per core.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) once for every task in [0, num_tasks), in ascending order as threads
  // come free; thread < num_threads() tells who runs it. Returns when all are done. One caller at a
  // time, never from inside a body.
  template <class Body>
  void Run(int64_t num_tasks, const Body& body) {
    Dispatch(num_tasks, &body, [](const void* b, int64_t task, int thread) {
      (*static_cast<const Body*>(b))(task, thread);
    });
  }

 private:
  using Call = void (*)(const void* body, int64_t task, int thread);

  void Dispatch(int64_t num_tasks, const void* body, Call call);
  void RunTasks(int thread);
  bool AwaitTasks();
  void Work(int thread);

  std::vector<std::thread> workers_;
  std::atomic<uint32_t> wake_{0};  // sleepers wait for it to change
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};

  // The current loop. Written only while unfinished_ is 0, read only by holders of a task.
  const void* body_ = nullptr;
  Call call_ = nullptr;
  int64_t num_tasks_ = 0;

  alignas(64) std::atomic<int64_t> unclaimed_{0};  // tasks left to claim: num_tasks_ down to 0
  alignas(64) std::atomic<int64_t> unfinished_{0};
};

}  // namespace everlong::cpu
