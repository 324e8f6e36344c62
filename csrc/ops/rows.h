// Rows of logits: what they are made of, and how they become float32 and back.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "isa.h"
#include "lanes.h"

namespace seamfast {

enum class LogitType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct LogitFloat32 {
  using Bits = float;
  using Lanes = Floats;
  SEAMFAST_INLINE static Floats widen(const Lanes& bits) { return bits; }
  SEAMFAST_INLINE static Lanes round(const Floats& value) { return value; }
};

struct LogitBFloat16 {
  using Bits = std::uint16_t;
  using Lanes = Halves;
  SEAMFAST_INLINE static Floats widen(const Lanes& bits) {
    return bit_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
  }
  SEAMFAST_INLINE static Lanes round(const Floats& value) {  // to nearest even
    const auto bits = bit_cast<Words>(value);
    const Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const Words nan = Words{} + 0x7FC0;
    return __builtin_convertvector((bits & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded, Halves);
  }
};

struct LogitFloat16 {
  using Bits = std::uint16_t;
  using Lanes = Halves;
  SEAMFAST_INLINE static Floats widen(const Lanes& bits) {
    const Words wide = __builtin_convertvector(bits, Words);
    const Words sign = (wide & 0x8000) << 16, rest = wide & 0x7FFF;
    // The exponent, and that of subnormal numbers too, is set right by a multiplication with 2^112.
    const auto finite = bit_cast<Words>(bit_cast<Floats>(rest << 13) * 0x1p112F);
    return bit_cast<Floats>(sign | (rest >= 0x7C00 ? (rest << 13) | 0x7F800000 : finite));
  }
  SEAMFAST_INLINE static Lanes round(const Floats& value) {  // to nearest even
    const auto bits = bit_cast<Words>(value);
    const Words sign = (bits >> 16) & 0x8000, rest = bits & 0x7FFFFFFF;
    const Words normal = (rest - 0x38000000 + 0xFFF + ((rest >> 13) & 1)) >> 13;
    // Below 2^-14 results have a fixed point: adding 0.5 puts it at the end of a float32, which rounds there.
    const Words fixed = bit_cast<Words>(bit_cast<Floats>(rest) + 0.5F) - 0x3F000000;
    const Words infinite = Words{} + 0x7C00, nan = Words{} + 0x7E00;
    const Words finite = rest < 0x38800000 ? fixed : normal;
    const Words special = rest > 0x7F800000 ? nan : infinite;
    return __builtin_convertvector(sign | (rest >= 0x47800000 ? special : finite), Halves);
  }
};

// Logits as they lie in memory: element (i, c) is at data + i * row_stride + c * column_stride, in elements.
struct Logits {
  const void* data;
  LogitType type;
  std::int64_t rows, classes;
  std::int64_t row_stride, column_stride;
};

// How many threads are worth waking, which costs some 10 us each: what one does of `rows` in that time.
inline std::int64_t useful_threads(std::int64_t rows, std::int64_t classes, std::int64_t threads) noexcept {
  return std::clamp<std::int64_t>(rows * classes / 40'000, 1, threads);
}

// Up to so many classes, rows lie across the lanes of a vector; above, a row's classes do.
inline constexpr std::int64_t kAcrossRows = 64;

inline constexpr float kInfinity = __builtin_inff();

inline std::int64_t padded(std::int64_t n) noexcept { return (n + kLanes - 1) / kLanes * kLanes; }

// A row as float32 in `out`, which has room for `padded` elements; what is beyond the row is -Inf.
template <class Type>
SEAMFAST_INLINE void load_row(const Logits& logits, std::int64_t row, float* out) {
  using Bits = typename Type::Bits;
  const auto* x = static_cast<const Bits*>(logits.data) + row * logits.row_stride;
  std::int64_t c = 0;
  if (logits.column_stride == 1)
    for (; c + kLanes <= logits.classes; c += kLanes)
      store_lanes(out + c, Type::widen(load_lanes<typename Type::Lanes>(x + c)));
  while (c < logits.classes) {
    Bits some[kLanes] = {};
    const std::int64_t n = std::min<std::int64_t>(kLanes, logits.classes - c);
    for (std::int64_t l = 0; l < n; ++l) some[l] = x[(c + l) * logits.column_stride];
    store_lanes(out + c, Type::widen(load_lanes<typename Type::Lanes>(some)));
    for (std::int64_t l = n; l < kLanes; ++l) out[c + l] = -kInfinity;
    c += kLanes;
  }
}

// Largest value of a padded row (-Inf where all are NaN), and whether it holds NaN.
struct RowMaximum {
  float value;
  bool nan;
};

SEAMFAST_INLINE RowMaximum row_maximum(const float* x, std::int64_t padded_size) {
  Floats largest = all_lanes(-kInfinity);
  Ints nan{};
  for (std::int64_t c = 0; c < padded_size; c += kLanes) {
    const auto v = load_lanes<Floats>(x + c);
    largest = v > largest ? v : largest;
    nan |= v != v;
  }
  return {largest_lane(largest), any_lane(nan)};
}

// Position of the first element equal to `value` in x[0, n), or n.
SEAMFAST_INLINE std::int64_t first_equal(const float* x, std::int64_t n, float value) {
  std::int64_t c = 0;
  while (c + kLanes <= n && !any_lane(load_lanes<Floats>(x + c) == value)) c += kLanes;
  while (c < n && x[c] != value) ++c;
  return c;
}

// Rows [row, row + lanes) of few classes, transposed: class c of row + l is at out[c * kLanes + l]; other lanes are 0.
template <class Type>
SEAMFAST_INLINE void load_columns(const Logits& logits, std::int64_t row, std::int64_t lanes, float* out) {
  using Bits = typename Type::Bits;
  constexpr bool kWidens = !std::is_same_v<Bits, float>;
  Bits narrow[kWidens ? kAcrossRows * kLanes : 1];
  Bits* columns;
  if constexpr (kWidens)
    columns = narrow;
  else
    columns = out;
  if (lanes < kLanes) std::fill(columns, columns + logits.classes * kLanes, Bits{});
  const auto* x = static_cast<const Bits*>(logits.data) + row * logits.row_stride;
  for (std::int64_t l = 0; l < lanes; ++l)
    for (std::int64_t c = 0; c < logits.classes; ++c)
      columns[c * kLanes + l] = x[l * logits.row_stride + c * logits.column_stride];
  if constexpr (kWidens)
    for (std::int64_t c = 0; c < logits.classes; ++c)
      store_lanes(out + c * kLanes, Type::widen(load_lanes<typename Type::Lanes>(columns + c * kLanes)));
}

// The largest of each lane's column, where it first occurs, and which lanes hold NaN.
struct ColumnMaximum {
  Floats value;
  Ints place, nan;
};

SEAMFAST_INLINE ColumnMaximum column_maximum(const float* x, std::int64_t classes) {
  ColumnMaximum found{all_lanes(-kInfinity), Ints{}, Ints{}};
  for (std::int64_t c = 0; c < classes; ++c) {
    const auto v = load_lanes<Floats>(x + c * kLanes);
    const Ints larger = v > found.value;  // strictly: the first of equals stays
    found.place = larger ? Ints{} + static_cast<std::int32_t>(c) : found.place;
    found.value = larger ? v : found.value;
    found.nan |= v != v;
  }
  return found;
}

}  // namespace seamfast
