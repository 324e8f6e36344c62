#include "data_path/gather_augment.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "philox.h"
#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int64_t;
using std::uint32_t;
using std::uint8_t;

// Pixels of one channel staged at a time: the stages of a band stay in the first-level cache at any image size.
constexpr int64_t kBandPixels = 4096;
// Waking a helper costs some 10 us; so much output takes about 50.
constexpr int64_t kBytesPerThread = 256 * 1024;

// ---- 1. Crop and flip, on bytes. ----

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

// ---- 2. One image after another, band by band. ----

struct Piece {
  const int64_t* indices;
  int64_t begin, end;
  std::array<bool, kMaxChannels> exact;  // channels whose values are computed, not looked up
};

// kMix: channels to interleave; 1 writes plane after plane.
template <class Out, int kMix>
SEAMFAST_INLINE void run(const GatherAugment& job, const Piece& piece) {
  using Bits = typename Out::Bits;
  const int64_t channels = job.out.channels, height = job.out.height, width = job.out.width;
  const int64_t plane_size = height * width, image_size = channels * plane_size;
  const int64_t band_rows = std::clamp<int64_t>(kBandPixels / width, 1, height);
  const int64_t band_size = band_rows * width;
  const std::unique_ptr<uint8_t[]> scratch(new uint8_t[static_cast<std::size_t>(2 * kMix * band_size)]);

  const auto* table = static_cast<const Bits*>(job.out.table);
  Affine affine[kMaxChannels];
  for (std::size_t c = 0; c < kMaxChannels; ++c) affine[c] = Affine(job.out.scale[c], job.out.bias[c]);
  const bool* exact = piece.exact.data();
  const bool all_exact = std::all_of(exact, exact + channels, [](bool yes) { return yes; });

  for (int64_t i = piece.begin; i < piece.end; ++i) {
    const uint8_t* image = job.images + piece.indices[i] * image_size;
    Bits* out = static_cast<Bits*>(job.out.data) + i * image_size;
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
  switch (job.out.channels_last ? job.out.channels : 1) {
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
  switch (job.out.element) {
    case Element::kFloat32:
      return run_layout<Float32>(job, piece);
    case Element::kBFloat16:
      return run_layout<BFloat16>(job, piece);
    case Element::kFloat16:
      return run_layout<Float16>(job, piece);
  }
}

// ---- 3. The same source for each instruction set. ----

using Run = void (*)(const GatherAugment&, const Piece&);

void run_baseline(const GatherAugment& job, const Piece& piece) { run_element(job, piece); }
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 void run_avx2(const GatherAugment& job, const Piece& piece) { run_element(job, piece); }
SEAMFAST_TARGET_AVX512 void run_avx512(const GatherAugment& job, const Piece& piece) { run_element(job, piece); }
#endif

Run run_of(Isa isa) noexcept {
#if defined(SEAMFAST_X86_LEVELS)
  if (isa == Isa::kAvx512) return run_avx512;
  if (isa == Isa::kAvx2) return run_avx2;
#endif
  static_cast<void>(isa);
  return run_baseline;
}

}  // namespace

void gather_augment(const GatherAugment& job, const std::vector<int64_t>& indices, Isa isa, int threads) {
  const auto batch = static_cast<int64_t>(indices.size());
  const int64_t useful = std::max<int64_t>(1, batch * bytes_of_image(job.out) / kBytesPerThread);
  threads = static_cast<int>(std::min<int64_t>(threads, useful));
  const int64_t pieces = int64_t{4} * threads;  // so that a delayed thread does not delay the others
  const int64_t grain = (batch + pieces - 1) / pieces;
  const auto exact = computed_channels(job.out, isa);
  const auto run = run_of(isa);
  ThreadPool::instance().parallel_for(batch, grain, threads, [&](int64_t begin, int64_t end) {
    run(job, {indices.data(), begin, end, exact});
  });
}

}  // namespace seamfast
