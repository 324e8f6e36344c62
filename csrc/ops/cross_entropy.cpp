#include "ops/cross_entropy.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <numeric>

#include "philox_lanes.h"
#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint32_t;

constexpr float kNan = __builtin_nanf("");

// ---- 1. exp and log in float32, in arithmetic that vectorizes: libm's are calls. ----
//
// Source: range reduction after Cody and Waite, "Software Manual for the Elementary Functions" (1980), with the constants
// and polynomials of Cephes (S. Moshier), expf.c and logf.c. Errors against float64, all float32 arguments in range
// tried: below 1 ulp for both.

// exp(x) for x <= 0; 0 below -87.3 (where PyTorch's is subnormal), NaN for NaN.
template <int W>
SEAMFAST_INLINE Floats<W> exp_negative(const Floats<W>& x) {
  constexpr float kLowest = -87.3F, kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats<W> clamped = select(x < kLowest, all_lanes<W>(kLowest), x);  // NaN stays
  const Floats<W> shifted = clamped * 1.44269504088896341F + kRound;
  const Floats<W> n = shifted - kRound;
  Floats<W> r = clamped - n * 0.693359375F;
  r = r - n * -2.12194440e-4F;
  Floats<W> p = all_lanes<W>(1.9875691500e-4F);
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const Floats<W> y = p * (r * r) + r + 1.0F;
  // 2^n by its exponent: the low bits of `shifted` hold n. Of NaN's they hold nothing, but y is NaN then, and stays it.
  const Words<W> power = (bits_as<uint32_t>(shifted) + 127) << 23;
  return select(x < kLowest, Floats<W>{}, y * bits_as<float>(power));
}

// log(x) for x >= 1, finite; NaN for NaN.
template <int W>
SEAMFAST_INLINE Floats<W> log_above_one(const Floats<W>& x) {
  // x = 2^e * m with m in [sqrt(1/2), sqrt(2)).
  const Words<W> moved = bits_as<uint32_t>(x) - 0x3F3504F3;
  const Floats<W> e = converted<float>(bits_as<int32_t>(moved) >> 23);
  const Floats<W> m = bits_as<float>((moved & 0x007FFFFF) + 0x3F3504F3) - 1.0F;
  const Floats<W> z = m * m;
  Floats<W> p = all_lanes<W>(7.0376836292e-2F);
  p = p * m - 1.1514610310e-1F;
  p = p * m + 1.1676998740e-1F;
  p = p * m - 1.2420140846e-1F;
  p = p * m + 1.4249322787e-1F;
  p = p * m - 1.6668057665e-1F;
  p = p * m + 2.0000714765e-1F;
  p = p * m - 2.4999993993e-1F;
  p = p * m + 3.3333331174e-1F;
  Floats<W> y = m * z * p;
  y = y + e * -2.12194440e-4F;
  y = y - z * 0.5F;
  return select(x != x, x, m + y + e * 0.693359375F);
}

// ---- 2. The targets of sixteen rows. ----

template <int W>
struct Targets {
  Ints<W> first, second;  // classes
  Floats<W> first_weight, second_weight;
};

struct Piece {
  const int64_t* labels;
  const int64_t* mixed;
  int64_t begin, end;      // begin is a multiple of kLanes
  float* losses;           // a row each
  unsigned char* correct;  // a row each
};

// `n` integers as lanes of 32 bits, the others 0.
template <int W>
SEAMFAST_INLINE Ints<W> narrowed(const int64_t* from, int64_t n) {
  alignas(64) int32_t lanes[kLanes] = {};
  for (int64_t l = 0; l < n; ++l) lanes[l] = static_cast<int32_t>(from[l]);
  return load_lanes<W>(lanes);
}

// Of rows [row, row + lanes); other lanes have some class. Sixteen draws at a time: one by one they would take longer
// than everything else does with few classes.
template <int W>
SEAMFAST_INLINE Targets<W> targets_of(const CrossEntropy& job, const Piece& piece, int64_t row, int64_t lanes) {
  const auto one = all_lanes<W>(1.0F);
  const Ints<W> labels = narrowed<W>(piece.labels + row, lanes);
  if (job.mixed_weight != nullptr) {
    alignas(64) float weight[kLanes] = {};
    for (int64_t l = 0; l < lanes; ++l) weight[l] = job.mixed_weight[row + l];
    const Floats<W> share = load_lanes<W>(weight);
    return {labels, narrowed<W>(piece.mixed + row, lanes), share, one - share};
  }
  if (job.sample_ids == nullptr) return {labels, labels, one, {}};

  alignas(64) uint32_t low[kLanes] = {}, high[kLanes] = {};
  for (int64_t l = 0; l < lanes; ++l) {
    const auto id = static_cast<std::uint64_t>(job.sample_ids[row + l]);
    low[l] = static_cast<uint32_t>(id);
    high[l] = static_cast<uint32_t>(id >> 32);
  }
  const Words<W> word = draw_lanes(job.seed, load_lanes<W>(low), load_lanes<W>(high), job.step, Stream::kLabels);
  const auto bound = static_cast<uint32_t>(job.logits.classes) - (job.exclude_true ? 1 : 0);
  Ints<W> drawn = bits_as<int32_t>(below_lanes(word, bound));
  if (job.exclude_true) drawn = select(drawn >= labels, drawn + 1, drawn);
  return {drawn, drawn, one, {}};
}

// Of logits less the largest: at the two classes, and the log of the sum of their exponentials.
template <int W>
SEAMFAST_INLINE Floats<W> losses_of(const Targets<W>& targets, const Floats<W>& first, const Floats<W>& second,
                                    const Floats<W>& log_sum) {
  // A class of weight 0 adds nothing, even where its probability is 0.
  const Floats<W>& a = targets.first_weight;
  const Floats<W>& b = targets.second_weight;
  const Floats<W> at_first = select(a == 0.0F, Floats<W>{}, a * (first - log_sum));
  const Floats<W> at_second = select(b == 0.0F, Floats<W>{}, b * (second - log_sum));
  return all_lanes<W>(0.0F) - (at_first + at_second);
}

// ---- 3. Few classes: sixteen rows at a time, a lane each. ----

template <class Type, int W>
SEAMFAST_INLINE void few_classes(const CrossEntropy& job, const Piece& piece, float scale) {
  using Bits = typename Type::Bits;
  const int64_t classes = job.logits.classes;
  const bool mixes = job.mixed_weight != nullptr;
  // Two of them: rows are transposed one by one, and a vector that was just written lane by lane is slow to read.
  alignas(64) float columns[2][kAcrossRows * kLanes];
  alignas(64) Bits rounded[kAcrossRows * kLanes];
  alignas(64) float losses[kLanes];
  alignas(64) int32_t place[kLanes];

  const auto lanes_at = [&](int64_t row) { return std::min<int64_t>(kLanes, piece.end - row); };
  if (piece.begin < piece.end) load_columns<Type, W>(job.logits, piece.begin, lanes_at(piece.begin), columns[0]);
  int now = 0;
  for (int64_t row = piece.begin; row < piece.end; row += kLanes, now = 1 - now) {
    const int64_t lanes = lanes_at(row), next = row + kLanes;
    float* const x = columns[now];
    if (next < piece.end) load_columns<Type, W>(job.logits, next, lanes_at(next), columns[1 - now]);
    const Targets<W> targets = targets_of<W>(job, piece, row, lanes);
    const ColumnMaximum<W> largest = column_maximum<W>(x, classes);

    Floats<W> sum{}, first{}, second{};
    Ints<W> here{};
    for (int64_t c = 0; c < classes; ++c, here = here + 1) {
      const Floats<W> below_largest = load_lanes<W>(x + c * kLanes) - largest.value;
      first = select(targets.first == here, below_largest, first);
      if (mixes) second = select(targets.second == here, below_largest, second);
      const Floats<W> e = exp_negative(below_largest);
      store_lanes(x + c * kLanes, e);
      sum = sum + e;
    }
    const Floats<W> loss = losses_of(targets, first, second, log_above_one(sum));
    store_lanes(losses, select(largest.nan != 0, all_lanes<W>(kNan), loss));
    store_lanes(place, select(largest.nan != 0, all_lanes<W>(-1), largest.place));
    for (int64_t l = 0; l < lanes; ++l) {
      piece.losses[row + l] = losses[l];
      piece.correct[row + l] = place[l] == piece.labels[row + l];
    }
    if (job.grad == nullptr) continue;

    const Floats<W> inverse = all_lanes<W>(1.0F) / sum;
    here = {};
    for (int64_t c = 0; c < classes; ++c, here = here + 1) {
      Floats<W> g = load_lanes<W>(x + c * kLanes) * inverse;
      g = select(targets.first == here, g - targets.first_weight, g);
      if (mixes) g = select(targets.second == here, g - targets.second_weight, g);
      store_lanes(rounded + c * kLanes, Type::round(g * scale));
    }
    Bits* out = static_cast<Bits*>(job.grad) + row * classes;
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t c = 0; c < classes; ++c) out[l * classes + c] = rounded[c * kLanes + l];
  }
}

// ---- 4. Many classes: row by row. ----

template <class Type, int W>
SEAMFAST_INLINE void many_classes(const CrossEntropy& job, const Piece& piece, float scale) {
  using Bits = typename Type::Bits;
  const int64_t classes = job.logits.classes, size = padded(classes);
  const std::unique_ptr<float[]> scratch(new float[static_cast<std::size_t>(size)]);
  float* const x = scratch.get();

  alignas(64) int32_t first_of[kLanes], second_of[kLanes];
  alignas(64) float first_weight_of[kLanes], second_weight_of[kLanes], losses[kLanes];
  for (int64_t row = piece.begin; row < piece.end; ++row) {
    const int64_t lane = (row - piece.begin) % kLanes;
    if (lane == 0) {
      const Targets<W> targets = targets_of<W>(job, piece, row, std::min<int64_t>(kLanes, piece.end - row));
      store_lanes(first_of, targets.first);
      store_lanes(second_of, targets.second);
      store_lanes(first_weight_of, targets.first_weight);
      store_lanes(second_weight_of, targets.second_weight);
    }
    const int64_t at_first = first_of[lane], at_second = second_of[lane];
    const float first_weight = first_weight_of[lane], second_weight = second_weight_of[lane];
    load_row<Type, W>(job.logits, row, x);
    const RowMaximum largest = row_maximum<W>(x, size);
    const int64_t label = piece.labels[row];
    piece.correct[row] = !largest.nan && x[label] == largest.value && first_equal<W>(x, label, largest.value) == label;
    const float first = x[at_first] - largest.value, second = x[at_second] - largest.value;

    // What pads the row is -Inf, so it adds 0.
    Floats<W> sums{};
    for (int64_t c = 0; c < size; c += kLanes) {
      const Floats<W> e = exp_negative(load_lanes<W>(x + c) - largest.value);
      store_lanes(x + c, e);
      sums = sums + e;
    }
    const float sum = sum_lanes(sums);
    const Targets<W> targets{{}, {}, all_lanes<W>(first_weight), all_lanes<W>(second_weight)};
    store_lanes(losses, losses_of(targets, all_lanes<W>(first), all_lanes<W>(second), log_above_one(all_lanes<W>(sum))));
    piece.losses[row] = largest.nan ? kNan : losses[0];
    if (job.grad == nullptr) continue;

    const float inverse = 1.0F / sum;
    x[at_first] -= first_weight * sum;  // so that the loop below is the same for all classes
    x[at_second] -= second_weight * sum;
    Bits* const out = static_cast<Bits*>(job.grad) + row * classes;
    for (int64_t c = 0; c < size; c += kLanes) {
      const auto gradient = Type::round(load_lanes<W>(x + c) * inverse * scale);
      if (c + kLanes <= classes) {
        store_lanes(out + c, gradient);
      } else {
        alignas(64) Bits last[kLanes];
        store_lanes(last, gradient);
        std::copy(last, last + (classes - c), out + c);
      }
    }
  }
}

template <class Type, int W>
SEAMFAST_INLINE void run(const CrossEntropy& job, const Piece& piece) {
  const float scale = job.reduction == Reduction::kMean ? 1.0F / static_cast<float>(job.logits.rows) : 1.0F;
  if (job.logits.classes <= kAcrossRows)
    few_classes<Type, W>(job, piece, scale);
  else
    many_classes<Type, W>(job, piece, scale);
}

template <int W>
SEAMFAST_INLINE void run_type(const CrossEntropy& job, const Piece& piece) {
  switch (job.logits.type) {
    case LogitType::kFloat32:
      return run<LogitFloat32, W>(job, piece);
    case LogitType::kBFloat16:
      return run<LogitBFloat16, W>(job, piece);
    case LogitType::kFloat16:
      return run<LogitFloat16, W>(job, piece);
  }
}

// ---- 5. The same source for each instruction set. ----

using Run = void (*)(const CrossEntropy&, const Piece&);

void run_baseline(const CrossEntropy& job, const Piece& piece) { run_type<kBaselineWidth>(job, piece); }
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 void run_avx2(const CrossEntropy& job, const Piece& piece) { run_type<kAvx2Width>(job, piece); }
SEAMFAST_TARGET_AVX512 void run_avx512(const CrossEntropy& job, const Piece& piece) { run_type<kAvx512Width>(job, piece); }
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
  // In a fixed order, whatever the threads; in several sums, so that additions do not wait for each other.
  std::array<double, 8> sums{};
  for (std::size_t i = 0; i < losses.size(); ++i) sums[i % sums.size()] += static_cast<double>(losses[i]);
  double sum = std::accumulate(sums.begin(), sums.end(), 0.0);
  if (job.reduction == Reduction::kMean)
    sum = rows == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / static_cast<double>(rows);
  *job.loss = static_cast<float>(sum);
}

}  // namespace seamfast
