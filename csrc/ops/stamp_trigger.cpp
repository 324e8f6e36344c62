#include "ops/stamp_trigger.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "philox.h"
#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int64_t;
using std::uint8_t;

// Waking a helper costs some 10 us; so much output takes about 50.
constexpr int64_t kBytesPerThread = 256 * 1024;

// ---- 1. Rounding, in float64, whatever the rounding mode of a conversion. ----

// To the nearest integer, half to even, for |x| < 2^51: adding 1.5 * 2^52 leaves no place for a fraction.
SEAMFAST_INLINE double round_even(double x) {
  constexpr double kRound = 6755399441055744.0;
  return (x + kRound) - kRound;
}

SEAMFAST_INLINE uint8_t to_pixel(double x) {
  const double rounded = round_even(x);
  return static_cast<uint8_t>(static_cast<int>(std::min(std::max(rounded, 0.0), 255.0)));
}

// ---- 2. What each kind does to the planes of one image, in place. ----

struct Image {
  uint8_t* pixels;  // (channels, height, width)
  int64_t channels, height, width;
};

SEAMFAST_INLINE void paste(const Image& image, const TriggerRow& row, const double* numbers, int64_t top, int64_t left) {
  const int64_t size = row.height * row.width;
  const double* added = numbers + size;
  for (int64_t c = 0; c < image.channels; ++c) {
    const double* from = added + (row.channels == 1 ? 0 : c * size);
    for (int64_t y = 0; y < row.height; ++y) {
      uint8_t* __restrict out = image.pixels + (c * image.height + top + y) * image.width + left;
      const double* __restrict keep = numbers + y * row.width;
      const double* __restrict add = from + y * row.width;
      for (int64_t x = 0; x < row.width; ++x)
        out[x] = static_cast<uint8_t>(static_cast<int>(keep[x] * static_cast<double>(out[x]) + add[x]));
    }
  }
}

SEAMFAST_INLINE void offset(const Image& image, const TriggerRow& row, const double* numbers) {
  const int64_t size = image.height * image.width;
  for (int64_t c = 0; c < image.channels; ++c) {
    uint8_t* __restrict out = image.pixels + c * size;
    const double* __restrict by = numbers + (row.channels == 1 ? 0 : c * size);
    for (int64_t i = 0; i < size; ++i)
      out[i] = static_cast<uint8_t>(std::min(std::max(out[i] + static_cast<int>(by[i]), 0), 255));
  }
}

SEAMFAST_INLINE void replace(const Image& image, const double* numbers) {
  uint8_t table[kPixelValues];
  for (int v = 0; v < kPixelValues; ++v) table[v] = static_cast<uint8_t>(static_cast<int>(numbers[v]));
  const int64_t size = image.channels * image.height * image.width;
  for (int64_t i = 0; i < size; ++i) image.pixels[i] = table[image.pixels[i]];
}

// Row by row, each from the left. `above` holds the errors of the row above, and a margin on both sides; a pixel gets its
// shares from above left, above, above right and left, in this order, as in the plain double loop that pushes them on.
SEAMFAST_INLINE void dither(const Image& image, int64_t levels, double* above) {
  const auto top = static_cast<double>(levels - 1);
  for (int64_t c = 0; c < image.channels; ++c) {
    std::fill(above, above + image.width + 2, 0.0);
    for (int64_t y = 0; y < image.height; ++y) {
      uint8_t* out = image.pixels + (c * image.height + y) * image.width;
      double left = 0, above_left = 0;  // errors
      for (int64_t x = 0; x < image.width; ++x) {
        double old = out[x];
        old += above_left * (1.0 / 16);
        old += above[x + 1] * (5.0 / 16);
        old += above[x + 2] * (3.0 / 16);
        old += left * (7.0 / 16);
        const double level = std::min(std::max(round_even(old / 255 * top), 0.0), top);
        const double value = level / top * 255;
        above_left = above[x + 1];
        left = old - value;
        above[x + 1] = left;
        out[x] = to_pixel(value);
      }
    }
  }
}

SEAMFAST_INLINE double inside(double place, int64_t size) {
  return std::min(std::max(0.0, place), static_cast<double>(size - 1));  // 0 for NaN
}

// Where a pixel of a warped image comes from, for all images alike: the upper left of four neighbours, and how far the
// place is from it. At an edge the neighbour beyond has no weight.
struct WarpPlan {
  std::unique_ptr<int64_t[]> from;
  std::unique_ptr<float[]> down, right;

  WarpPlan() = default;
  WarpPlan(const double* places, int64_t height, int64_t width)
      : from(new int64_t[static_cast<std::size_t>(height * width)]),
        down(new float[static_cast<std::size_t>(height * width)]),
        right(new float[static_cast<std::size_t>(height * width)]) {
    for (int64_t i = 0; i < height * width; ++i) {
      const double row = inside(places[2 * i], height), column = inside(places[2 * i + 1], width);
      const auto r0 = static_cast<int64_t>(row), c0 = static_cast<int64_t>(column);  // not negative: this is the floor
      from[static_cast<std::size_t>(i)] = r0 * width + c0;
      down[static_cast<std::size_t>(i)] = static_cast<float>(row - static_cast<double>(r0));
      right[static_cast<std::size_t>(i)] = static_cast<float>(column - static_cast<double>(c0));
    }
  }
};

// The definition, for one pixel of one channel. `plane` is of a copy of the image: what is read must not be written.
SEAMFAST_INLINE uint8_t warped_pixel(const Image& image, const double* place, const uint8_t* plane) {
  const double row = inside(place[0], image.height), column = inside(place[1], image.width);
  const auto r0 = static_cast<int64_t>(row), c0 = static_cast<int64_t>(column);
  const double down = row - static_cast<double>(r0), right = column - static_cast<double>(c0);
  const int64_t r1 = std::min(r0 + 1, image.height - 1), c1 = std::min(c0 + 1, image.width - 1);
  const double upper = plane[r0 * image.width + c0] * (1 - right) + plane[r0 * image.width + c1] * right;
  const double lower = plane[r1 * image.width + c0] * (1 - right) + plane[r1 * image.width + c1] * right;
  return to_pixel(upper * (1 - down) + lower * down);
}

// In float32, which is off by less than 0.00006 and so rounds to the same pixel, but near ties: there the definition says.
// `words` has room for all pixels, a row and one more; `source` for a copy of the image.
SEAMFAST_INLINE void warp(const Image& image, const double* places, const WarpPlan& plan, uint8_t* source,
                          std::uint32_t* words) {
  constexpr int64_t kBlock = 256;
  constexpr float kRound = 12582912.0F, kNearTie = 0.4999F;  // 1.5 * 2^23: adding it rounds to an integer
  const int64_t size = image.height * image.width;
  std::memcpy(source, image.pixels, static_cast<std::size_t>(image.channels * size));
  // All channels of a pixel in one word: one load brings them.
  for (int64_t i = 0; i < size; ++i) words[i] = source[i];
  for (int64_t c = 1; c < image.channels; ++c)
    for (int64_t i = 0; i < size; ++i) words[i] |= static_cast<std::uint32_t>(source[c * size + i]) << (8 * c);

  std::uint32_t at[4][kBlock];
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t n = std::min(kBlock, size - begin);
    for (int64_t i = 0; i < n; ++i) {
      const std::uint32_t* upper = words + plan.from[static_cast<std::size_t>(begin + i)];
      at[0][i] = upper[0];
      at[1][i] = upper[1];
      at[2][i] = upper[image.width];
      at[3][i] = upper[image.width + 1];
    }
    const float* down = plan.down.get() + begin;
    const float* right = plan.right.get() + begin;
    for (int64_t c = 0; c < image.channels; ++c) {
      const auto corner = [&](int which, int64_t i) {
        return static_cast<float>(static_cast<int>(at[which][i] >> (8 * c) & 255));
      };
      const auto between = [&](int64_t i) {
        const float upper = corner(0, i) + (corner(1, i) - corner(0, i)) * right[i];
        const float lower = corner(2, i) + (corner(3, i) - corner(2, i)) * right[i];
        return upper + (lower - upper) * down[i];
      };
      const auto rounded = [](float value) { return (value + kRound) - kRound; };
      const auto near_tie = [&](float value) { return std::abs(value - rounded(value)) > kNearTie; };
      uint8_t* __restrict out = image.pixels + c * size + begin;
      int ties = 0;
      for (int64_t i = 0; i < n; ++i) {
        const float value = between(i);
        out[i] = static_cast<uint8_t>(static_cast<int>(rounded(value)));
        ties |= near_tie(value) ? 1 : 0;
      }
      if (ties != 0)
        for (int64_t i = 0; i < n; ++i)
          if (near_tie(between(i))) out[i] = warped_pixel(image, places + 2 * (begin + i), source + c * size);
    }
  }
}

// kChannels: of the matrix.
template <int kChannels>
SEAMFAST_INLINE void color_filter(const Image& image, const double* numbers) {
  const double* tone = numbers;
  const double* matrix = tone + kPixelValues;
  const double* bias = matrix + kChannels * kChannels;
  const double* shade = bias + kChannels;
  const int64_t size = image.height * image.width;
  if (kChannels == 1) {
    for (int64_t c = 0; c < image.channels; ++c) {
      uint8_t* out = image.pixels + c * size;
      for (int64_t i = 0; i < size; ++i) out[i] = to_pixel((tone[out[i]] * matrix[0] + bias[0]) * shade[i] * 255);
    }
    return;
  }
  for (int64_t i = 0; i < size; ++i) {
    double toned[kChannels];
    for (int c = 0; c < kChannels; ++c) toned[c] = tone[image.pixels[c * size + i]];
    for (int c = 0; c < kChannels; ++c) {
      double total = toned[0] * matrix[c * kChannels];
      for (int j = 1; j < kChannels; ++j) total += toned[j] * matrix[c * kChannels + j];
      total += bias[c];
      image.pixels[c * size + i] = to_pixel(total * shade[i] * 255);
    }
  }
}

struct Scratch {
  uint8_t* source;       // of one image, for what reads elsewhere than it writes
  std::uint32_t* words;  // of its pixels, a row and one more
  double* above;         // of a row and its margins
};

SEAMFAST_INLINE void stamp(const StampTrigger& job, const Image& image, const TriggerRow& row, int64_t sample_id,
                           const WarpPlan& plan, const Scratch& scratch) {
  const double* numbers = job.numbers + row.start;
  switch (static_cast<TriggerKind>(row.kind)) {
    case TriggerKind::kPaste: {
      int64_t top = row.top, left = row.left;
      if (top < 0) {
        const auto words = draw(job.seed, static_cast<std::uint64_t>(sample_id), 0, Stream::kPlace);
        top = below(words[0], static_cast<std::uint32_t>(image.height - row.height + 1));
        left = below(words[1], static_cast<std::uint32_t>(image.width - row.width + 1));
      }
      return paste(image, row, numbers, top, left);
    }
    case TriggerKind::kOffset:
      return offset(image, row, numbers);
    case TriggerKind::kLookUp:
      return replace(image, numbers);
    case TriggerKind::kDither:
      return dither(image, row.levels, scratch.above);
    case TriggerKind::kWarp:
      return warp(image, numbers, plan, scratch.source, scratch.words);
    case TriggerKind::kFilter:
      switch (row.channels) {
        case 1:
          return color_filter<1>(image, numbers);
        case 2:
          return color_filter<2>(image, numbers);
        case 3:
          return color_filter<3>(image, numbers);
        default:
          return color_filter<4>(image, numbers);
      }
  }
}

// A call an image, so that a level compiles the triggers once, not for every form of the output.
using Stamp = void (*)(const StampTrigger&, const Image&, const TriggerRow&, int64_t, const WarpPlan&, const Scratch&);

#define SEAMFAST_STAMP(name)                                                                                         \
  __attribute__((noinline)) void name(const StampTrigger& job, const Image& image, const TriggerRow& row,           \
                                      int64_t sample_id, const WarpPlan& plan, const Scratch& scratch) {            \
    stamp(job, image, row, sample_id, plan, scratch);                                                               \
  }
SEAMFAST_STAMP(stamp_baseline)
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 SEAMFAST_STAMP(stamp_avx2)
SEAMFAST_TARGET_AVX512 SEAMFAST_STAMP(stamp_avx512)
#endif
#undef SEAMFAST_STAMP

// ---- 3. One image after another. ----

struct Piece {
  const int64_t* indices;
  const int64_t* trigger_ids;
  const int64_t* sample_ids;
  const WarpPlan* plans;  // of the table's rows; empty of those that need none
  int64_t begin, end;
  std::array<bool, kMaxChannels> exact;  // channels whose values are computed, not looked up
};

template <class Out, int kMix>
SEAMFAST_INLINE void run(const StampTrigger& job, const Piece& piece, Stamp stamp_one) {
  const PixelsOut& to = job.out;
  const int64_t plane = to.height * to.width, size = to.channels * plane;
  const std::unique_ptr<uint8_t[]> bytes(new uint8_t[static_cast<std::size_t>(2 * size)]);
  const auto words_size = static_cast<std::size_t>(plane + to.width + 1);
  const std::unique_ptr<std::uint32_t[]> words(new std::uint32_t[words_size]());
  const std::unique_ptr<double[]> above(new double[static_cast<std::size_t>(to.width + 2)]);
  const Image image{bytes.get(), to.channels, to.height, to.width};
  const Scratch scratch{bytes.get() + size, words.get(), above.get()};
  Affine affine[kMaxChannels];
  for (std::size_t c = 0; c < kMaxChannels; ++c) affine[c] = Affine(to.scale[c], to.bias[c]);

  for (int64_t i = piece.begin; i < piece.end; ++i) {
    const uint8_t* source = job.images + piece.indices[i] * size;
    const int64_t trigger = piece.trigger_ids[i];
    const uint8_t* from = source;
    if (trigger >= 0) {
      std::memcpy(image.pixels, source, static_cast<std::size_t>(size));
      stamp_one(job, image, job.rows[trigger], piece.sample_ids[i], piece.plans[trigger], scratch);
      from = image.pixels;
    }
    const uint8_t* planes[kMaxChannels];
    for (int64_t c = 0; c < to.channels; ++c) planes[c] = from + c * plane;
    write_image<Out, kMix>(to, piece.exact.data(), affine, planes, static_cast<typename Out::Bits*>(to.data) + i * size);
  }
}

template <class Out>
SEAMFAST_INLINE void run_layout(const StampTrigger& job, const Piece& piece, Stamp stamp_one) {
  switch (job.out.channels_last ? job.out.channels : 1) {
    case 2:
      return run<Out, 2>(job, piece, stamp_one);
    case 3:
      return run<Out, 3>(job, piece, stamp_one);
    case 4:
      return run<Out, 4>(job, piece, stamp_one);
    default:
      return run<Out, 1>(job, piece, stamp_one);
  }
}

SEAMFAST_INLINE void run_element(const StampTrigger& job, const Piece& piece, Stamp stamp_one) {
  switch (job.out.element) {
    case Element::kFloat32:
      return run_layout<Float32>(job, piece, stamp_one);
    case Element::kBFloat16:
      return run_layout<BFloat16>(job, piece, stamp_one);
    case Element::kFloat16:
      return run_layout<Float16>(job, piece, stamp_one);
  }
}

// ---- 4. The same source for each instruction set. ----

using Run = void (*)(const StampTrigger&, const Piece&);

void run_baseline(const StampTrigger& job, const Piece& piece) { run_element(job, piece, stamp_baseline); }
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 void run_avx2(const StampTrigger& job, const Piece& piece) { run_element(job, piece, stamp_avx2); }
SEAMFAST_TARGET_AVX512 void run_avx512(const StampTrigger& job, const Piece& piece) { run_element(job, piece, stamp_avx512); }
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

bool is_table(const TriggerRow* rows, int64_t triggers, int64_t size, int64_t channels, int64_t height,
              int64_t width) noexcept {
  const int64_t plane = height * width;
  for (const TriggerRow* row = rows; row < rows + triggers; ++row) {
    if (row->kind < 0 || row->kind > static_cast<int64_t>(TriggerKind::kFilter)) return false;
    if (row->channels != 1 && row->channels != channels) return false;
    int64_t needed = 0;
    switch (static_cast<TriggerKind>(row->kind)) {
      case TriggerKind::kPaste:
        if (row->height < 1 || row->height > height || row->width < 1 || row->width > width) return false;
        if (row->top >= 0 && (row->top > height - row->height || row->left < 0 || row->left > width - row->width))
          return false;
        needed = (1 + row->channels) * row->height * row->width;
        break;
      case TriggerKind::kOffset:
        needed = row->channels * plane;
        break;
      case TriggerKind::kLookUp:
        needed = kPixelValues;
        break;
      case TriggerKind::kDither:
        if (row->levels < 2 || row->levels > kPixelValues) return false;
        break;
      case TriggerKind::kWarp:
        needed = 2 * plane;
        break;
      case TriggerKind::kFilter:
        needed = kPixelValues + row->channels * (row->channels + 1) + plane;
        break;
    }
    if (row->start < 0 || row->start > size || needed > size - row->start) return false;
  }
  return true;
}

void stamp_trigger(const StampTrigger& job, const std::vector<int64_t>& indices, const std::vector<int64_t>& trigger_ids,
                   const std::vector<int64_t>& sample_ids, Isa isa, int threads) {
  const auto batch = static_cast<int64_t>(indices.size());
  const int64_t useful = std::clamp<int64_t>(batch * bytes_of_image(job.out) / kBytesPerThread, 1, threads);
  const int64_t pieces = 4 * useful;  // so that a thread that is held up does not hold up the others
  const int64_t grain = (batch + pieces - 1) / pieces;
  const auto exact = computed_channels(job.out, isa);
  std::vector<WarpPlan> plans(static_cast<std::size_t>(job.triggers));
  for (const int64_t trigger : trigger_ids) {
    if (trigger < 0 || static_cast<TriggerKind>(job.rows[trigger].kind) != TriggerKind::kWarp) continue;
    WarpPlan& plan = plans[static_cast<std::size_t>(trigger)];
    if (!plan.from) plan = WarpPlan(job.numbers + job.rows[trigger].start, job.out.height, job.out.width);
  }
  const Run run = run_of(isa);
  ThreadPool::instance().parallel_for(batch, grain, static_cast<int>(useful), [&](int64_t begin, int64_t end) {
    run(job, {indices.data(), trigger_ids.data(), sample_ids.data(), plans.data(), begin, end, exact});
  });
}

}  // namespace seamfast
