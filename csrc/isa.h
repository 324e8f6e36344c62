// Which instruction set a kernel runs on, chosen at run time: a wheel built on one machine runs on every other.
//
// A kernel is written once, in plain loops, as an always-inline function. Each level wraps it in a function compiled
// for that level, and the compiler vectorizes the same source for each. SEAMFAST_TARGET functions call only inlined
// functions and those of the baseline, so that no instruction leaks into code that other levels share.

#pragma once

namespace seamfast {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

#if defined(__GNUC__) && defined(__x86_64__)
#define SEAMFAST_X86_LEVELS 1
#define SEAMFAST_TARGET_AVX2 __attribute__((target("avx2")))
#define SEAMFAST_TARGET_AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl")))
#endif
#define SEAMFAST_INLINE __attribute__((always_inline)) inline

// Whether this CPU and its operating system can run the level.
inline bool supports(Isa isa) noexcept {
#if defined(SEAMFAST_X86_LEVELS)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

inline Isa best_isa() noexcept {
  static const Isa best = supports(Isa::kAvx512) ? Isa::kAvx512 : supports(Isa::kAvx2) ? Isa::kAvx2 : Isa::kBaseline;
  return best;
}

inline const char* name(Isa isa) noexcept {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    default:
      return "baseline";
  }
}

}  // namespace seamfast
