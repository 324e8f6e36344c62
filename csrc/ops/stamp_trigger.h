// A batch of triggered images from uint8 images: gather, stamp, normalize, cast and lay out, image by image.
//
// seamfast/ops/reference/stamp_trigger.py is the definition; this gives the same bits.

#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "data_path/pixels.h"

namespace seamfast {

// The kinds and the columns of a trigger table are defined in seamfast/ops/trigger_table.py.
enum class TriggerKind : std::int64_t { kPaste = 0, kOffset = 1, kLookUp = 2, kDither = 3, kWarp = 4, kFilter = 5 };

struct TriggerRow {
  std::int64_t kind, start, channels, height, width, top, left, levels;
};

struct StampTrigger {
  const std::uint8_t* images;  // (count, channels, height, width), contiguous
  std::int64_t count;
  PixelsOut out;  // of the batch
  const TriggerRow* rows;
  std::int64_t triggers;
  const double* numbers;
  std::uint64_t seed;
};

// Whether every row is one that a table may hold for images of this shape, with `size` numbers.
bool is_table(const TriggerRow* rows, std::int64_t triggers, std::int64_t size, std::int64_t channels,
              std::int64_t height, std::int64_t width) noexcept;

// Writes image `indices[i]` under trigger `trigger_ids[i]`, or -1 for none. All are in range; `isa` must be supported.
void stamp_trigger(const StampTrigger& job, const std::vector<std::int64_t>& indices,
                   const std::vector<std::int64_t>& trigger_ids, const std::vector<std::int64_t>& sample_ids, Isa isa,
                   int threads);

}  // namespace seamfast
