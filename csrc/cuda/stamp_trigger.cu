// Arithmetic is float64, one rounding an operation, as the definition is: the build forbids fused multiply-adds.

#include "cuda/stamp_trigger.h"

#include <algorithm>
#include <type_traits>

#include "philox.h"

namespace seamfast::cuda {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint8_t;

constexpr int kWarp = 32, kThreads = 256, kDitherThreads = 64;
constexpr int64_t kMaxBlocks = 8192;  // more than a device holds; they stride over more images

// clip(round(x), 0, 255), half to even.
__device__ int to_pixel(double x) { return static_cast<int>(fmin(fmax(rint(x), 0.0), 255.0)); }

// Where pixel `p` of channel `c` lies in an image of the result.
__device__ int32_t place_of(bool channels_last, int32_t channels, int32_t plane, int32_t c, int32_t p) {
  return channels_last ? p * channels + c : c * plane + p;
}

// ---- 1. What each kind but dithering does to pixel `p` of one image. ----

template <int kChannels>
__device__ void paste(const StampJob& job, const TriggerRow& row, const double* numbers, int64_t sample, int32_t p,
                      int* pixel) {
  int64_t top = row.top, left = row.left;
  if (top < 0) {
    const auto words = draw(value_of(job.seed), static_cast<std::uint64_t>(job.sample_ids[sample]), 0, Stream::kPlace);
    top = below(words[0], static_cast<std::uint32_t>(job.height - row.height + 1));
    left = below(words[1], static_cast<std::uint32_t>(job.width - row.width + 1));
  }
  const int64_t y = p / job.width - top, x = p % job.width - left;
  if (y < 0 || y >= row.height || x < 0 || x >= row.width) return;
  const int64_t size = row.height * row.width, at = y * row.width + x;
  for (int c = 0; c < kChannels; ++c) {
    const double added = numbers[(row.channels == 1 ? 1 : 1 + c) * size + at];
    pixel[c] = static_cast<int>(numbers[at] * pixel[c] + added);
  }
}

template <int kChannels>
__device__ void warp(const StampJob& job, const double* numbers, const uint8_t* image, int32_t p, int* pixel) {
  const double row = fmin(fmax(numbers[2 * int64_t{p}], 0.0), job.height - 1.0);
  const double column = fmin(fmax(numbers[2 * int64_t{p} + 1], 0.0), job.width - 1.0);
  const auto r0 = static_cast<int32_t>(row), c0 = static_cast<int32_t>(column);  // not negative: this is the floor
  const double down = row - r0, right = column - c0;
  const int32_t r1 = min(r0 + 1, job.height - 1), c1 = min(c0 + 1, job.width - 1), plane = job.height * job.width;
  for (int c = 0; c < kChannels; ++c) {
    const auto at = [&](int32_t y, int32_t x) {
      return static_cast<double>(image[c * plane + y * job.width + x]);
    };
    const double upper = at(r0, c0) * (1 - right) + at(r0, c1) * right;
    const double lower = at(r1, c0) * (1 - right) + at(r1, c1) * right;
    pixel[c] = to_pixel(upper * (1 - down) + lower * down);
  }
}

template <int kChannels>
__device__ void filter(const TriggerRow& row, const double* numbers, int32_t p, int* pixel) {
  const double* matrix = numbers + kPixelValues;
  const double* bias = matrix + row.channels * row.channels;
  const double shade = bias[row.channels + p];
  double tone[kChannels];
  for (int c = 0; c < kChannels; ++c) tone[c] = numbers[pixel[c]];
  for (int c = 0; c < kChannels; ++c) {
    double total;
    if (row.channels == 1) {
      total = tone[c] * matrix[0] + bias[0];
    } else {
      total = tone[0] * matrix[c * kChannels];
      for (int j = 1; j < kChannels; ++j) total += tone[j] * matrix[c * kChannels + j];
      total += bias[c];
    }
    pixel[c] = to_pixel(total * shade * 255);
  }
}

template <int kChannels>
__device__ void stamp(const StampJob& job, const TriggerRow& row, const uint8_t* image, int64_t sample, int32_t p,
                      int* pixel) {
  const double* numbers = job.numbers + row.start;
  switch (static_cast<TriggerKind>(row.kind)) {
    case TriggerKind::kPaste:
      return paste<kChannels>(job, row, numbers, sample, p, pixel);
    case TriggerKind::kOffset:
      for (int c = 0; c < kChannels; ++c) {
        const int64_t own = row.channels == 1 ? 0 : c;
        pixel[c] = min(max(pixel[c] + static_cast<int>(numbers[own * job.height * job.width + p]), 0), 255);
      }
      return;
    case TriggerKind::kLookUp:
      for (int c = 0; c < kChannels; ++c) pixel[c] = static_cast<int>(numbers[pixel[c]]);
      return;
    case TriggerKind::kDither:
      return;  // the next kernel writes over it
    case TriggerKind::kWarp:
      return warp<kChannels>(job, numbers, image, p, pixel);
    case TriggerKind::kFilter:
      return filter<kChannels>(row, numbers, p, pixel);
  }
}

// ---- 2. The kernels. ----

// A thread a pixel, all its channels; a block a part of one image, whose trigger it shares. Bits: of an element.
template <class Bits, int kChannels>
__global__ void __launch_bounds__(kThreads) pixels_kernel(const StampJob job) {
  const int32_t plane = job.height * job.width, threads = static_cast<int32_t>(blockDim.x);
  const int32_t parts = (plane + threads - 1) / threads;
  for (int64_t item = blockIdx.x; item < job.batch * parts; item += gridDim.x) {
    const int64_t sample = item / parts;
    const int32_t p = static_cast<int32_t>(item % parts) * threads + static_cast<int32_t>(threadIdx.x);
    if (p >= plane) continue;
    const int64_t index = job.indices[sample], trigger = job.trigger_ids[sample];
    Bits* out = static_cast<Bits*>(job.out) + sample * kChannels * plane;
    if (index < 0 || index >= job.count || trigger < -1 || trigger >= job.triggers) {
      for (int c = 0; c < kChannels; ++c)
        out[place_of(job.channels_last, kChannels, plane, c, p)] = static_cast<Bits>(job.nan);
      continue;
    }
    const uint8_t* image = job.images + index * kChannels * plane;
    int pixel[kChannels];
    for (int c = 0; c < kChannels; ++c) pixel[c] = image[c * plane + p];
    if (trigger >= 0) stamp<kChannels>(job, job.rows[trigger], image, sample, p, pixel);
    const Bits* table = static_cast<const Bits*>(job.table);
    for (int c = 0; c < kChannels; ++c)
      out[place_of(job.channels_last, kChannels, plane, c, p)] = table[c * kPixelValues + pixel[c]];
  }
}

// A thread a plane, pixel by pixel: each needs the errors of its neighbours, from above left, above, above right and
// left, added in this order, as in the plain double loop that pushes them on.
template <class Bits>
__global__ void __launch_bounds__(kDitherThreads) dither_kernel(const StampJob job) {
  const int32_t plane = job.height * job.width;
  const int64_t planes = job.batch * job.channels;
  for (int64_t n = int64_t{blockIdx.x} * kDitherThreads + threadIdx.x; n < planes;
       n += int64_t{gridDim.x} * kDitherThreads) {
    const int64_t sample = n / job.channels;
    const auto c = static_cast<int32_t>(n % job.channels);
    const int64_t index = job.indices[sample], trigger = job.trigger_ids[sample];
    if (index < 0 || index >= job.count || trigger < 0 || trigger >= job.triggers) continue;
    const TriggerRow& row = job.rows[trigger];
    if (row.kind != static_cast<int64_t>(TriggerKind::kDither)) continue;
    const auto top = static_cast<double>(row.levels - 1);
    const uint8_t* image = job.images + index * job.channels * plane;
    Bits* out = static_cast<Bits*>(job.out) + sample * job.channels * plane;
    const Bits* table = static_cast<const Bits*>(job.table) + c * kPixelValues;
    double* above = job.above + n;  // neighbours in a row are `planes` apart, so that threads read side by side

    for (int32_t y = 0; y < job.height; ++y) {
      double left = 0, above_left = 0;  // errors, as `above` holds them
      for (int32_t x = 0; x < job.width; ++x) {
        const int32_t p = y * job.width + x;
        const double here = y > 0 ? above[x * planes] : 0;
        const double above_right = y > 0 && x + 1 < job.width ? above[(x + 1) * planes] : 0;
        double old = image[c * plane + p];
        old += above_left * (1.0 / 16);
        old += here * (5.0 / 16);
        old += above_right * (3.0 / 16);
        old += left * (7.0 / 16);
        const double value = fmin(fmax(rint(old / 255 * top), 0.0), top) / top * 255;
        left = old - value;
        above_left = here;
        above[x * planes] = left;
        out[place_of(job.channels_last, job.channels, plane, c, p)] = table[to_pixel(value)];
      }
    }
  }
}

// ---- 3. The launches. ----

template <class Bits, int kChannels>
void launch_pixels(const StampJob& job, const Queue& queue) {
  const int64_t plane = int64_t{job.height} * job.width;
  const auto threads = static_cast<int>(std::min<int64_t>((plane + kWarp - 1) / kWarp * kWarp, kThreads));
  const int64_t blocks = job.batch * ((plane + threads - 1) / threads);
  launch("stamp_trigger", &pixels_kernel<Bits, kChannels>, std::min(blocks, kMaxBlocks), threads, job, queue);
}

template <class Bits>
void launch_all(const StampJob& job, const Queue& queue) {
  switch (job.channels) {
    case 1:
      launch_pixels<Bits, 1>(job, queue);
      break;
    case 2:
      launch_pixels<Bits, 2>(job, queue);
      break;
    case 3:
      launch_pixels<Bits, 3>(job, queue);
      break;
    default:
      launch_pixels<Bits, 4>(job, queue);
  }
  if (job.above == nullptr) return;
  const int64_t blocks = (job.batch * job.channels + kDitherThreads - 1) / kDitherThreads;
  launch("stamp_trigger's dithering", &dither_kernel<Bits>, std::min(blocks, kMaxBlocks), kDitherThreads, job, queue);
}

}  // namespace

void stamp_trigger(const StampJob& job, Element element, const Queue& queue) {
  use(queue);
  if (element == Element::kFloat32)
    launch_all<std::uint32_t>(job, queue);
  else
    launch_all<std::uint16_t>(job, queue);
}

}  // namespace seamfast::cuda
