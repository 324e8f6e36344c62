#include "memory.h"

#include <limits>
#include <mutex>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace seamfast {

void keep_freed_memory(bool keep) {
#if defined(__GLIBC__)
  constexpr int kMost = std::numeric_limits<int>::max();
  // Where the dynamic adjustment of malloc(3) ends: DEFAULT_MMAP_THRESHOLD_MAX on 64 bits, and twice that.
  constexpr int kUsualMmap = 32 << 20, kUsualTrim = 64 << 20;
  static std::mutex mutex;
  static int n_runs = 0;
  const std::lock_guard lock(mutex);
  if (keep) {
    if (n_runs++ == 0) {
      // Bounded, as older versions refuse more than half of a thread's heap.
      if (!mallopt(M_MMAP_THRESHOLD, 1 << 30)) mallopt(M_MMAP_THRESHOLD, kUsualMmap);
      mallopt(M_TRIM_THRESHOLD, kMost);
    }
  } else if (n_runs > 0 && --n_runs == 0) {
    mallopt(M_MMAP_THRESHOLD, kUsualMmap);
    mallopt(M_TRIM_THRESHOLD, kUsualTrim);
    malloc_trim(0);
  }
#else
  static_cast<void>(keep);
#endif
}

}  // namespace seamfast
