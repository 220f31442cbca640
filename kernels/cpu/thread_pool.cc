#include "kernels/cpu/thread_pool.h"

#include <algorithm>

#include "hwy/cache_control.h"

namespace everlong::cpu {
namespace {

// Some 50 us: longer than the serial parts of a step, shorter than a time slice.
constexpr int kSpins = 2000;

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads <= 0) {
    num_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { Work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  ++wake_;
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Dispatch(int64_t num_tasks, const void* body, Call call) {
  if (workers_.empty() || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) call(body, task, 0);
    return;
  }
  body_ = body;
  call_ = call;
  num_tasks_ = num_tasks;
  unfinished_.store(num_tasks, std::memory_order_relaxed);
  unclaimed_ = num_tasks;
  // Either this sees the sleeper, or the sleeper, which registers first, sees the tasks.
  if (sleepers_ > 0) {
    ++wake_;
    wake_.notify_all();
  }
  RunTasks(0);
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) > 0; ++spins) {
    if (spins < kSpins) {
      hwy::Pause();
    } else {
      std::this_thread::yield();  // more threads than cores
    }
  }
}

// Whoever lowers unclaimed_ from n owns task num_tasks_ - n of the loop that is current then: that
// loop cannot end before the task does, so a late worker does no harm.
void ThreadPool::RunTasks(int thread) {
  int64_t unclaimed = unclaimed_.load(std::memory_order_acquire);
  while (unclaimed > 0) {
    if (!unclaimed_.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acq_rel)) {
      continue;
    }
    call_(body_, num_tasks_ - unclaimed, thread);
    unfinished_.fetch_sub(1, std::memory_order_release);
    unclaimed = unclaimed_.load(std::memory_order_acquire);
  }
}

bool ThreadPool::AwaitTasks() {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (unclaimed_.load(std::memory_order_relaxed) > 0) return true;
    hwy::Pause();
  }
  const uint32_t seen = wake_;
  ++sleepers_;
  if (unclaimed_ == 0 && !stop_) wake_.wait(seen);
  --sleepers_;
  return !stop_;
}

void ThreadPool::Work(int thread) {
  while (AwaitTasks()) RunTasks(thread);
}

}  // namespace everlong::cpu
