// From uint8 pixels to the input of a model: normalized, cast and laid out.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

namespace seamfast {

inline constexpr int kMaxChannels = 4;
inline constexpr int kPixelValues = 256;

enum class Element : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A batch of images as the model takes them.
struct PixelsOut {
  void* data;  // (batch, channels, height, width), or (batch, height, width, channels) if channels_last
  Element element;
  bool channels_last;
  std::int64_t channels, height, width;
  const void* table;  // (channels, 256) of the element: the value of every pixel, which is the definition
  std::array<double, kMaxChannels> scale, bias;  // what the table was made of: a hint for a faster way to the same bits
};

// Which channels are computed on `isa`; the others are looked up in the table. It changes the time and not one bit.
std::array<bool, kMaxChannels> computed_channels(const PixelsOut& to, Isa isa);

inline std::int64_t bytes_of_image(const PixelsOut& to) noexcept {
  return to.channels * to.height * to.width * (to.element == Element::kFloat32 ? 4 : 2);
}

// ---- A pixel to a value. It has 256 values: the definition is a table, and looking it up is always right. ----

// Not inlined into the wider instruction sets: there the compiler would use gather instructions, which are slower than
// plain loads, and many times slower on CPUs patched against Downfall (CVE-2022-40982).
template <class Bits>
__attribute__((noinline)) void look_up(const std::uint8_t* __restrict in, std::int64_t n, const Bits* __restrict table,
                                       Bits* __restrict out, std::int64_t stride) {
  for (std::int64_t i = 0; i < n; ++i) out[i * stride] = table[in[i]];
}

// ---- Arithmetic in place of the lookup, two to three times as fast in vectors, where it gives the same bits. ----
//
// Rather than prove for which arguments it does, each call tries all 256 pixels against the table, in some 100 ns. So
// the formulas below may be cheap: they need to hit the table for most normalizations, not for all.

struct Affine {
  float scale, bias;
  float scale_head, scale_tail, bias_head, bias_tail;  // scale_head + scale_tail is the scale to 40 bits; so the bias

  Affine() = default;
  Affine(double exact_scale, double exact_bias) {
    scale = static_cast<float>(exact_scale);
    bias = static_cast<float>(exact_bias);
    // Both heads are multiples of one power of two, and the scale's has 16 bits. A pixel has 8, so that
    // pixel * scale_head + bias_head is exact in the 24 bits of a float32, unless the mean is far off.
    const double step = std::ldexp(1.0, std::ilogb(exact_scale) - 15);
    const double scale_multiple = std::nearbyint(exact_scale / step) * step;
    const double bias_multiple = std::nearbyint(exact_bias / step) * step;
    scale_head = static_cast<float>(scale_multiple);
    scale_tail = static_cast<float>(exact_scale - scale_multiple);
    bias_head = static_cast<float>(bias_multiple);
    bias_tail = static_cast<float>(exact_bias - bias_multiple);
  }
};

struct Float32 {
  using Bits = float;
  static constexpr bool kComputes = true;
  // What comes of the heads is exact, so the last addition rounds the true value once, but for very close ties.
  SEAMFAST_INLINE static Bits from(const Affine& f, std::uint8_t pixel) {
    const auto x = static_cast<float>(pixel);
    return (x * f.scale_head + f.bias_head) + (x * f.scale_tail + f.bias_tail);
  }
};

struct BFloat16 {
  using Bits = std::uint16_t;
  static constexpr bool kComputes = true;
  // Float32 is far more exact than the result, and ties, which this rounds up, are rare.
  SEAMFAST_INLINE static Bits from(const Affine& f, std::uint8_t pixel) {
    const float value = static_cast<float>(pixel) * f.scale + f.bias;
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<Bits>((bits + 0x8000) >> 16);
  }
};

struct Float16 {  // narrowing to it without special instructions is no faster than the lookup
  using Bits = std::uint16_t;
  static constexpr bool kComputes = false;
  SEAMFAST_INLINE static Bits from(const Affine&, std::uint8_t) { return 0; }
};

// out[i * C + c] from rows[c][i].
template <class Out, int C>
SEAMFAST_INLINE void compute(const std::uint8_t* const* rows, std::int64_t n, const Affine* affine,
                             typename Out::Bits* __restrict out) {
  for (std::int64_t i = 0; i < n; ++i)
    for (int c = 0; c < C; ++c) out[i * C + c] = Out::from(affine[c], rows[c][i]);
}

template <bool kVectors, class Out>
SEAMFAST_INLINE bool matches(const PixelsOut& to, std::int64_t channel) {
  if (!kVectors || !Out::kComputes) return false;
  const Affine affine(to.scale[static_cast<std::size_t>(channel)], to.bias[static_cast<std::size_t>(channel)]);
  const auto* table = static_cast<const typename Out::Bits*>(to.table) + channel * kPixelValues;
  std::uint8_t pixels[kPixelValues];
  typename Out::Bits values[kPixelValues];
  for (int x = 0; x < kPixelValues; ++x) pixels[x] = static_cast<std::uint8_t>(x);
  const std::uint8_t* const rows[] = {pixels};
  compute<Out, 1>(rows, kPixelValues, &affine, values);
  return std::memcmp(values, table, sizeof values) == 0;
}

// One image's pixels, from planes to `out`, the image's place in the batch. kMix: channels to interleave; 1 writes plane
// after plane. `exact`: channels whose values are computed.
template <class Out, int kMix>
SEAMFAST_INLINE void write_image(const PixelsOut& to, const bool* exact, const Affine* affine,
                                 const std::uint8_t* const* planes, typename Out::Bits* out) {
  using Bits = typename Out::Bits;
  const auto* table = static_cast<const Bits*>(to.table);
  const std::int64_t pixels = to.height * to.width;
  if (kMix > 1 && std::all_of(exact, exact + kMix, [](bool yes) { return yes; })) {
    compute<Out, kMix>(planes, pixels, affine, out);
    return;
  }
  for (std::int64_t c = 0; c < to.channels; ++c) {
    if (kMix > 1)
      look_up(planes[c], pixels, table + c * kPixelValues, out + c, kMix);
    else if (exact[c])
      compute<Out, 1>(planes + c, pixels, affine + c, out + c * pixels);
    else
      look_up(planes[c], pixels, table + c * kPixelValues, out + c * pixels, 1);
  }
}

}  // namespace seamfast
