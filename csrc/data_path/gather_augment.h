// A batch from uint8 images: gather, reflect-pad and crop, flip, normalize, cast and lay out, in one pass over the
// output.
//
// seamfast/ops/reference/gather_augment.py is the definition; this gives the same bits.

#pragma once

#include <cstdint>
#include <vector>

#include "data_path/pixels.h"

namespace seamfast {

struct GatherAugment {
  const std::uint8_t* images;  // (count, channels, height, width), contiguous
  std::int64_t count;
  PixelsOut out;
  std::int64_t pad;  // below height and width
  bool flip;
  std::uint64_t seed;
  std::uint32_t epoch;
};

// Writes image `indices[i]` for each of `indices`, all in range, on at most `threads` threads. `isa` must be supported.
void gather_augment(const GatherAugment& job, const std::vector<std::int64_t>& indices, Isa isa, int threads);

}  // namespace seamfast
