// The loss of few classes on the device: labels drawn, loss, gradient and count in one pass over the logits.
//
// seamfast/ops/reference/cross_entropy.py is the definition, seamfast/ops/triton/cross_entropy.py the twin: labels and
// count are the same bits, loss and gradient are computed in float32.

#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "data_path/pixels.h"

namespace seamfast::cuda {

inline constexpr std::int64_t kMaxClasses = 1024;  // so that a row stays in a warp's registers

// What a block adds to the sums over all rows.
struct LossPart {
  float loss;
  std::int32_t correct;
};
static_assert(sizeof(LossPart) == 8, "seamfast/ops/cuda allocates a part as one int64");

// Addresses are the device's. Element (i, c) of the logits is at logits + i * row_stride + c * column_stride.
struct LossJob {
  const void* logits;
  std::int64_t rows;
  std::int32_t classes;
  std::int64_t row_stride, column_stride;
  const std::int64_t* labels;
  const std::int64_t* sample_ids;    // null: train on the labels themselves
  const std::int64_t* mixed_labels;  // null: none
  const float* mixed_weight;
  Counter seed, step;
  bool exclude_true;
  float scale;  // of the sum over rows, and of the gradient
  bool each;    // a loss a row, not their sum
  float* loss;
  void* grad;  // of the logits' type, (rows, classes) contiguous; null: not wanted
  std::int64_t* n_correct;
  LossPart* parts;  // one a block; may be null where there is one block
  std::uint32_t blocks;
};

// How many blocks, and so parts, there are for so many rows and classes.
std::uint32_t loss_blocks(std::int64_t rows, std::int64_t classes) noexcept;

// `rows` is at least 1, `classes` in [2, kMaxClasses], `blocks` is `loss_blocks(rows, classes)`. A label out of range
// makes its row's loss NaN.
void cross_entropy(const LossJob& job, Element element, const Queue& queue);

}  // namespace seamfast::cuda
