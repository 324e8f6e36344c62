// Batch normalization in training mode, of rows of channels: images that lie channels last.
//
// Sums are over the same rows in the same order whatever the threads and the instruction set. Chunks of rows add up in
// float32, shifted by a value near the mean so that nothing large cancels; chunks in float64.

#pragma once

#include <cstdint>

#include "isa.h"
#include "ops/rows.h"

namespace seamfast {

struct BatchNorm {
  LogitType type;  // of input, output and their gradients: float32 or bfloat16
  std::int64_t rows, channels;
  const void* input;
  const float* weight;  // null: 1
  float* mean;          // of each channel; the forward pass writes both, the backward pass reads them
  float* inverse_std;
};

struct RunningStatistics {
  float* mean;      // or null, both
  float* variance;  // takes in the unbiased one, so there must be two rows
  double momentum;
};

// output = (input - mean) / sqrt(variance + epsilon) * weight + bias. A null `bias` is 0.
void batch_norm(const BatchNorm& job, const float* bias, double epsilon, const RunningStatistics& running, void* output,
                Isa isa, int threads);

// Writes the gradients of the weight and of the bias and, where `grad_input` is not null, that of the input.
void batch_norm_backward(const BatchNorm& job, const void* grad_output, float* grad_weight, float* grad_bias,
                         void* grad_input, Isa isa, int threads);

}  // namespace seamfast
