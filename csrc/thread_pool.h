// A small pool for loops over samples. Workers sleep on a condition variable: a spinning barrier costs the caller's
// other threads (PyTorch's, a neighbour's) far more than the few microseconds that a wake-up takes.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

namespace seamfast {

// CPUs in the calling thread's affinity mask, at least 1.
int cpu_count() noexcept;

class ThreadPool {
 public:
  using Body = std::function<void(std::int64_t begin, std::int64_t end)>;

  // The process's pool. It is never destroyed, so no static destructor can wait for a worker at exit; and a forked
  // child, which inherits the pool without its threads, gets a new one.
  static ThreadPool& instance();

  // Calls body(begin, end) until [0, count) is covered, in pieces of at most `grain`, on at most `threads` threads of
  // which the caller is one. The caller needs no helper to finish, so any number of threads may call this at once, and
  // a body may call it again. The first exception of a body is thrown here, after the other threads have left the loop.
  void parallel_for(std::int64_t count, std::int64_t grain, int threads, const Body& body);

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

 private:
  struct Job;

  ThreadPool() = default;
  ~ThreadPool() = default;
  void hire(int wanted);  // needs mutex_
  void work();
  static void drain(Job& job);

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Job*> open_;  // jobs that still want helpers
  int workers_ = 0;
};

}  // namespace seamfast
