// A batch of triggered images from uint8 images on the device: gather, stamp, normalize, cast and lay out in one pass.
//
// seamfast/ops/reference/stamp_trigger.py is the definition, seamfast/ops/triton/stamp_trigger.py the twin: the same
// bits.

#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "ops/stamp_trigger.h"

namespace seamfast::cuda {

// So that places in an image are 32-bit integers, which are faster to divide.
inline constexpr std::int64_t kMaxImage = std::int64_t{1} << 30;

// Addresses are the device's.
struct StampJob {
  const std::uint8_t* images;  // (count, channels, height, width), contiguous
  std::int64_t count;
  std::int32_t channels, height, width;
  const std::int64_t* indices;
  const std::int64_t* trigger_ids;
  const std::int64_t* sample_ids;
  std::int64_t batch;
  const TriggerRow* rows;
  std::int64_t triggers;
  const double* numbers;
  const void* table;  // (channels, 256) of the element: the value of every pixel
  std::uint32_t nan;  // of the element
  Counter seed;
  void* out;  // (batch, channels, height, width), or (batch, height, width, channels) if channels_last
  bool channels_last;
  double* above;  // (width, batch * channels), for dithering; null: no trigger dithers
};

// Writes image `indices[i]` under trigger `trigger_ids[i]`, or -1 for none; what is out of range makes its image NaN.
// `batch` is at least 1, an image's size at most kMaxImage.
void stamp_trigger(const StampJob& job, Element element, const Queue& queue);

}  // namespace seamfast::cuda
