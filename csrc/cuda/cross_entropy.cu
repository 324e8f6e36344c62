#include "cuda/cross_entropy.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "philox.h"

namespace seamfast::cuda {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint32_t;

constexpr int kWarp = 32, kThreads = 512;
constexpr int64_t kMaxBlocks = kThreads;  // what a large device holds; they stride over more rows

// ---- 1. Lanes: a row is spread over the first kLanes of a warp, the next row over the next. ----

template <int kLanes, class T, class Join>
__device__ T over_lanes(T value, Join join) {
  for (int step = kLanes / 2; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  return value;
}

template <int kLanes, class T>
__device__ T sum_lanes(T value) {
  return over_lanes<kLanes>(value, [](T a, T b) { return a + b; });
}

// In a fixed order, so the same bits at each run. The sum is thread 0's.
template <class T>
__device__ T sum_block(T value) {
  __shared__ T warps[kThreads / kWarp];
  value = sum_lanes<kWarp>(value);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  return sum_lanes<kWarp>(threadIdx.x < kThreads / kWarp ? warps[threadIdx.x] : T{});
}

__device__ void finish(const LossJob& job, float loss, int64_t correct) {
  if (!job.each) *job.loss = loss * job.scale;
  *job.n_correct = correct;
}

// ---- 2. Logits. ----

__device__ float widen(float x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float widen(__half x) { return __half2float(x); }

__device__ void store(float* to, float x) { *to = x; }
__device__ void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ void store(__half* to, float x) { *to = __float2half_rn(x); }

// ---- 3. The target of a row: its label, or one that is drawn. ----

__device__ int64_t target_of(const LossJob& job, int64_t row, int64_t label, std::uint64_t seed, uint32_t step) {
  if (job.sample_ids == nullptr) return label;
  const uint32_t word = draw(seed, static_cast<std::uint64_t>(job.sample_ids[row]), step, Stream::kLabels)[0];
  const auto classes = static_cast<uint32_t>(job.classes);
  if (!job.exclude_true) return below(word, classes);
  const int64_t wrong = below(word, classes - 1);
  return wrong + (wrong >= label);
}

// A class as an index, or -1, which is no class, for one out of range.
__device__ int32_t in_range(int64_t label, int32_t classes) {
  return label >= 0 && label < classes ? static_cast<int32_t>(label) : -1;
}

// ---- 4. The kernels. ----

// kItems: classes a lane holds.
template <class T, int kLanes, int kItems>
__global__ void __launch_bounds__(kThreads) rows_kernel(const LossJob job) {
  constexpr int kRows = kThreads / kLanes;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kLanes, classes = job.classes;
  const std::uint64_t seed = value_of(job.seed);
  const auto step = static_cast<uint32_t>(value_of(job.step));
  const float infinity = __int_as_float(0x7F800000), nothing = __int_as_float(0x7FC00000);
  float sum = 0;
  int32_t n_correct = 0;

  // A warp stays together, beyond the last row too: its lanes exchange values.
  for (int64_t first_row = int64_t{blockIdx.x} * kRows; first_row < job.rows; first_row += int64_t{gridDim.x} * kRows) {
    const int64_t row = first_row + threadIdx.x / kLanes;
    const bool live = row < job.rows;
    const T* logits = static_cast<const T*>(job.logits) + row * job.row_stride;
    float x[kItems], largest = -infinity;
    int nan = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int32_t c = lane + i * kLanes;
      x[i] = live && c < classes ? widen(logits[c * job.column_stride]) : -infinity;
      nan |= x[i] != x[i];
      largest = fmaxf(largest, x[i]);  // ignores NaN
    }
    largest = over_lanes<kLanes>(largest, [](float a, float b) { return fmaxf(a, b); });
    nan = over_lanes<kLanes>(nan, [](int a, int b) { return a | b; });

    int32_t place = classes;  // the first of equals
    float total = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int32_t c = lane + i * kLanes;
      if (c < classes && x[i] == largest) place = min(place, c);
      x[i] = expf(x[i] - largest);  // 0 beyond the row
      total += x[i];
    }
    place = over_lanes<kLanes>(place, [](int32_t a, int32_t b) { return min(a, b); });
    total = sum_lanes<kLanes>(total);
    if (!live) continue;

    const int64_t label = job.labels[row];
    const int32_t first = in_range(target_of(job, row, label, seed, step), classes);
    bool usable = in_range(label, classes) >= 0;
    float first_weight = 1, second_weight = 0;
    int32_t second = -1;
    if (job.mixed_labels != nullptr) {
      second = in_range(job.mixed_labels[row], classes);
      usable = usable && second >= 0;
      const float share = job.mixed_weight[row];
      first_weight = share;
      second_weight = 1 - share;
    }

    if (lane == 0) {
      const float log_total = logf(total);
      float loss = 0;  // a class of weight 0 adds nothing, even where its probability is 0
      if (first >= 0 && first_weight != 0)
        loss -= first_weight * (widen(logits[first * job.column_stride]) - largest - log_total);
      if (second >= 0 && second_weight != 0)
        loss -= second_weight * (widen(logits[second * job.column_stride]) - largest - log_total);
      if (!usable) loss = nothing;  // of NaN among the logits it is NaN by itself
      if (job.each) job.loss[row] = loss;
      sum += loss;
      n_correct += !nan && place == label;
    }
    if (job.grad == nullptr) continue;

    T* grad = static_cast<T*>(job.grad) + row * classes;
    const float inverse = 1 / total;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int32_t c = lane + i * kLanes;
      float slope = x[i] * inverse;
      if (c == first) slope -= first_weight;
      if (c == second) slope -= second_weight;
      if (c < classes) store(grad + c, slope * job.scale);
    }
  }

  sum = sum_block(sum);
  n_correct = sum_block(n_correct);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1)
    finish(job, sum, n_correct);
  else
    job.parts[blockIdx.x] = {sum, n_correct};
}

// One block, a thread a part. This launch costs no more than setting a counter to zero would, by which the last block
// could detect that it is the last.
__global__ void __launch_bounds__(kThreads) parts_kernel(const LossJob job) {
  const bool any = threadIdx.x < job.blocks;
  const LossPart part = any ? job.parts[threadIdx.x] : LossPart{};
  const float sum = sum_block(part.loss);
  const int64_t n_correct = sum_block(static_cast<int64_t>(part.correct));
  if (threadIdx.x == 0) finish(job, sum, n_correct);
}

// ---- 5. The launch table. ----

// A row's lanes, few for few classes, so that none idle: calls `use` with lanes and classes a lane.
template <class Use>
void with_shape(int64_t classes, Use use) {
  if (classes <= 16)
    use(std::integral_constant<int, 4>(), std::integral_constant<int, 4>());
  else if (classes <= 64)
    use(std::integral_constant<int, 16>(), std::integral_constant<int, 4>());
  else if (classes <= 256)
    use(std::integral_constant<int, 32>(), std::integral_constant<int, 8>());
  else
    use(std::integral_constant<int, 32>(), std::integral_constant<int, 32>());
}

template <class T>
void launch_rows(const LossJob& job, const Queue& queue) {
  with_shape(job.classes, [&](auto lanes, auto items) {
    launch("cross_entropy", &rows_kernel<T, decltype(lanes)::value, decltype(items)::value>, job.blocks, kThreads, job,
           queue);
  });
}

}  // namespace

uint32_t loss_blocks(int64_t rows, int64_t classes) noexcept {
  int64_t blocks = 0;
  with_shape(classes, [&](auto lanes, auto) {
    constexpr int64_t kRows = kThreads / decltype(lanes)::value;
    blocks = (rows + kRows - 1) / kRows;
  });
  return static_cast<uint32_t>(std::min(blocks, kMaxBlocks));
}

void cross_entropy(const LossJob& job, Element element, const Queue& queue) {
  use(queue);
  switch (element) {
    case Element::kFloat32:
      launch_rows<float>(job, queue);
      break;
    case Element::kBFloat16:
      launch_rows<__nv_bfloat16>(job, queue);
      break;
    case Element::kFloat16:
      launch_rows<__half>(job, queue);
      break;
  }
  if (job.blocks > 1) launch("cross_entropy's sum", &parts_kernel, 1, kThreads, job, queue);
}

}  // namespace seamfast::cuda
