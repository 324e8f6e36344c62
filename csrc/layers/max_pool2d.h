// 2-d max-pooling of images that lie channels last, in windows that neither overlap nor reach beyond the image.

#pragma once

#include <cstdint>

#include "isa.h"
#include "ops/rows.h"

namespace seamfast {

// The most pixels that a byte of the index can number.
inline constexpr std::int64_t kMaxWindow = 256;

struct MaxPool2d {
  LogitType type;  // float32 or bfloat16
  std::int64_t batch, channels, height, width;
  std::int64_t window_height, window_width;  // the strides too; rows and columns that fill no window are left out
  // The input is relu's result, and the gradient is that before it: where the largest is not above 0, the index
  // names no pixel, so that the backward pass sends nothing there.
  bool rectified = false;

  std::int64_t rows() const noexcept { return height / window_height; }
  std::int64_t columns() const noexcept { return width / window_width; }
};

// Writes the maxima and, where `index` is not null, which element of its window each is, row by row. The first of
// equals is taken, and NaN before any number, the last NaN of a window: PyTorch's choice.
void max_pool2d(const MaxPool2d& job, const void* input, void* output, std::uint8_t* index, Isa isa, int threads);

// Writes the whole gradient of the input: that of the output at the pixels of `index`, 0 elsewhere.
void max_pool2d_backward(const MaxPool2d& job, const void* grad_output, const std::uint8_t* index, void* grad_input,
                         Isa isa, int threads);

}  // namespace seamfast
