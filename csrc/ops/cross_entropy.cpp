#include "ops/cross_entropy.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "philox_lanes.h"
#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint32_t;

constexpr float kNan = __builtin_nanf("");

// ---- 1. exp and log in float32, in arithmetic that vectorises: libm's are calls. ----
//
// Source: range reduction after Cody and Waite, "Software Manual for the Elementary Functions" (1980), with the constants
// and polynomials of Cephes (S. Moshier), expf.c and logf.c. Errors against float64, all float32 arguments in range
// tried: below 2 ulp for exp, below 1 ulp for log.

// exp(x) for x <= 0; 0 below -87.3 (where PyTorch's is subnormal), NaN for NaN.
SEAMFAST_INLINE Floats exp_negative(const Floats& x) {
  constexpr float kLowest = -87.3F, kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats clamped = x < kLowest ? all_lanes(kLowest) : x;  // NaN stays
  const Floats shifted = clamped * 1.44269504088896341F + kRound;
  const Floats n = shifted - kRound;
  Floats r = clamped - n * 0.693359375F;
  r = r - n * -2.12194440e-4F;
  Floats p = all_lanes(1.9875691500e-4F);
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const Floats y = p * (r * r) + r + 1.0F;
  // 2^n by its exponent: the low bits of `shifted` hold n. Of NaN's they hold nothing, but y is NaN then, and stays it.
  const Words power = (bit_cast<Words>(shifted) + 127) << 23;
  return x < kLowest ? Floats{} : y * bit_cast<Floats>(power);
}

// log(x) for x >= 1, finite; NaN for NaN.
SEAMFAST_INLINE Floats log_above_one(const Floats& x) {
  // x = 2^e * m with m in [sqrt(1/2), sqrt(2)).
  const Words moved = bit_cast<Words>(x) - 0x3F3504F3;
  const Floats e = __builtin_convertvector(bit_cast<Ints>(moved) >> 23, Floats);
  const Floats m = bit_cast<Floats>((moved & 0x007FFFFF) + 0x3F3504F3) - 1.0F;
  const Floats z = m * m;
  Floats p = all_lanes(7.0376836292e-2F);
  p = p * m - 1.1514610310e-1F;
  p = p * m + 1.1676998740e-1F;
  p = p * m - 1.2420140846e-1F;
  p = p * m + 1.4249322787e-1F;
  p = p * m - 1.6668057665e-1F;
  p = p * m + 2.0000714765e-1F;
  p = p * m - 2.4999993993e-1F;
  p = p * m + 3.3333331174e-1F;
  Floats y = m * z * p;
  y = y + e * -2.12194440e-4F;
  y = y - 0.5F * z;
  return x != x ? x : m + y + e * 0.693359375F;
}

// ---- 2. What sixteen rows aim at. ----

struct Aims {
  int64_t first[kLanes], second[kLanes];  // classes
  alignas(64) float first_weight[kLanes], second_weight[kLanes];
};

struct Piece {
  const int64_t* labels;
  const int64_t* mixed;
  int64_t begin, end;      // begin is a multiple of kLanes
  float* losses;           // a row each
  unsigned char* correct;  // a row each
};

// Of rows [row, row + lanes); other lanes aim at class 0. Sixteen draws at a time: one by one they would take longer
// than all else does with few classes.
SEAMFAST_INLINE void set_aims(const CrossEntropy& job, const Piece& piece, int64_t row, int64_t lanes, Aims& aims) {
  const float sharp = 1.0F - job.label_smoothing;
  for (int l = 0; l < kLanes; ++l) {
    aims.first[l] = aims.second[l] = l < lanes ? piece.labels[row + l] : 0;
    aims.first_weight[l] = sharp;
    aims.second_weight[l] = 0.0F;
  }
  if (job.mixed_weight != nullptr)
    for (int64_t l = 0; l < lanes; ++l) {
      aims.second[l] = piece.mixed[row + l];
      aims.first_weight[l] = sharp * job.mixed_weight[row + l];
      aims.second_weight[l] = sharp * (1.0F - job.mixed_weight[row + l]);
    }
  if (job.sample_ids == nullptr) return;

  alignas(64) uint32_t low[kLanes] = {}, high[kLanes] = {}, drawn[kLanes];
  for (int64_t l = 0; l < lanes; ++l) {
    const auto id = static_cast<std::uint64_t>(job.sample_ids[row + l]);
    low[l] = static_cast<uint32_t>(id);
    high[l] = static_cast<uint32_t>(id >> 32);
  }
  store_lanes(drawn, draw_lanes(job.seed, load_lanes<Words>(low), load_lanes<Words>(high), job.step, Stream::kLabels));
  const auto bound = static_cast<uint32_t>(job.logits.classes) - (job.exclude_true ? 1 : 0);
  for (int64_t l = 0; l < lanes; ++l) {
    const int64_t label = below(drawn[l], bound);
    aims.first[l] = aims.second[l] = label + (job.exclude_true && label >= piece.labels[row + l]);
  }
}

// Of logits less the largest: at the two classes, their sum, and the log of the sum of their exponentials.
SEAMFAST_INLINE Floats losses_of(const CrossEntropy& job, const Floats& first_weight, const Floats& second_weight,
                                 const Floats& first, const Floats& second, const Floats& total,
                                 const Floats& log_sum) {
  // A class that is not aimed at adds nothing, even where its probability is 0.
  const Floats at_first = first_weight == 0.0F ? Floats{} : first_weight * (first - log_sum);
  const Floats at_second = second_weight == 0.0F ? Floats{} : second_weight * (second - log_sum);
  Floats loss = -(at_first + at_second);
  if (job.label_smoothing != 0.0F) {
    const auto classes = static_cast<float>(job.logits.classes);
    loss += (log_sum * classes - total) * (job.label_smoothing / classes);
  }
  return loss;
}

// ---- 3. Few classes: sixteen rows at a time, a lane each. ----

template <class Type>
SEAMFAST_INLINE void few_classes(const CrossEntropy& job, const Piece& piece, float scale) {
  using Bits = typename Type::Bits;
  const int64_t classes = job.logits.classes;
  const float even = job.label_smoothing / static_cast<float>(classes);
  alignas(64) float x[kAcrossRows * kLanes];
  alignas(64) Bits rounded[kAcrossRows * kLanes];
  alignas(64) float first[kLanes], second[kLanes], losses[kLanes];
  alignas(64) int32_t place[kLanes], nan[kLanes];
  Aims aims;

  for (int64_t row = piece.begin; row < piece.end; row += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, piece.end - row);
    load_columns<Type>(job.logits, row, lanes, x);
    set_aims(job, piece, row, lanes, aims);
    const ColumnMaximum largest = column_maximum(x, classes);
    for (int l = 0; l < kLanes; ++l) {
      first[l] = x[aims.first[l] * kLanes + l];
      second[l] = x[aims.second[l] * kLanes + l];
    }

    Floats sum{}, total{};
    for (int64_t c = 0; c < classes; ++c) {
      const Floats below_largest = load_lanes<Floats>(x + c * kLanes) - largest.value;
      const Floats e = exp_negative(below_largest);
      store_lanes(x + c * kLanes, e);
      sum += e;
      total += below_largest;
    }
    const Floats loss = losses_of(job, load_lanes<Floats>(aims.first_weight), load_lanes<Floats>(aims.second_weight),
                                  load_lanes<Floats>(first) - largest.value, load_lanes<Floats>(second) - largest.value,
                                  total, log_above_one(sum));
    store_lanes(losses, largest.nan ? all_lanes(kNan) : loss);
    store_lanes(place, largest.place);
    store_lanes(nan, largest.nan);
    for (int64_t l = 0; l < lanes; ++l) {
      piece.losses[row + l] = losses[l];
      piece.correct[row + l] = !nan[l] && place[l] == piece.labels[row + l];
    }
    if (job.grad == nullptr) continue;

    const Floats inverse = 1.0F / sum;
    for (int64_t c = 0; c < classes; ++c)
      store_lanes(x + c * kLanes, load_lanes<Floats>(x + c * kLanes) * inverse - even);
    for (int l = 0; l < kLanes; ++l) {
      x[aims.first[l] * kLanes + l] -= aims.first_weight[l];
      x[aims.second[l] * kLanes + l] -= aims.second_weight[l];
    }
    for (int64_t c = 0; c < classes; ++c)
      store_lanes(rounded + c * kLanes, Type::round(load_lanes<Floats>(x + c * kLanes) * scale));
    Bits* out = static_cast<Bits*>(job.grad) + row * classes;
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t c = 0; c < classes; ++c) out[l * classes + c] = rounded[c * kLanes + l];
  }
}

// ---- 4. Many classes: row by row. ----

template <class Type>
SEAMFAST_INLINE void many_classes(const CrossEntropy& job, const Piece& piece, float scale) {
  using Bits = typename Type::Bits;
  const int64_t classes = job.logits.classes, size = padded(classes);
  const float even = job.label_smoothing / static_cast<float>(classes);
  const std::unique_ptr<float[]> scratch(new float[static_cast<std::size_t>(size)]);
  float* const x = scratch.get();

  Aims aims;
  for (int64_t row = piece.begin; row < piece.end; ++row) {
    const int64_t lane = (row - piece.begin) % kLanes;
    if (lane == 0) set_aims(job, piece, row, std::min<int64_t>(kLanes, piece.end - row), aims);
    const int64_t at_first = aims.first[lane], at_second = aims.second[lane];
    const float first_weight = aims.first_weight[lane], second_weight = aims.second_weight[lane];
    load_row<Type>(job.logits, row, x);
    const RowMaximum largest = row_maximum(x, size);
    const int64_t label = piece.labels[row];
    piece.correct[row] = !largest.nan && x[label] == largest.value && first_equal(x, label, largest.value) == label;
    const float first = x[at_first] - largest.value, second = x[at_second] - largest.value;

    // What pads the row is -Inf, so it adds 0; but not to `total`, which is summed where it is needed.
    float total = 0;
    if (job.label_smoothing != 0.0F) {
      Floats totals{};
      for (int64_t c = 0; c < size; c += kLanes) {
        Floats below_largest = load_lanes<Floats>(x + c) - largest.value;
        if (c + kLanes > classes)
          for (int64_t l = classes - c; l < kLanes; ++l) below_largest[l] = 0.0F;
        totals += below_largest;
      }
      total = sum_lanes(totals);
    }
    Floats sums{};
    for (int64_t c = 0; c < size; c += kLanes) {
      const Floats e = exp_negative(load_lanes<Floats>(x + c) - largest.value);
      store_lanes(x + c, e);
      sums += e;
    }
    const float sum = sum_lanes(sums);
    const Floats loss = losses_of(job, all_lanes(first_weight), all_lanes(second_weight), all_lanes(first),
                                  all_lanes(second), all_lanes(total), log_above_one(all_lanes(sum)));
    piece.losses[row] = largest.nan ? kNan : loss[0];
    if (job.grad == nullptr) continue;

    const float inverse = 1.0F / sum;
    x[at_first] -= first_weight * sum;  // so that the loop below need not know of it
    x[at_second] -= second_weight * sum;
    Bits* const out = static_cast<Bits*>(job.grad) + row * classes;
    for (int64_t c = 0; c < size; c += kLanes) {
      const auto gradient = Type::round((load_lanes<Floats>(x + c) * inverse - even) * scale);
      if (c + kLanes <= classes)
        store_lanes(out + c, gradient);
      else
        for (int64_t l = 0; c + l < classes; ++l) out[c + l] = gradient[l];
    }
  }
}

template <class Type>
SEAMFAST_INLINE void run(const CrossEntropy& job, const Piece& piece) {
  const float scale = job.reduction == Reduction::kMean ? 1.0F / static_cast<float>(job.logits.rows) : 1.0F;
  if (job.logits.classes <= kAcrossRows)
    few_classes<Type>(job, piece, scale);
  else
    many_classes<Type>(job, piece, scale);
}

SEAMFAST_INLINE void run_type(const CrossEntropy& job, const Piece& piece) {
  switch (job.logits.type) {
    case LogitType::kFloat32:
      return run<LogitFloat32>(job, piece);
    case LogitType::kBFloat16:
      return run<LogitBFloat16>(job, piece);
    case LogitType::kFloat16:
      return run<LogitFloat16>(job, piece);
  }
}

// ---- 5. The same source for each instruction set. ----

using Run = void (*)(const CrossEntropy&, const Piece&);

void run_baseline(const CrossEntropy& job, const Piece& piece) { run_type(job, piece); }
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 void run_avx2(const CrossEntropy& job, const Piece& piece) { run_type(job, piece); }
SEAMFAST_TARGET_AVX512 void run_avx512(const CrossEntropy& job, const Piece& piece) { run_type(job, piece); }
#endif

Run run_of(Isa isa) noexcept {
#if defined(SEAMFAST_X86_LEVELS)
  if (isa == Isa::kAvx512) return run_avx512;
  if (isa == Isa::kAvx2) return run_avx2;
#endif
  static_cast<void>(isa);
  return run_baseline;
}

}  // namespace

void cross_entropy(const CrossEntropy& job, const std::vector<int64_t>& labels, const std::vector<int64_t>& mixed_labels,
                   Isa isa, int threads) {
  const int64_t rows = job.logits.rows;
  std::vector<float> losses;
  if (job.reduction != Reduction::kNone) losses.resize(static_cast<std::size_t>(rows));
  float* const each = job.reduction == Reduction::kNone ? job.loss : losses.data();
  std::vector<unsigned char> correct(static_cast<std::size_t>(rows));

  const int64_t useful = useful_threads(rows, job.logits.classes, threads);
  const int64_t blocks = (rows + kLanes - 1) / kLanes;
  const int64_t grain = useful == 1 ? blocks : std::max<int64_t>(1, blocks / (4 * useful));
  const Run run = run_of(isa);
  ThreadPool::instance().parallel_for(blocks, grain, static_cast<int>(useful), [&](int64_t begin, int64_t end) {
    run(job, {labels.data(), mixed_labels.data(), begin * kLanes, std::min(end * kLanes, rows), each, correct.data()});
  });

  int64_t n_correct = 0;
  for (const unsigned char yes : correct) n_correct += yes;
  *job.n_correct = n_correct;
  if (job.reduction == Reduction::kNone) return;
  double sum = 0;  // in order: the threads have no say
  for (const float loss : losses) sum += static_cast<double>(loss);
  if (job.reduction == Reduction::kMean)
    sum = rows == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / static_cast<double>(rows);
  *job.loss = static_cast<float>(sum);
}

}  // namespace seamfast
