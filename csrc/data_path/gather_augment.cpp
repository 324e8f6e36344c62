#include "data_path/gather_augment.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "philox.h"
#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int64_t;
using std::uint16_t;
using std::uint32_t;
using std::uint8_t;

// Pixels of one channel staged at a time: the stages of a band stay in the first-level cache at any image size.
constexpr int64_t kBandPixels = 4096;
// Waking a helper costs some 10 us; so much output takes about 50.
constexpr int64_t kBytesPerThread = 256 * 1024;
constexpr int kPixelValues = 256;

// ---- 1. A pixel to a value. It has 256 values: the definition is a table, and looking it up is always right. ----

// Not inlined into the wider instruction sets: there the compiler would use gather instructions, which are slower than
// plain loads, and many times slower on CPUs patched against Downfall (CVE-2022-40982).
template <class Bits>
__attribute__((noinline)) void look_up(const uint8_t* __restrict in, int64_t n, const Bits* __restrict table,
                                       Bits* __restrict out, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) out[i * stride] = table[in[i]];
}

// ---- 2. Arithmetic in place of the lookup, two to three times as fast in vectors, where it gives the same bits. ----
//
// Rather than prove for which arguments it does, each call tries all 256 pixels against the table, in some 100 ns. So
// the formulas below may be cheap: they need to hit the table for most normalisations, not for all.

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
  SEAMFAST_INLINE static Bits from(const Affine& f, uint8_t pixel) {
    const auto x = static_cast<float>(pixel);
    return (x * f.scale_head + f.bias_head) + (x * f.scale_tail + f.bias_tail);
  }
};

struct BFloat16 {
  using Bits = uint16_t;
  static constexpr bool kComputes = true;
  // Float32 is far more exact than the result, and ties, which this rounds up, are rare.
  SEAMFAST_INLINE static Bits from(const Affine& f, uint8_t pixel) {
    const float value = static_cast<float>(pixel) * f.scale + f.bias;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<Bits>((bits + 0x8000) >> 16);
  }
};

struct Float16 {  // narrowing to it without special instructions is no faster than the lookup
  using Bits = uint16_t;
  static constexpr bool kComputes = false;
  SEAMFAST_INLINE static Bits from(const Affine&, uint8_t) { return 0; }
};

// out[i * C + c] from rows[c][i].
template <class Out, int C>
SEAMFAST_INLINE void compute(const uint8_t* const* rows, int64_t n, const Affine* affine,
                             typename Out::Bits* __restrict out) {
  for (int64_t i = 0; i < n; ++i)
    for (int c = 0; c < C; ++c) out[i * C + c] = Out::from(affine[c], rows[c][i]);
}

template <bool kVectors, class Out>
SEAMFAST_INLINE bool matches(const GatherAugment& job, int64_t channel) {
  if (!kVectors || !Out::kComputes) return false;
  const Affine affine(job.scale[static_cast<std::size_t>(channel)], job.bias[static_cast<std::size_t>(channel)]);
  const auto* table = static_cast<const typename Out::Bits*>(job.table) + channel * kPixelValues;
  uint8_t pixels[kPixelValues];
  typename Out::Bits values[kPixelValues];
  for (int x = 0; x < kPixelValues; ++x) pixels[x] = static_cast<uint8_t>(x);
  const uint8_t* const rows[] = {pixels};
  compute<Out, 1>(rows, kPixelValues, &affine, values);
  return std::memcmp(values, table, sizeof values) == 0;
}

// ---- 3. Crop and flip, on bytes. ----

struct Crop {
  int64_t down, right;  // source row = row + down, source column = column + right, each reflected; in [-pad, pad]
  bool flip;
};

SEAMFAST_INLINE Crop draw_crop(const GatherAugment& job, int64_t sample) {
  const auto words = draw(job.seed, static_cast<std::uint64_t>(sample), job.epoch, Stream::kAugment);
  const auto offsets = static_cast<uint32_t>(2 * job.pad + 1);
  return {below(words[0], offsets) - job.pad, below(words[1], offsets) - job.pad, job.flip && (words[2] >> 31) != 0};
}

SEAMFAST_INLINE int64_t reflect(int64_t x, int64_t size) {
  if (x < 0) return -x;
  return x < size ? x : 2 * (size - 1) - x;
}

// Copies source rows [first, first + n), moved left by `right` and reflected at the sides. As all rows move alike they
// are one block of bytes. What that brings in from a neighbouring row (or leaves out, where it would lie outside the
// plane) is the few columns that are reflected; they are set afterwards, column by column, so that the inner loop is
// the long one.
SEAMFAST_INLINE void copy_rows(const uint8_t* plane, int64_t height, int64_t width, int64_t first, int64_t n,
                               int64_t right, uint8_t* out) {
  const int64_t begin = first * width + right;
  const int64_t from = std::max<int64_t>(begin, 0);
  const int64_t to = std::min(begin + n * width, height * width);
  if (from < to) std::memcpy(out + (from - begin), plane + from, static_cast<std::size_t>(to - from));

  const int64_t edge_begin = right < 0 ? 0 : width - right;
  const int64_t edge_end = right < 0 ? -right : width;
  for (int64_t x = edge_begin; x < edge_end; ++x) {
    const uint8_t* source = plane + first * width + reflect(x + right, width);
    for (int64_t i = 0; i < n; ++i) out[i * width + x] = source[i * width];
  }
}

// Output rows [y, y + n) of one plane, cropped.
SEAMFAST_INLINE void crop_rows(const uint8_t* plane, int64_t height, int64_t width, const Crop& crop, int64_t y,
                               int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n;) {
    const int64_t row = y + i + crop.down;
    const int64_t run = row >= 0 && row < height ? std::min(height - row, n - i) : 1;  // reflected rows run backwards
    copy_rows(plane, height, width, reflect(row, height), run, crop.right, out + i * width);
    i += run;
  }
}

SEAMFAST_INLINE void flip_rows(const uint8_t* __restrict in, int64_t n, int64_t width, uint8_t* __restrict out) {
  constexpr int kBlock = 16;  // a constant length: one shuffle, no remainder
  for (int64_t i = 0; i < n; ++i, in += width, out += width) {
    if (width < kBlock) {
      for (int64_t x = 0; x < width; ++x) out[x] = in[width - 1 - x];
      continue;
    }
    for (int64_t x = 0;; x = std::min(x + kBlock, width - kBlock)) {  // the last block may overlap the one before
      for (int j = 0; j < kBlock; ++j) out[x + j] = in[width - 1 - x - j];
      if (x == width - kBlock) break;
    }
  }
}

// ---- 4. One image after another, band by band. ----

struct Piece {
  const int64_t* indices;
  int64_t begin, end;
  std::array<bool, kMaxChannels> exact;  // channels whose values are computed, not looked up
};

// kMix: channels to interleave; 1 writes plane after plane.
template <class Out, int kMix>
SEAMFAST_INLINE void run(const GatherAugment& job, const Piece& piece) {
  using Bits = typename Out::Bits;
  const int64_t channels = job.channels, height = job.height, width = job.width;
  const int64_t plane_size = height * width, image_size = channels * plane_size;
  const int64_t band_rows = std::clamp<int64_t>(kBandPixels / width, 1, height);
  const int64_t band_size = band_rows * width;
  const std::unique_ptr<uint8_t[]> scratch(new uint8_t[static_cast<std::size_t>(2 * kMix * band_size)]);

  const auto* table = static_cast<const Bits*>(job.table);
  Affine affine[kMaxChannels];
  for (std::size_t c = 0; c < kMaxChannels; ++c) affine[c] = Affine(job.scale[c], job.bias[c]);
  const bool* exact = piece.exact.data();
  const bool all_exact = std::all_of(exact, exact + channels, [](bool yes) { return yes; });

  for (int64_t i = piece.begin; i < piece.end; ++i) {
    const uint8_t* image = job.images + piece.indices[i] * image_size;
    Bits* out = static_cast<Bits*>(job.out) + i * image_size;
    const Crop crop = job.pad > 0 || job.flip ? draw_crop(job, piece.indices[i]) : Crop{0, 0, false};

    for (int64_t y = 0; y < height; y += band_rows) {
      const int64_t rows = std::min(band_rows, height - y);
      const int64_t pixels = rows * width;
      const uint8_t* staged[kMix];
      for (int64_t c = 0; c < channels; ++c) {
        const uint8_t* plane = image + c * plane_size;
        const uint8_t* band = plane + y * width;
        uint8_t* spare = scratch.get() + 2 * (c % kMix) * band_size;
        if (crop.down != 0 || crop.right != 0) {
          crop_rows(plane, height, width, crop, y, rows, spare);
          band = spare;
          spare += band_size;
        }
        if (crop.flip) {
          flip_rows(band, rows, width, spare);
          band = spare;
        }
        staged[c % kMix] = band;
        if (kMix == 1) {
          Bits* plane_out = out + c * plane_size + y * width;
          if (exact[c])
            compute<Out, 1>(staged, pixels, affine + c, plane_out);
          else
            look_up(band, pixels, table + c * kPixelValues, plane_out, 1);
        }
      }
      if (kMix > 1) {
        Bits* band_out = out + y * width * kMix;
        if (all_exact)
          compute<Out, kMix>(staged, pixels, affine, band_out);
        else
          for (int c = 0; c < kMix; ++c) look_up(staged[c], pixels, table + c * kPixelValues, band_out + c, kMix);
      }
    }
  }
}

template <class Out>
SEAMFAST_INLINE void run_layout(const GatherAugment& job, const Piece& piece) {
  switch (job.channels_last ? job.channels : 1) {
    case 2:
      return run<Out, 2>(job, piece);
    case 3:
      return run<Out, 3>(job, piece);
    case 4:
      return run<Out, 4>(job, piece);
    default:
      return run<Out, 1>(job, piece);
  }
}

SEAMFAST_INLINE void run_element(const GatherAugment& job, const Piece& piece) {
  switch (job.element) {
    case Element::kFloat32:
      return run_layout<Float32>(job, piece);
    case Element::kBFloat16:
      return run_layout<BFloat16>(job, piece);
    case Element::kFloat16:
      return run_layout<Float16>(job, piece);
  }
}

// kVectors: whether vectors are wide enough for computing to be faster than looking up.
template <bool kVectors>
SEAMFAST_INLINE bool matches_element(const GatherAugment& job, int64_t channel) {
  switch (job.element) {
    case Element::kFloat32:
      return matches<kVectors, Float32>(job, channel);
    case Element::kBFloat16:
      return matches<kVectors, BFloat16>(job, channel);
    case Element::kFloat16:
      return matches<kVectors, Float16>(job, channel);
  }
  return false;
}

// ---- 5. The same source for each instruction set. ----

struct Level {
  void (*run)(const GatherAugment&, const Piece&);
  bool (*matches)(const GatherAugment&, int64_t channel);
};

#if defined(SEAMFAST_X86_LEVELS)
constexpr bool kBaselineVectors = false;  // SSE2 has 128 bits and widens bytes in two steps
#else
constexpr bool kBaselineVectors = true;
#endif

void run_baseline(const GatherAugment& job, const Piece& piece) { run_element(job, piece); }
bool matches_baseline(const GatherAugment& job, int64_t channel) {
  return matches_element<kBaselineVectors>(job, channel);
}

#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 void run_avx2(const GatherAugment& job, const Piece& piece) { run_element(job, piece); }
SEAMFAST_TARGET_AVX2 bool matches_avx2(const GatherAugment& job, int64_t channel) {
  return matches_element<true>(job, channel);
}

SEAMFAST_TARGET_AVX512 void run_avx512(const GatherAugment& job, const Piece& piece) { run_element(job, piece); }
SEAMFAST_TARGET_AVX512 bool matches_avx512(const GatherAugment& job, int64_t channel) {
  return matches_element<true>(job, channel);
}
#endif

Level level_of(Isa isa) noexcept {
#if defined(SEAMFAST_X86_LEVELS)
  if (isa == Isa::kAvx512) return {run_avx512, matches_avx512};
  if (isa == Isa::kAvx2) return {run_avx2, matches_avx2};
#endif
  static_cast<void>(isa);
  return {run_baseline, matches_baseline};
}

}  // namespace

std::array<bool, kMaxChannels> computed_channels(const GatherAugment& job, Isa isa) {
  std::array<bool, kMaxChannels> computed{};
  for (int64_t c = 0; c < job.channels; ++c) computed[static_cast<std::size_t>(c)] = level_of(isa).matches(job, c);
  return computed;
}

int64_t first_out_of_range(const std::vector<int64_t>& indices, int64_t count) noexcept {
  const auto bad = std::find_if(indices.begin(), indices.end(), [count](int64_t i) { return i < 0 || i >= count; });
  return bad == indices.end() ? -1 : bad - indices.begin();
}

void gather_augment(const GatherAugment& job, const std::vector<int64_t>& indices, Isa isa, int threads) {
  const auto batch = static_cast<int64_t>(indices.size());
  const int64_t image_bytes = job.channels * job.height * job.width * (job.element == Element::kFloat32 ? 4 : 2);
  const int64_t useful = std::max<int64_t>(1, batch * image_bytes / kBytesPerThread);
  threads = static_cast<int>(std::min<int64_t>(threads, useful));
  const int64_t pieces = int64_t{4} * threads;  // so that a thread that is held up does not hold up the others
  const int64_t grain = (batch + pieces - 1) / pieces;
  const auto exact = computed_channels(job, isa);
  const auto run = level_of(isa).run;
  ThreadPool::instance().parallel_for(batch, grain, threads, [&](int64_t begin, int64_t end) {
    run(job, {indices.data(), begin, end, exact});
  });
}

}  // namespace seamfast
