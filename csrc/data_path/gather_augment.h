// A batch from uint8 images: gather, reflect-pad and crop, flip, normalise, cast and lay out, in one pass over the
// output.
//
// seamfast/ops/reference.py is the definition; this gives the same bits.

#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "isa.h"

namespace seamfast {

inline constexpr int kMaxChannels = 4;

enum class Element : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct GatherAugment {
  const std::uint8_t* images;  // (count, channels, height, width), contiguous
  std::int64_t count, channels, height, width;
  void* out;  // (batch, channels, height, width), or (batch, height, width, channels) if channels_last
  Element element;
  bool channels_last;
  const void* table;  // (channels, 256) of the output's element: the value of every pixel, which is the definition
  std::array<double, kMaxChannels> scale, bias;  // what the table was made of: a hint for a faster way to the same bits
  std::int64_t pad;  // below height and width
  bool flip;
  std::uint64_t seed;
  std::uint32_t epoch;
};

// The position of the first index outside [0, count), or -1.
std::int64_t first_out_of_range(const std::vector<std::int64_t>& indices, std::int64_t count) noexcept;

// Which channels are computed on `isa`; the others are looked up in the table. It changes the time and not one bit.
std::array<bool, kMaxChannels> computed_channels(const GatherAugment& job, Isa isa);

// Writes out[i] for each of `indices`, all in range, on at most `threads` threads. `isa` must be supported.
void gather_augment(const GatherAugment& job, const std::vector<std::int64_t>& indices, Isa isa, int threads);

}  // namespace seamfast
