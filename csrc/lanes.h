// Sixteen lanes, in vectors that are as wide as the level's registers: W of them each. One source for every level, and
// the same bits on all of them, as lanes do not mix unless a comment says so.
//
// The vectors are GCC's and Clang's own. With 64 bytes everywhere, GCC would split comparisons and conversions lane by
// lane where registers are narrower.

#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace seamfast {

inline constexpr int kLanes = 16;

// W by level: 16 bytes of registers, 32, 64.
inline constexpr int kBaselineWidth = 4, kAvx2Width = 8, kAvx512Width = 16;

template <class T, int W>
struct Lanes {
  typedef T Part __attribute__((vector_size(W * sizeof(T))));  // GCC ignores the attribute in a dependent `using`
  static constexpr int kParts = kLanes / W;
  Part part[kParts];
};

template <int W>
using Floats = Lanes<float, W>;
template <int W>
using Ints = Lanes<std::int32_t, W>;
template <int W>
using Words = Lanes<std::uint32_t, W>;
template <int W>
using Halves = Lanes<std::uint16_t, W>;

#define SEAMFAST_EACH_PART(...) \
  _Pragma("GCC unroll 4") for (int i = 0; i < kLanes / W; ++i) { __VA_ARGS__; }

template <int W, class T>
SEAMFAST_INLINE Lanes<T, W> all_lanes(T value) {
  Lanes<T, W> out;
  SEAMFAST_EACH_PART(out.part[i] = typename Lanes<T, W>::Part{} + value)
  return out;
}

#define SEAMFAST_OPERATOR(op)                                                                \
  template <class T, int W>                                                                  \
  SEAMFAST_INLINE Lanes<T, W> operator op(const Lanes<T, W>& a, const Lanes<T, W>& b) {      \
    Lanes<T, W> out;                                                                         \
    SEAMFAST_EACH_PART(out.part[i] = a.part[i] op b.part[i])                                 \
    return out;                                                                              \
  }                                                                                          \
  template <class T, int W, class Scalar>                                                    \
  SEAMFAST_INLINE Lanes<T, W> operator op(const Lanes<T, W>& a, Scalar b) {                  \
    Lanes<T, W> out;                                                                         \
    SEAMFAST_EACH_PART(out.part[i] = a.part[i] op static_cast<T>(b))                         \
    return out;                                                                              \
  }
SEAMFAST_OPERATOR(+)
SEAMFAST_OPERATOR(-)
SEAMFAST_OPERATOR(*)
SEAMFAST_OPERATOR(/)
SEAMFAST_OPERATOR(&)
SEAMFAST_OPERATOR(|)
SEAMFAST_OPERATOR(^)
SEAMFAST_OPERATOR(<<)
SEAMFAST_OPERATOR(>>)
#undef SEAMFAST_OPERATOR

// A comparison is made where it selects: AVX-512 then keeps it in a mask register, where a vector of it would be made and
// compared once more.
#define SEAMFAST_COMPARISON(op, Name)                                                               \
  template <class T, int W>                                                                         \
  struct Name {                                                                                     \
    Lanes<T, W> a, b;                                                                               \
  };                                                                                                \
  template <class T, int W>                                                                         \
  SEAMFAST_INLINE Name<T, W> operator op(const Lanes<T, W>& a, const Lanes<T, W>& b) {              \
    return {a, b};                                                                                  \
  }                                                                                                 \
  template <class T, int W, class Scalar>                                                           \
  SEAMFAST_INLINE Name<T, W> operator op(const Lanes<T, W>& a, Scalar b) {                          \
    return {a, all_lanes<W>(static_cast<T>(b))};                                                    \
  }                                                                                                 \
  template <class T, class V, int W>                                                                \
  SEAMFAST_INLINE Lanes<V, W> select(const Name<T, W>& where, const Lanes<V, W>& yes,               \
                                     const Lanes<V, W>& no) {                                       \
    Lanes<V, W> out;                                                                                \
    SEAMFAST_EACH_PART(out.part[i] = where.a.part[i] op where.b.part[i] ? yes.part[i] : no.part[i]) \
    return out;                                                                                     \
  }
SEAMFAST_COMPARISON(<, Below)
SEAMFAST_COMPARISON(>, Above)
SEAMFAST_COMPARISON(>=, AtLeast)
SEAMFAST_COMPARISON(==, Equal)
SEAMFAST_COMPARISON(!=, Unequal)
#undef SEAMFAST_COMPARISON

// The lanes' values as another type.
template <class To, class From, int W>
SEAMFAST_INLINE Lanes<To, W> converted(const Lanes<From, W>& from) {
  Lanes<To, W> out;
  SEAMFAST_EACH_PART(out.part[i] = __builtin_convertvector(from.part[i], typename Lanes<To, W>::Part))
  return out;
}

// The lanes' bits as another type of that size.
template <class To, class From, int W>
SEAMFAST_INLINE Lanes<To, W> bits_as(const Lanes<From, W>& from) {
  static_assert(sizeof(To) == sizeof(From));
  Lanes<To, W> out;
  SEAMFAST_EACH_PART(out.part[i] = reinterpret_cast<typename Lanes<To, W>::Part>(from.part[i]))
  return out;
}

// Unaligned. Vector by vector: whole structs would go through memory in smaller pieces.
template <int W, class T>
SEAMFAST_INLINE Lanes<T, W> load_lanes(const T* from) {
  Lanes<T, W> out;
  SEAMFAST_EACH_PART(std::memcpy(&out.part[i], from + i * W, sizeof out.part[i]))
  return out;
}

template <class T, int W>
SEAMFAST_INLINE void store_lanes(T* to, const Lanes<T, W>& lanes) {
  SEAMFAST_EACH_PART(std::memcpy(to + i * W, &lanes.part[i], sizeof lanes.part[i]))
}

// In a fixed order: halves, quarters, ...
template <int W>
SEAMFAST_INLINE float sum_lanes(const Floats<W>& lanes) {
  float v[kLanes];
  store_lanes(v, lanes);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) v[l] += v[l + half];
  return v[0];
}

template <int W>
SEAMFAST_INLINE float largest_lane(const Floats<W>& lanes) {
  float v[kLanes];
  store_lanes(v, lanes);
  float found = v[0];
  for (int l = 1; l < kLanes; ++l) found = v[l] > found ? v[l] : found;
  return found;
}

// Whether a lane is not 0.
template <int W>
SEAMFAST_INLINE bool any_lane(const Ints<W>& lanes) {
  std::uint64_t v[kLanes / 2];
  SEAMFAST_EACH_PART(std::memcpy(v + i * W / 2, &lanes.part[i], sizeof lanes.part[i]))
  std::uint64_t any = 0;
  for (const std::uint64_t pair : v) any |= pair;
  return any != 0;
}

#undef SEAMFAST_EACH_PART

}  // namespace seamfast
