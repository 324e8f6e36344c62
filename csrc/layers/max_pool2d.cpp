#include "layers/max_pool2d.h"

#include <algorithm>

#include "lanes.h"
#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int16_t;
using std::int64_t;
using std::uint16_t;
using std::uint8_t;

// Waking a helper costs some 10 us; so much input takes about 20.
constexpr int64_t kBytesPerThread = 256 * 1024;
// How far ahead the forward pass prefetches its input, in bytes. The processor does not prefetch two rows at once by
// itself: bfloat16 takes 1.4 times as long without.
constexpr int64_t kAhead = 2048;

// A place that no window of at most 255 pixels has.
constexpr int kNowhere = 255;

// ---- 1. Blocks of sixteen channels. ----

// Lanes of one pixel. Where a pixel has fewer channels they run on into the next one; what they write there is written
// again with that pixel. Only at the end of a row, `left` elements away, must they stop.
template <int W, bool kFewChannels, class T>
SEAMFAST_INLINE Lanes<T, W> load_block(const T* from, int64_t left) {
  if (!kFewChannels || left >= kLanes) return load_lanes<W>(from);
  T some[kLanes] = {};
  for (int64_t l = 0; l < left; ++l) some[l] = from[l];
  return load_lanes<W>(some);
}

template <bool kFewChannels, class T, int W>
SEAMFAST_INLINE void store_block(T* to, const Lanes<T, W>& lanes, int64_t left) {
  if (!kFewChannels || left >= kLanes) return store_lanes(to, lanes);
  T some[kLanes];
  store_lanes(some, lanes);
  for (int64_t l = 0; l < left; ++l) to[l] = some[l];
}

// ---- 2. What the element types differ in. ----

// The largest of a window so far, and where it is. What takes over must be above `bar`, and NaN always is.

struct PoolFloat32 {
  using Bits = float;
  template <int W>
  using Places = Ints<W>;

  template <int W>
  struct Best {
    Floats<W> value, bar;
    Places<W> place;
    SEAMFAST_INLINE void challenge(const Floats<W>& next, const Places<W>& here) {
      const auto stays = bar >= next;  // not where `next` is NaN
      place = select(stays, place, here);
      value = select(stays, value, next);
      bar = select(stays, bar, bar_of(next));
    }
    // Only NaN is above the bar of NaN.
    SEAMFAST_INLINE static Floats<W> bar_of(const Floats<W>& value) {
      return select(value < kInfinity, value, all_lanes<W>(kInfinity));
    }
  };

  template <int W>
  SEAMFAST_INLINE static Best<W> first(const Floats<W>& value) {
    return {value, Best<W>::bar_of(value), {}};
  }
  // What 0 + x gives: PyTorch adds gradients up from 0.
  template <int W>
  SEAMFAST_INLINE static Floats<W> added_to_zero(const Floats<W>& value) {
    return value + 0.0F;
  }
  // In two steps: GCC converts lane by lane where sizes differ by more than a factor of 2.
  template <int W>
  SEAMFAST_INLINE static Places<W> places(const Lanes<uint8_t, W>& bytes) {
    return converted<std::int32_t>(converted<uint16_t>(bytes));
  }
  template <int W>
  SEAMFAST_INLINE static Lanes<uint8_t, W> bytes(const Places<W>& places) {
    return converted<uint8_t>(converted<uint16_t>(places));
  }
};

// Compared as 16-bit integers, of which a register holds twice as many.
struct PoolBFloat16 {
  using Bits = uint16_t;
  template <int W>
  using Places = Lanes<int16_t, W>;

  // In the order of the values: both zeros are 0, NaN is above all.
  template <int W>
  SEAMFAST_INLINE static Lanes<int16_t, W> rank(const Halves<W>& bits) {
    const auto sign = bits_as<int16_t>(bits) >> 15;
    const auto size = bits_as<int16_t>(bits) & 0x7FFF;
    return select(size > 0x7F80, all_lanes<W>(int16_t{0x7FFF}), (size ^ sign) - sign);
  }

  template <int W>
  struct Best {
    Halves<W> value;
    Lanes<int16_t, W> bar;
    Places<W> place;
    SEAMFAST_INLINE void challenge(const Halves<W>& next, const Places<W>& here) {
      const auto ranked = rank(next);
      const auto above = ranked > bar;
      place = select(above, here, place);
      value = select(above, next, value);
      const auto raised = bar_of(ranked);
      bar = select(raised > bar, raised, bar);
    }
    // Only NaN is above the bar of NaN.
    SEAMFAST_INLINE static Lanes<int16_t, W> bar_of(const Lanes<int16_t, W>& ranked) {
      const auto most = all_lanes<W>(int16_t{0x7FFE});
      return select(ranked < most, ranked, most);
    }
  };

  template <int W>
  SEAMFAST_INLINE static Best<W> first(const Halves<W>& value) {
    return {value, Best<W>::bar_of(rank(value)), {}};
  }
  template <int W>
  SEAMFAST_INLINE static Halves<W> added_to_zero(const Halves<W>& bits) {
    return select(bits == 0x8000, all_lanes<W>(uint16_t{0}), bits);
  }
  template <int W>
  SEAMFAST_INLINE static Places<W> places(const Lanes<uint8_t, W>& bytes) {
    return converted<int16_t>(bytes);
  }
  template <int W>
  SEAMFAST_INLINE static Lanes<uint8_t, W> bytes(const Places<W>& places) {
    return converted<uint8_t>(places);
  }
};

// ---- 3. Rows of windows. ----

struct Window {
  int64_t height, width;
};

// `job` is a copy: a store through a pointer to bytes could change what lies elsewhere.
template <class Type, int W, bool kFewChannels, bool kIndexed>
SEAMFAST_INLINE void pool_rows(const MaxPool2d job, Window window, const typename Type::Bits* input,
                               typename Type::Bits* output, uint8_t* index, int64_t begin, int64_t end) {
  const int64_t rows = job.rows(), columns = job.columns(), channels = job.channels;
  const int64_t row_size = job.width * channels, out_size = columns * channels;
  const int64_t last = std::max<int64_t>(channels - kLanes, 0);
  for (int64_t row = begin; row < end; ++row) {
    const auto* in_row = input + (row / rows * job.height + row % rows * window.height) * row_size;
    auto* out_row = output + row * out_size;
    auto* index_row = index + (kIndexed ? row * out_size : 0);
    for (int64_t x = 0; x < columns; ++x) {
      for (int64_t c = 0;; c = std::min(c + kLanes, last)) {
        const int64_t from = x * window.width * channels + c, to = x * channels + c;
        for (int64_t i = 0; i < window.height; ++i)
          __builtin_prefetch(reinterpret_cast<const char*>(in_row + i * row_size + from) + kAhead);
        auto best = Type::template first<W>(load_block<W, kFewChannels>(in_row + from, row_size - from));
        typename Type::template Places<W> here{};  // counted: GCC spreads a number over lanes one by one
        for (int64_t i = 0; i < window.height; ++i)
          for (int64_t j = i == 0 ? 1 : 0; j < window.width; ++j) {
            const int64_t at = from + j * channels;
            here = here + 1;
            best.challenge(load_block<W, kFewChannels>(in_row + i * row_size + at, row_size - at), here);
          }
        store_block<kFewChannels>(out_row + to, best.value, out_size - to);
        if (kIndexed) {
          const auto nowhere = here * 0 + kNowhere;
          const auto place = job.rectified ? select(best.bar > 0, best.place, nowhere) : best.place;
          store_block<kFewChannels>(index_row + to, Type::template bytes<W>(place), out_size - to);
        }
        if (c == last) break;
      }
    }
  }
}

template <class Type, int W, bool kFewChannels>
SEAMFAST_INLINE void spread_rows(const MaxPool2d job, Window window, const typename Type::Bits* grad_output,
                                 const uint8_t* index, typename Type::Bits* grad_input, int64_t begin, int64_t end) {
  using Bits = typename Type::Bits;
  const int64_t rows = job.rows(), columns = job.columns(), channels = job.channels;
  const int64_t row_size = job.width * channels, out_size = columns * channels;
  const int64_t last = std::max<int64_t>(channels - kLanes, 0);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / rows, y = row % rows;
    Bits* in_row = grad_input + (image * job.height + y * window.height) * row_size;
    for (int64_t x = 0; x < columns; ++x) {
      for (int64_t c = 0;; c = std::min(c + kLanes, last)) {
        const int64_t from = x * channels + c, to = x * window.width * channels + c;
        const auto* grads = grad_output + row * out_size + from;
        const auto grad = Type::added_to_zero(load_block<W, kFewChannels>(grads, out_size - from));
        const auto* places = index + row * out_size + from;
        auto ahead = Type::template places<W>(load_block<W, kFewChannels>(places, out_size - from));
        for (int64_t i = 0; i < window.height; ++i)
          for (int64_t j = 0; j < window.width; ++j, ahead = ahead - 1) {
            const int64_t at = to + j * channels;
            store_block<kFewChannels>(in_row + i * row_size + at, select(ahead == 0, grad, Lanes<Bits, W>{}),
                                      row_size - at);
          }
        if (c == last) break;
      }
    }
    const int64_t covered = columns * window.width * channels;
    for (int64_t i = 0; i < window.height; ++i)
      std::fill(in_row + i * row_size + covered, in_row + (i + 1) * row_size, Bits{});
    if (y + 1 == rows)
      std::fill(in_row + window.height * row_size, grad_input + (image + 1) * job.height * row_size, Bits{});
  }
}

// ---- 4. The same source for each instruction set, and the usual window as a constant. ----

struct Pass {
  const void* from;
  void* to;
  const uint8_t* index_in;
  uint8_t* index_out;
  bool backward;
};

template <class Type, int W, bool kFewChannels>
SEAMFAST_INLINE void run_window(const MaxPool2d& job, Window window, const Pass& pass, int64_t begin, int64_t end) {
  using Bits = typename Type::Bits;
  const auto* from = static_cast<const Bits*>(pass.from);
  auto* to = static_cast<Bits*>(pass.to);
  if (pass.backward)
    spread_rows<Type, W, kFewChannels>(job, window, from, pass.index_in, to, begin, end);
  else if (pass.index_out != nullptr)
    pool_rows<Type, W, kFewChannels, true>(job, window, from, to, pass.index_out, begin, end);
  else
    pool_rows<Type, W, kFewChannels, false>(job, window, from, to, nullptr, begin, end);
}

template <class Type, int W>
SEAMFAST_INLINE void run_type(const MaxPool2d& job, const Pass& pass, int64_t begin, int64_t end) {
  const Window window{job.window_height, job.window_width};
  if (job.channels < kLanes)
    run_window<Type, W, true>(job, window, pass, begin, end);
  else if (window.height == 2 && window.width == 2)
    run_window<Type, W, false>(job, {2, 2}, pass, begin, end);
  else
    run_window<Type, W, false>(job, window, pass, begin, end);
}

template <int W>
SEAMFAST_INLINE void run(const MaxPool2d& job, const Pass& pass, int64_t begin, int64_t end) {
  if (job.type == LogitType::kFloat32)
    run_type<PoolFloat32, W>(job, pass, begin, end);
  else
    run_type<PoolBFloat16, std::min(2 * W, kLanes)>(job, pass, begin, end);
}

using Run = void (*)(const MaxPool2d&, const Pass&, int64_t, int64_t);

void run_baseline(const MaxPool2d& job, const Pass& pass, int64_t begin, int64_t end) {
  run<kBaselineWidth>(job, pass, begin, end);
}
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 void run_avx2(const MaxPool2d& job, const Pass& pass, int64_t begin, int64_t end) {
  run<kAvx2Width>(job, pass, begin, end);
}
SEAMFAST_TARGET_AVX512 void run_avx512(const MaxPool2d& job, const Pass& pass, int64_t begin, int64_t end) {
  run<kAvx512Width>(job, pass, begin, end);
}
#endif

Run run_of(Isa isa) noexcept {
#if defined(SEAMFAST_X86_LEVELS)
  if (isa == Isa::kAvx512) return run_avx512;
  if (isa == Isa::kAvx2) return run_avx2;
#endif
  static_cast<void>(isa);
  return run_baseline;
}

void in_parallel(const MaxPool2d& job, const Pass& pass, Isa isa, int threads) {
  const int64_t rows = job.batch * job.rows();
  const int64_t element = job.type == LogitType::kFloat32 ? 4 : 2;
  const int64_t bytes = job.batch * job.channels * job.height * job.width * element;
  threads = static_cast<int>(std::clamp<int64_t>(bytes / kBytesPerThread, 1, threads));
  const int64_t pieces = threads == 1 ? 1 : int64_t{4} * threads;  // so that a delayed thread does not delay the others
  const Run run = run_of(isa);
  ThreadPool::instance().parallel_for(rows, std::max<int64_t>(1, (rows + pieces - 1) / pieces), threads,
                                      [&](int64_t begin, int64_t end) { run(job, pass, begin, end); });
}

}  // namespace

void max_pool2d(const MaxPool2d& job, const void* input, void* output, uint8_t* index, Isa isa, int threads) {
  in_parallel(job, {input, output, nullptr, index, false}, isa, threads);
}

void max_pool2d_backward(const MaxPool2d& job, const void* grad_output, const uint8_t* index, void* grad_input, Isa isa,
                         int threads) {
  in_parallel(job, {grad_output, grad_input, index, nullptr, true}, isa, threads);
}

}  // namespace seamfast
