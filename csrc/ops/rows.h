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
  template <int W>
  SEAMFAST_INLINE static Floats<W> widen(const Floats<W>& bits) {
    return bits;
  }
  template <int W>
  SEAMFAST_INLINE static Floats<W> round(const Floats<W>& value) {
    return value;
  }
};

struct LogitBFloat16 {
  using Bits = std::uint16_t;
  template <int W>
  SEAMFAST_INLINE static Floats<W> widen(const Halves<W>& bits) {
    return bits_as<float>(converted<std::uint32_t>(bits) << 16);
  }
  template <int W>
  SEAMFAST_INLINE static Halves<W> round(const Floats<W>& value) {  // to nearest even
    const auto bits = bits_as<std::uint32_t>(value);
    const Words<W> rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return converted<std::uint16_t>(select(value != value, all_lanes<W>(0x7FC0U), rounded));
  }
};

struct LogitFloat16 {
  using Bits = std::uint16_t;
  template <int W>
  SEAMFAST_INLINE static Floats<W> widen(const Halves<W>& bits) {
    const Words<W> wide = converted<std::uint32_t>(bits);
    const Words<W> sign = (wide & 0x8000) << 16, rest = wide & 0x7FFF;
    // The exponent, and that of subnormal numbers too, is set right by a multiplication with 2^112.
    const auto finite = bits_as<std::uint32_t>(bits_as<float>(rest << 13) * 0x1p112F);
    return bits_as<float>(sign | select(bits_as<std::int32_t>(rest) > 0x7BFF, (rest << 13) | 0x7F800000, finite));
  }
  template <int W>
  SEAMFAST_INLINE static Halves<W> round(const Floats<W>& value) {  // to nearest even
    const auto bits = bits_as<std::uint32_t>(value);
    const Words<W> sign = (bits >> 16) & 0x8000, rest = bits & 0x7FFFFFFF;
    const Words<W> normal = (rest - 0x38000000 + 0xFFF + ((rest >> 13) & 1)) >> 13;
    // Below 2^-14 results have a fixed point: adding 0.5 puts it at the end of a float32, which rounds there.
    const Words<W> fixed = bits_as<std::uint32_t>(bits_as<float>(rest) + 0.5F) - 0x3F000000;
    const auto size = bits_as<std::int32_t>(rest);  // comparisons of signed integers are the cheaper ones
    const Words<W> finite = select(size < 0x38800000, fixed, normal);
    const Words<W> special = select(value != value, all_lanes<W>(0x7E00U), all_lanes<W>(0x7C00U));
    return converted<std::uint16_t>(sign | select(size > 0x477FFFFF, special, finite));
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
template <class Type, int W>
SEAMFAST_INLINE void load_row(const Logits& logits, std::int64_t row, float* out) {
  using Bits = typename Type::Bits;
  const auto* x = static_cast<const Bits*>(logits.data) + row * logits.row_stride;
  std::int64_t c = 0;
  if (logits.column_stride == 1)
    for (; c + kLanes <= logits.classes; c += kLanes)
      store_lanes(out + c, Type::widen(load_lanes<W>(x + c)));
  while (c < logits.classes) {
    Bits some[kLanes] = {};
    const std::int64_t n = std::min<std::int64_t>(kLanes, logits.classes - c);
    for (std::int64_t l = 0; l < n; ++l) some[l] = x[(c + l) * logits.column_stride];
    store_lanes(out + c, Type::widen(load_lanes<W>(some)));
    for (std::int64_t l = n; l < kLanes; ++l) out[c + l] = -kInfinity;
    c += kLanes;
  }
}

// Largest value of a padded row (-Inf where all are NaN), and whether it holds NaN.
struct RowMaximum {
  float value;
  bool nan;
};

template <int W>
SEAMFAST_INLINE RowMaximum row_maximum(const float* x, std::int64_t padded_size) {
  Floats<W> largest = all_lanes<W>(-kInfinity);
  Ints<W> nan{};
  for (std::int64_t c = 0; c < padded_size; c += kLanes) {
    const Floats<W> v = load_lanes<W>(x + c);
    largest = select(v > largest, v, largest);
    nan = select(v != v, all_lanes<W>(1), nan);
  }
  return {largest_lane(largest), any_lane(nan)};
}

// Position of the first element equal to `value` in x[0, n), or n.
template <int W>
SEAMFAST_INLINE std::int64_t first_equal(const float* x, std::int64_t n, float value) {
  std::int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    if (any_lane(select(load_lanes<W>(x + c) == value, all_lanes<W>(1), Ints<W>{}))) break;
  while (c < n && x[c] != value) ++c;
  return c;
}

// Rows [row, row + lanes) of few classes, transposed: class c of row + l is at out[c * kLanes + l]; other lanes are 0.
template <class Type, int W>
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
      store_lanes(out + c * kLanes, Type::widen(load_lanes<W>(columns + c * kLanes)));
}

// The largest of each lane's column, where it first occurs, and which lanes hold NaN.
template <int W>
struct ColumnMaximum {
  Floats<W> value;
  Ints<W> place, nan;
};

template <int W>
SEAMFAST_INLINE ColumnMaximum<W> column_maximum(const float* x, std::int64_t classes) {
  ColumnMaximum<W> found{all_lanes<W>(-kInfinity), {}, {}};
  Ints<W> here{};  // c in all lanes: cheaper to count than to spread
  for (std::int64_t c = 0; c < classes; ++c, here = here + 1) {
    const Floats<W> v = load_lanes<W>(x + c * kLanes);
    // Strictly: the first of equals stays.
    found.place = select(v > found.value, here, found.place);
    found.value = select(v > found.value, v, found.value);
    found.nan = select(v != v, all_lanes<W>(1), found.nan);
  }
  return found;
}

}  // namespace seamfast
