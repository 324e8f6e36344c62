// Cross-entropy on random or true labels: loss, gradient and count of correct predictions in one pass over the logits.
//
// seamfast/ops/reference/cross_entropy.py is the definition. Labels and count are the same bits; loss and gradient are
// computed in float32 and are the same bits on every instruction set and number of threads.

#pragma once

#include <cstdint>
#include <vector>

#include "ops/rows.h"

namespace seamfast {

enum class Reduction : int { kNone = 0, kSum = 1, kMean = 2 };

struct CrossEntropy {
  Logits logits;
  const std::int64_t* sample_ids;  // null: train on the labels themselves
  const float* mixed_weight;       // null: no mixed labels
  std::uint64_t seed;
  std::uint32_t step;
  bool exclude_true;
  Reduction reduction;
  float* loss;             // one, or a row each with kNone
  void* grad;              // of the logits' type, (rows, classes) contiguous; null: not wanted
  std::int64_t* n_correct;
};

// `labels` and, with `mixed_weight`, `mixed_labels` are in range. `isa` must be supported.
void cross_entropy(const CrossEntropy& job, const std::vector<std::int64_t>& labels,
                   const std::vector<std::int64_t>& mixed_labels, Isa isa, int threads);

}  // namespace seamfast
