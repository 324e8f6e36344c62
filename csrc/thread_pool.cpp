#include "thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace seamfast {
namespace {

std::atomic<ThreadPool*> pool{nullptr};

// In a forked child the pool's threads are gone and its mutex may be held for ever, so the child drops it (and leaks
// a few hundred bytes). Registered when the module is loaded, before any pool can exist.
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });

// Keeps signals on the threads that expect them: a thread inherits the mask of its maker.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace

int cpu_count() noexcept {
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) return std::max(1, CPU_COUNT(&mask));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Lives on the caller's stack: the caller leaves parallel_for only when no helper is inside.
struct ThreadPool::Job {
  const Body& body;
  const std::int64_t count;
  const std::int64_t grain;
  std::atomic<std::int64_t> next{0};
  int vacancies;   // helpers that may still join; guarded by mutex_
  int inside = 0;  // helpers at work; guarded by mutex_
  std::exception_ptr error{};  // guarded by error_mutex
  std::mutex error_mutex{};
  std::condition_variable empty{};
};

ThreadPool& ThreadPool::instance() {
  ThreadPool* current = pool.load();
  if (current == nullptr) {
    auto* fresh = new ThreadPool;
    if (pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;  // another thread was first
  }
  return *current;
}

void ThreadPool::parallel_for(std::int64_t count, std::int64_t grain, int threads, const Body& body) {
  if (count <= 0) return;
  grain = std::max<std::int64_t>(1, grain);
  const auto helpers = static_cast<int>(std::min<std::int64_t>(threads, (count + grain - 1) / grain)) - 1;
  if (helpers <= 0) {
    body(0, count);
    return;
  }
  Job job{body, count, grain, {}, helpers};
  {
    const std::lock_guard lock(mutex_);
    hire(helpers);
    open_.push_back(&job);
  }
  for (int i = 0; i < helpers; ++i) wake_.notify_one();
  drain(job);
  {
    std::unique_lock lock(mutex_);
    open_.erase(std::remove(open_.begin(), open_.end(), &job), open_.end());
    job.empty.wait(lock, [&] { return job.inside == 0; });
  }
  if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::hire(int wanted) {
  const SignalsBlocked blocked;
  try {
    for (; workers_ < wanted; ++workers_) std::thread([this] { work(); }).detach();
  } catch (const std::system_error&) {
    // The process is at its thread limit. Fewer helpers, or none, do the same work.
  }
}

void ThreadPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return !open_.empty(); });
    Job& job = *open_.front();
    if (--job.vacancies == 0) open_.erase(open_.begin());
    ++job.inside;
    lock.unlock();
    drain(job);
    lock.lock();
    if (--job.inside == 0) job.empty.notify_one();  // under the lock: the job may be gone right after
  }
}

void ThreadPool::drain(Job& job) {
  try {
    for (;;) {
      const std::int64_t begin = job.next.fetch_add(job.grain);
      if (begin >= job.count) return;
      job.body(begin, std::min(begin + job.grain, job.count));
    }
  } catch (...) {
    job.next.store(job.count);  // the others stop at their next piece
    const std::lock_guard lock(job.error_mutex);
    if (!job.error) job.error = std::current_exception();
  }
}

}  // namespace seamfast
