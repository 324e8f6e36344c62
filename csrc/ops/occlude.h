// Rectangles pasted over images; and the mean image in their place, on a second copy.
//
// seamfast/ops/reference/occlude.py is the definition; this gives the same bits.

#pragma once

#include <cstdint>

namespace seamfast {

// So that no two of a sample's draws share a stream (philox.h).
inline constexpr std::int64_t kMaxRectangles = 64, kMaxOccludedChannels = 4088;

struct Occlude {
  const float* images;  // (count, channels, height, width), or (count, height, width, channels) if channels_last
  std::int64_t count, channels, height, width;
  bool channels_last;
  const float* mean;  // (channels, height, width)
  const float* lowest;  // a channel each, as reach
  const float* reach;
  // A side is one longer for each of these that a word reaches; ascending.
  const std::uint32_t* heights;
  const std::uint32_t* widths;
  std::int64_t n_heights, n_widths;  // below height and width
  const std::int64_t* sample_ids;
  std::int64_t n_rectangles;
  std::uint64_t seed;
  std::uint32_t step;
  float* occluded;  // like images
  float* neutral;   // like images
};

void occlude(const Occlude& job, int threads);

}  // namespace seamfast
