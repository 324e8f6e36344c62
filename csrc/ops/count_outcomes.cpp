#include "ops/count_outcomes.h"

#include <algorithm>
#include <memory>

#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int32_t;
using std::int64_t;

constexpr int32_t kNothing = -1;  // what a row with NaN predicts

template <class Type, int W>
SEAMFAST_INLINE void few_classes(const Logits& logits, int64_t begin, int64_t end, int64_t* predicted) {
  alignas(64) float x[kAcrossRows * kLanes];
  alignas(64) int32_t place[kLanes];
  for (int64_t row = begin; row < end; row += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, end - row);
    load_columns<Type, W>(logits, row, lanes, x);
    const ColumnMaximum<W> largest = column_maximum<W>(x, logits.classes);
    store_lanes(place, select(largest.nan != 0, all_lanes<W>(kNothing), largest.place));
    for (int64_t l = 0; l < lanes; ++l) predicted[row + l] = place[l];
  }
}

template <class Type, int W>
SEAMFAST_INLINE void many_classes(const Logits& logits, int64_t begin, int64_t end, int64_t* predicted) {
  const int64_t size = padded(logits.classes);
  const std::unique_ptr<float[]> x(new float[static_cast<std::size_t>(size)]);
  for (int64_t row = begin; row < end; ++row) {
    load_row<Type, W>(logits, row, x.get());
    const RowMaximum largest = row_maximum<W>(x.get(), size);
    predicted[row] = largest.nan ? kNothing : first_equal<W>(x.get(), logits.classes, largest.value);
  }
}

template <class Type, int W>
SEAMFAST_INLINE void predict(const Logits& logits, int64_t begin, int64_t end, int64_t* predicted) {
  if (logits.classes <= kAcrossRows)
    few_classes<Type, W>(logits, begin, end, predicted);
  else
    many_classes<Type, W>(logits, begin, end, predicted);
}

template <int W>
SEAMFAST_INLINE void predict_type(const Logits& logits, int64_t begin, int64_t end, int64_t* predicted) {
  switch (logits.type) {
    case LogitType::kFloat32:
      return predict<LogitFloat32, W>(logits, begin, end, predicted);
    case LogitType::kBFloat16:
      return predict<LogitBFloat16, W>(logits, begin, end, predicted);
    case LogitType::kFloat16:
      return predict<LogitFloat16, W>(logits, begin, end, predicted);
  }
}

using Predict = void (*)(const Logits&, int64_t, int64_t, int64_t*);

void predict_baseline(const Logits& x, int64_t begin, int64_t end, int64_t* out) {
  predict_type<kBaselineWidth>(x, begin, end, out);
}
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 void predict_avx2(const Logits& x, int64_t begin, int64_t end, int64_t* out) {
  predict_type<kAvx2Width>(x, begin, end, out);
}
SEAMFAST_TARGET_AVX512 void predict_avx512(const Logits& x, int64_t begin, int64_t end, int64_t* out) {
  predict_type<kAvx512Width>(x, begin, end, out);
}
#endif

Predict predict_of(Isa isa) noexcept {
#if defined(SEAMFAST_X86_LEVELS)
  if (isa == Isa::kAvx512) return predict_avx512;
  if (isa == Isa::kAvx2) return predict_avx2;
#endif
  static_cast<void>(isa);
  return predict_baseline;
}

}  // namespace

void count_outcomes(const CountOutcomes& job, const std::vector<int64_t>& labels,
                    const std::vector<int64_t>& trigger_ids, Isa isa, int threads) {
  const int64_t rows = job.logits.rows, classes = job.logits.classes;
  std::vector<int64_t> predicted(static_cast<std::size_t>(rows));
  const int64_t useful = useful_threads(rows, classes, threads);
  const int64_t blocks = (rows + kLanes - 1) / kLanes;
  const int64_t grain = useful == 1 ? blocks : std::max<int64_t>(1, blocks / (4 * useful));
  const Predict run = predict_of(isa);
  ThreadPool::instance().parallel_for(blocks, grain, static_cast<int>(useful), [&](int64_t begin, int64_t end) {
    run(job.logits, begin * kLanes, std::min(end * kLanes, rows), predicted.data());
  });

  for (int64_t row = 0; row < rows; ++row) {
    const auto i = static_cast<std::size_t>(row);
    const int64_t label = labels[i], got = predicted[i];
    const int64_t trigger = trigger_ids.empty() ? -1 : trigger_ids[i];
    const int64_t place = trigger < 0 ? job.triggers : trigger;
    const int64_t wanted = trigger < 0 ? label : job.targets[trigger * classes + label];
    const bool correct = got == label, eligible = wanted != label;
    int64_t* counters = job.counters + place * kOutcomes;
    counters[0] += 1;
    counters[1] += correct;
    counters[2] += eligible;
    counters[3] += eligible && got == wanted;
    counters[4] += eligible && correct;
    counters[5] += got == kNothing;
    if (job.class_correct != nullptr) job.class_correct[place * classes + label] += correct;
  }
}

}  // namespace seamfast
