// Outcomes of a batch of logits, added to int64 counters.
//
// seamfast/ops/reference/count_outcomes.py is the definition; this gives the same numbers.

#pragma once

#include <cstdint>
#include <vector>

#include "ops/rows.h"

namespace seamfast {

// The columns of the counters; seamfast/ops/count_outcomes.py names them.
inline constexpr int kOutcomes = 6;

struct CountOutcomes {
  Logits logits;
  const std::int64_t* targets;  // (triggers, classes)
  std::int64_t triggers;
  std::int64_t* counters;       // (triggers + 1, kOutcomes); the last row is of samples without a trigger
  std::int64_t* class_correct;  // (triggers + 1, classes), or null
};

// `labels` are in [0, classes), `trigger_ids` in [-1, triggers), or empty for no trigger at all. `isa` must be supported.
void count_outcomes(const CountOutcomes& job, const std::vector<std::int64_t>& labels,
                    const std::vector<std::int64_t>& trigger_ids, Isa isa, int threads);

}  // namespace seamfast
