// Sixteen float32 lanes, as GCC and Clang write vectors: one source for every instruction set, which the compiler lowers
// to registers as wide as the level has. Lanes never mix but where said, so results are the same bits on all of them.

#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace seamfast {

inline constexpr int kLanes = 16;

using Floats = float __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(64)));
using Words = std::uint32_t __attribute__((vector_size(64)));
using Halves = std::uint16_t __attribute__((vector_size(32)));

template <class To, class From>
SEAMFAST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Vector, class Element>
SEAMFAST_INLINE Vector load_lanes(const Element* from) {  // unaligned
  static_assert(sizeof(Vector) == kLanes * sizeof(Element));
  Vector lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <class Vector, class Element>
SEAMFAST_INLINE void store_lanes(Element* to, const Vector& lanes) {  // unaligned
  static_assert(sizeof(Vector) == kLanes * sizeof(Element));
  std::memcpy(to, &lanes, sizeof lanes);
}

SEAMFAST_INLINE Floats all_lanes(float value) { return Floats{} + value; }

// In a fixed order: halves, quarters, ...
SEAMFAST_INLINE float sum_lanes(const Floats& lanes) {
  float v[kLanes];
  store_lanes(v, lanes);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) v[l] += v[l + half];
  return v[0];
}

SEAMFAST_INLINE float largest_lane(const Floats& lanes) {
  float v[kLanes];
  store_lanes(v, lanes);
  float found = v[0];
  for (int l = 1; l < kLanes; ++l) found = v[l] > found ? v[l] : found;
  return found;
}

SEAMFAST_INLINE bool any_lane(const Ints& lanes) {
  std::uint64_t v[kLanes / 2];
  std::memcpy(v, &lanes, sizeof v);
  std::uint64_t any = 0;
  for (const std::uint64_t pair : v) any |= pair;
  return any != 0;
}

}  // namespace seamfast
