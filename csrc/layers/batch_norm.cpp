#include "layers/batch_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "lanes.h"
#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int64_t;

// Waking a helper costs some 10 us; so much input takes about 20.
constexpr int64_t kBytesPerThread = 256 * 1024;
// Elements whose sums are taken together, in float32 by at most 256 additions of sums of 8; and rows whose mean is what
// a chunk is shifted by. With s of r rows so, the square of the shift's distance from the chunk's mean is at most r / s
// of the chunk's variance, whatever the data, and some 1 / s of it where rows come in no order: that is how many times
// the error of a float32 sum grows.
constexpr int64_t kChunkElements = 65'536;
constexpr int64_t kShiftRows = 32;
// How far ahead a pass prefetches what it reads and writes, in bytes: it saves a tenth of the time.
constexpr int64_t kAhead = 1024;

// ---- 1. Elements in groups of two vectors. ----

constexpr int64_t kGroup = 2 * kLanes;

template <int W>
struct Group {
  Floats<W> a, b;
};

#define SEAMFAST_GROUP_OPERATOR(op)                                              \
  template <int W>                                                               \
  SEAMFAST_INLINE Group<W> operator op(const Group<W>& x, const Group<W>& y) {   \
    return {x.a op y.a, x.b op y.b};                                             \
  }
SEAMFAST_GROUP_OPERATOR(+)
SEAMFAST_GROUP_OPERATOR(-)
SEAMFAST_GROUP_OPERATOR(*)
#undef SEAMFAST_GROUP_OPERATOR

// Which element of a group is where: place p of its 32 holds element `element(p)`.

struct GroupFloat32 {
  using Bits = float;
  static int64_t element(int64_t p) noexcept { return p; }
  template <int W>
  SEAMFAST_INLINE static Group<W> load(const float* from) {
    return {load_lanes<W>(from), load_lanes<W>(from + kLanes)};
  }
  template <int W>
  SEAMFAST_INLINE static void store(float* to, const Group<W>& group) {
    store_lanes(to, group.a);
    store_lanes(to + kLanes, group.b);
  }
};

// Two neighbours are a 32-bit word, and the float32 of each is that word with the other taken out: a shift or a mask,
// where to widen sixteen neighbours takes five instructions and to narrow them four. So a holds the even elements.
struct GroupBFloat16 {
  using Bits = std::uint16_t;
  static int64_t element(int64_t p) noexcept { return p < kLanes ? 2 * p : 2 * (p - kLanes) + 1; }
  template <int W>
  SEAMFAST_INLINE static Group<W> load(const std::uint16_t* from) {
    const Words<W> words = load_lanes<W>(reinterpret_cast<const std::uint32_t*>(from));
    return {bits_as<float>(words << 16), bits_as<float>(words & 0xFFFF0000U)};
  }
  template <int W>
  SEAMFAST_INLINE static void store(std::uint16_t* to, const Group<W>& group) {
    store_lanes(reinterpret_cast<std::uint32_t*>(to), (rounded(group.a) >> 16) | (rounded(group.b) & 0xFFFF0000U));
  }
  template <int W>
  SEAMFAST_INLINE static Words<W> rounded(const Floats<W>& value) {  // to nearest even, in the upper half
    const auto bits = bits_as<std::uint32_t>(value);
    return select(value != value, all_lanes<W>(0x7FC00000U), bits + 0x7FFF + ((bits >> 16) & 1));
  }
};

template <int W>
SEAMFAST_INLINE Group<W> load_floats(const float* from) {
  return GroupFloat32::load<W>(from);
}

template <class Type, int W>
SEAMFAST_INLINE Group<W> load_next(const typename Type::Bits* from) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
  return Type::template load<W>(from);
}

// The last group of all may be cut short, to n elements.
template <class Type, int W>
SEAMFAST_INLINE Group<W> load_some(const typename Type::Bits* from, int64_t n) {
  typename Type::Bits some[kGroup] = {};
  for (int64_t i = 0; i < n; ++i) some[i] = from[i];
  return Type::template load<W>(some);
}

template <class Type, int W>
SEAMFAST_INLINE void store_some(typename Type::Bits* to, const Group<W>& group, int64_t n) {
  typename Type::Bits some[kGroup];
  Type::store(some, group);
  for (int64_t i = 0; i < n; ++i) to[i] = some[i];
}

// Rows of C channels are cut into stripes of as many elements as C and a group have in common, so that a place in a
// stripe is always of the same channel and no lane is ever idle: 32 rows where C is odd, one where 32 divides it.
struct Stripes {
  int64_t size, rows;            // of a stripe
  std::vector<int64_t> channel;  // of each place

  Stripes(LogitType type, int64_t channels) : size(std::lcm(channels, kGroup)), rows(size / channels) {
    for (int64_t i = 0; i < size; ++i) {
      const int64_t p = i % kGroup;
      const int64_t element = type == LogitType::kFloat32 ? GroupFloat32::element(p) : GroupBFloat16::element(p);
      channel.push_back((i - p + element) % channels);
    }
  }

  // One number a channel, at each of its places.
  std::vector<float> spread(const std::vector<double>& values) const {
    std::vector<float> out;
    out.reserve(channel.size());
    for (const int64_t c : channel) out.push_back(static_cast<float>(values[static_cast<std::size_t>(c)]));
    return out;
  }
};

// ---- 2. Sums over a chunk. ----

// What a chunk gives, a number a channel.
struct Sums {
  double* first;   // sum of x - shift, or of the gradient
  double* second;  // sum of (x - shift)^2, or of the gradient times (x - mean)
};

// The same, a number a place of a stripe.
struct Accumulators {
  float* first;
  float* second;
};

template <int W>
struct Terms {
  Group<W> first, second;
};

// Of the group at `at`, or of its first n elements: x and x^2, shifted.
template <class Type, int W>
struct Moments {
  const typename Type::Bits* x;
  const float* shift;
  SEAMFAST_INLINE Terms<W> of(const Group<W>& value, int64_t place) const {
    const auto distance = value - load_floats<W>(shift + place);
    return {distance, distance * distance};
  }
  SEAMFAST_INLINE Terms<W> at(int64_t at, int64_t place) const { return of(load_next<Type, W>(x + at), place); }
  SEAMFAST_INLINE Terms<W> some(int64_t at, int64_t place, int64_t n) const {
    return of(load_some<Type, W>(x + at, n), place);
  }
};

// The gradient, and the gradient times how far x is from the mean.
template <class Type, int W>
struct Products {
  const typename Type::Bits* x;
  const typename Type::Bits* grad;
  const float* mean;
  SEAMFAST_INLINE Terms<W> of(const Group<W>& value, const Group<W>& g, int64_t place) const {
    return {g, g * (value - load_floats<W>(mean + place))};
  }
  SEAMFAST_INLINE Terms<W> at(int64_t at, int64_t place) const {
    return of(load_next<Type, W>(x + at), load_next<Type, W>(grad + at), place);
  }
  SEAMFAST_INLINE Terms<W> some(int64_t at, int64_t place, int64_t n) const {
    return of(load_some<Type, W>(x + at, n), load_some<Type, W>(grad + at, n), place);
  }
};

// Stripes added up before they are added to the accumulators, which lie in memory.
constexpr int64_t kTogether = 8;

// Adds elements [begin, end), of which begin is the start of a stripe.
template <class Type, int W, class What>
SEAMFAST_INLINE void add_up(const Stripes& stripes, const What& what, int64_t begin, int64_t end, Accumulators running,
                            Sums sums) {
  const int64_t size = stripes.size;
  const int64_t* channel = stripes.channel.data();
  const auto add = [running](int64_t place, const Terms<W>& terms) __attribute__((always_inline)) {
    GroupFloat32::store(running.first + place, load_floats<W>(running.first + place) + terms.first);
    GroupFloat32::store(running.second + place, load_floats<W>(running.second + place) + terms.second);
  };

  int64_t at = begin;
  for (; end - at >= kTogether * size; at += kTogether * size)
    for (int64_t place = 0; place < size; place += kGroup) {
      Terms<W> all = what.at(at + place, place);
      for (int64_t s = 1; s < kTogether; ++s) {
        const Terms<W> next = what.at(at + s * size + place, place);
        all = {all.first + next.first, all.second + next.second};
      }
      add(place, all);
    }
  for (; end - at >= size; at += size)
    for (int64_t place = 0; place < size; place += kGroup) add(place, what.at(at + place, place));
  for (int64_t place = 0; at + place < end; place += kGroup) {
    const int64_t n = end - at - place;
    if (n >= kGroup) {
      add(place, what.at(at + place, place));
      continue;
    }
    float first[kGroup], second[kGroup];
    const Terms<W> terms = what.some(at + place, place, n);
    GroupFloat32::store(first, terms.first);
    GroupFloat32::store(second, terms.second);
    for (int64_t p = 0; p < kGroup; ++p) {
      if (Type::element(p) >= n) continue;
      running.first[place + p] += first[p];
      running.second[place + p] += second[p];
    }
  }

  for (int64_t i = 0; i < size; ++i) {
    sums.first[channel[i]] += static_cast<double>(running.first[i]);
    sums.second[channel[i]] += static_cast<double>(running.second[i]);
    running.first[i] = running.second[i] = 0.0F;
  }
}

// ---- 3. What is done to every element. ----

template <class Type, int W>
struct Scaled {
  const typename Type::Bits* x;
  const float* scale;
  const float* offset;
  SEAMFAST_INLINE Group<W> of(const Group<W>& value, int64_t place) const {
    return value * load_floats<W>(scale + place) + load_floats<W>(offset + place);
  }
  SEAMFAST_INLINE Group<W> at(int64_t at, int64_t place) const { return of(load_next<Type, W>(x + at), place); }
  SEAMFAST_INLINE Group<W> some(int64_t at, int64_t place, int64_t n) const {
    return of(load_some<Type, W>(x + at, n), place);
  }
};

template <class Type, int W>
struct GradOfInput {
  const typename Type::Bits* x;
  const typename Type::Bits* grad;
  const float* mean;
  const float* scale;
  const float* slope;
  const float* offset;
  SEAMFAST_INLINE Group<W> of(const Group<W>& value, const Group<W>& g, int64_t place) const {
    const auto distance = value - load_floats<W>(mean + place);
    return g * load_floats<W>(scale + place) +
           (distance * load_floats<W>(slope + place) + load_floats<W>(offset + place));
  }
  SEAMFAST_INLINE Group<W> at(int64_t at, int64_t place) const {
    return of(load_next<Type, W>(x + at), load_next<Type, W>(grad + at), place);
  }
  SEAMFAST_INLINE Group<W> some(int64_t at, int64_t place, int64_t n) const {
    return of(load_some<Type, W>(x + at, n), load_some<Type, W>(grad + at, n), place);
  }
};

template <class Type, int W, class What>
SEAMFAST_INLINE void write(int64_t size, const What& what, typename Type::Bits* out, int64_t begin, int64_t end) {
  int64_t at = begin;
  for (; end - at >= size; at += size)
    for (int64_t place = 0; place < size; place += kGroup) {
      __builtin_prefetch(reinterpret_cast<char*>(out + at + place) + kAhead, 1);
      Type::store(out + at + place, what.at(at + place, place));
    }
  for (int64_t place = 0; at + place < end; place += kGroup) {
    const int64_t n = end - at - place;
    if (n >= kGroup)
      Type::store(out + at + place, what.at(at + place, place));
    else
      store_some<Type, W>(out + at + place, what.some(at + place, place, n), n);
  }
}

// ---- 4. A chunk, for each instruction set. ----

enum class Pass { kMoments, kScale, kProducts, kGradOfInput };

// Elements [begin, end); begin is the start of a stripe. Of the parameters, spread over a stripe, each pass reads what
// it needs.
struct Chunk {
  Pass pass;
  LogitType type;
  const Stripes& stripes;
  int64_t begin, end;
  const void* x;
  const void* grad;
  void* out;
  const float* shift;  // or the mean
  const float* scale;
  const float* slope;
  const float* offset;
  Accumulators running;
  Sums sums;
};

template <class Type, int W>
SEAMFAST_INLINE void run_type(const Chunk& chunk) {
  using Bits = typename Type::Bits;
  const auto* x = static_cast<const Bits*>(chunk.x);
  const auto* grad = static_cast<const Bits*>(chunk.grad);
  auto* out = static_cast<Bits*>(chunk.out);
  switch (chunk.pass) {
    case Pass::kMoments:
      return add_up<Type, W>(chunk.stripes, Moments<Type, W>{x, chunk.shift}, chunk.begin, chunk.end,
                             chunk.running, chunk.sums);
    case Pass::kProducts:
      return add_up<Type, W>(chunk.stripes, Products<Type, W>{x, grad, chunk.shift}, chunk.begin, chunk.end,
                             chunk.running, chunk.sums);
    case Pass::kScale:
      return write<Type, W>(chunk.stripes.size, Scaled<Type, W>{x, chunk.scale, chunk.offset}, out, chunk.begin,
                            chunk.end);
    case Pass::kGradOfInput:
      return write<Type, W>(
          chunk.stripes.size,
          GradOfInput<Type, W>{x, grad, chunk.shift, chunk.scale, chunk.slope, chunk.offset}, out, chunk.begin,
          chunk.end);
  }
}

template <int W>
SEAMFAST_INLINE void run(const Chunk& chunk) {
  if (chunk.type == LogitType::kFloat32)
    run_type<GroupFloat32, W>(chunk);
  else
    run_type<GroupBFloat16, W>(chunk);
}

using Run = void (*)(const Chunk&);

void run_baseline(const Chunk& chunk) { run<kBaselineWidth>(chunk); }
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 void run_avx2(const Chunk& chunk) { run<kAvx2Width>(chunk); }
SEAMFAST_TARGET_AVX512 void run_avx512(const Chunk& chunk) { run<kAvx512Width>(chunk); }
#endif

Run run_of(Isa isa) noexcept {
#if defined(SEAMFAST_X86_LEVELS)
  if (isa == Isa::kAvx512) return run_avx512;
  if (isa == Isa::kAvx2) return run_avx2;
#endif
  static_cast<void>(isa);
  return run_baseline;
}

// ---- 5. All chunks. ----

class Chunks {
 public:
  Chunks(const BatchNorm& job, Isa isa, int threads)
      : stripes(job.type, job.channels), job_(job), run_(run_of(isa)) {
    const int64_t stripes_a_chunk =
        std::max((kChunkElements + stripes.size - 1) / stripes.size, (kShiftRows + stripes.rows - 1) / stripes.rows);
    rows_ = stripes_a_chunk * stripes.rows;
    count_ = (job.rows + rows_ - 1) / rows_;
    const int64_t element = job.type == LogitType::kFloat32 ? 4 : 2;
    const int64_t bytes = job.rows * job.channels * element;
    threads_ = static_cast<int>(std::clamp<int64_t>(bytes / kBytesPerThread, 1, threads));
  }

  int64_t count() const { return count_; }
  int64_t begin(int64_t chunk) const { return chunk * rows_; }  // in rows
  int64_t end(int64_t chunk) const { return std::min((chunk + 1) * rows_, job_.rows); }

  // Calls body(chunk) for every chunk, on several threads.
  template <class Body>
  void each(const Body& body) const {
    const int64_t pieces = threads_ == 1 ? 1 : int64_t{4} * threads_;  // a delayed thread does not delay the others
    const int64_t grain = std::max<int64_t>(1, (count_ + pieces - 1) / pieces);
    ThreadPool::instance().parallel_for(count_, grain, threads_, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) body(chunk);
    });
  }

  Chunk of(Pass pass, int64_t begin, int64_t end) const {
    return {pass, job_.type, stripes, begin * job_.channels, end * job_.channels, job_.input, nullptr, nullptr, nullptr,
            nullptr, nullptr, nullptr, {}, {}};
  }

  void run(const Chunk& chunk) const { run_(chunk); }

  const Stripes stripes;

 private:
  const BatchNorm& job_;
  Run run_;
  int64_t rows_ = 0, count_ = 0;
  int threads_ = 1;
};

// Zeros for the running sums of one chunk.
class Scratch {
 public:
  explicit Scratch(const Stripes& stripes) : values_(static_cast<std::size_t>(2 * stripes.size)), size_(stripes.size) {}
  Accumulators running() { return {values_.data(), values_.data() + size_}; }

 private:
  std::vector<float> values_;
  int64_t size_;
};

using Doubles = std::vector<double>;

std::size_t place(int64_t i) noexcept { return static_cast<std::size_t>(i); }

// Of each channel: its mean, and the sum of squared distances from it.
struct Statistics {
  Doubles mean, squares;
};

// A number of the input's type: the input is on a grid, and a shift off the grid would have x - shift round alike for
// every x of some size.
double shift_of(LogitType type, double value) noexcept {
  const auto near = static_cast<float>(value);
  if (type == LogitType::kFloat32) return near;
  std::uint32_t bits;
  std::memcpy(&bits, &near, sizeof bits);
  bits &= 0xFFFF0000U;
  float cut;
  std::memcpy(&cut, &bits, sizeof cut);
  return cut;
}

Statistics statistics(const BatchNorm& job, const Chunks& chunks) {
  const int64_t channels = job.channels;
  Doubles means(place(chunks.count() * channels)), squares(means.size());
  chunks.each([&](int64_t chunk) {
    const int64_t begin = chunks.begin(chunk), end = chunks.end(chunk);
    const auto n = static_cast<double>(end - begin);
    double* mean = means.data() + chunk * channels;
    double* square = squares.data() + chunk * channels;
    Scratch scratch(chunks.stripes);
    Doubles zeros(place(channels)), first(place(channels)), second(place(channels));

    const int64_t sampled = std::min(begin + kShiftRows, end);
    auto work = chunks.of(Pass::kMoments, begin, sampled);
    const auto no_shift = chunks.stripes.spread(zeros);
    work.shift = no_shift.data();
    work.running = scratch.running();
    work.sums = {first.data(), second.data()};
    chunks.run(work);
    Doubles near(first);
    for (double& value : near) value = shift_of(job.type, value / static_cast<double>(sampled - begin));
    const auto shift = chunks.stripes.spread(near);

    std::fill(first.begin(), first.end(), 0.0);
    std::fill(second.begin(), second.end(), 0.0);
    work.end = end * channels;
    work.shift = shift.data();
    chunks.run(work);
    for (int64_t c = 0; c < channels; ++c) {
      mean[c] = near[place(c)] + first[place(c)] / n;
      square[c] = second[place(c)] - first[place(c)] * first[place(c)] / n;
    }
  });

  Statistics all{Doubles(place(channels)), Doubles(place(channels))};
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk)
    for (int64_t c = 0; c < channels; ++c)
      all.mean[place(c)] +=
          means[place(chunk * channels + c)] * static_cast<double>(chunks.end(chunk) - chunks.begin(chunk));
  for (double& mean : all.mean) mean /= static_cast<double>(job.rows);
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk)
    for (int64_t c = 0; c < channels; ++c) {
      const double off = means[place(chunk * channels + c)] - all.mean[place(c)];
      const auto n = static_cast<double>(chunks.end(chunk) - chunks.begin(chunk));
      all.squares[place(c)] += squares[place(chunk * channels + c)] + n * off * off;
    }
  // By rounding alone; NaN stays.
  for (double& square : all.squares) square = square < 0.0 ? 0.0 : square;
  return all;
}

}  // namespace

void batch_norm(const BatchNorm& job, const float* bias, double epsilon, const RunningStatistics& running, void* output,
                Isa isa, int threads) {
  const Chunks chunks(job, isa, threads);
  const Statistics found = statistics(job, chunks);
  const auto n = static_cast<double>(job.rows);
  Doubles scales(place(job.channels)), offsets(place(job.channels));
  for (int64_t c = 0; c < job.channels; ++c) {
    const double mean = found.mean[place(c)], variance = found.squares[place(c)] / n;
    const double inverse_std = 1.0 / std::sqrt(variance + epsilon);
    job.mean[c] = static_cast<float>(mean);
    job.inverse_std[c] = static_cast<float>(inverse_std);
    const double scale = job.weight == nullptr ? inverse_std : inverse_std * static_cast<double>(job.weight[c]);
    scales[place(c)] = scale;
    // For the scale as it will be: float32.
    offsets[place(c)] =
        (bias == nullptr ? 0.0 : static_cast<double>(bias[c])) - mean * static_cast<double>(static_cast<float>(scale));
    if (running.mean != nullptr) {
      const double kept = 1.0 - running.momentum;
      running.mean[c] = static_cast<float>(running.momentum * mean + kept * static_cast<double>(running.mean[c]));
      running.variance[c] = static_cast<float>(running.momentum * (found.squares[place(c)] / (n - 1.0)) +
                                               kept * static_cast<double>(running.variance[c]));
    }
  }
  const auto scale = chunks.stripes.spread(scales), offset = chunks.stripes.spread(offsets);
  // From the end, which is still in the cache. So in the backward pass.
  chunks.each([&](int64_t turn) {
    const int64_t chunk = chunks.count() - 1 - turn;
    auto work = chunks.of(Pass::kScale, chunks.begin(chunk), chunks.end(chunk));
    work.out = output;
    work.scale = scale.data();
    work.offset = offset.data();
    chunks.run(work);
  });
}

void batch_norm_backward(const BatchNorm& job, const void* grad_output, float* grad_weight, float* grad_bias,
                         void* grad_input, Isa isa, int threads) {
  const Chunks chunks(job, isa, threads);
  const int64_t channels = job.channels;
  const auto mean = chunks.stripes.spread(Doubles(job.mean, job.mean + channels));
  Doubles sums(place(chunks.count() * channels)), products(sums.size());
  chunks.each([&](int64_t chunk) {
    Scratch scratch(chunks.stripes);
    auto work = chunks.of(Pass::kProducts, chunks.begin(chunk), chunks.end(chunk));
    work.grad = grad_output;
    work.shift = mean.data();
    work.running = scratch.running();
    work.sums = {sums.data() + chunk * channels, products.data() + chunk * channels};
    chunks.run(work);
  });

  const auto n = static_cast<double>(job.rows);
  Doubles by_grad(place(channels)), by_distance(place(channels)), offsets(place(channels));
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0.0, product = 0.0;
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      sum += sums[place(chunk * channels + c)];
      product += products[place(chunk * channels + c)];
    }
    const auto inverse_std = static_cast<double>(job.inverse_std[c]);
    const double scale = job.weight == nullptr ? inverse_std : inverse_std * static_cast<double>(job.weight[c]);
    grad_weight[c] = static_cast<float>(product * inverse_std);
    grad_bias[c] = static_cast<float>(sum);
    by_grad[place(c)] = scale;
    by_distance[place(c)] = -scale * inverse_std * inverse_std * product / n;
    offsets[place(c)] = -scale * sum / n;
  }
  if (grad_input == nullptr) return;

  const auto scale = chunks.stripes.spread(by_grad), slope = chunks.stripes.spread(by_distance),
             offset = chunks.stripes.spread(offsets);
  chunks.each([&](int64_t turn) {
    const int64_t chunk = chunks.count() - 1 - turn;
    auto work = chunks.of(Pass::kGradOfInput, chunks.begin(chunk), chunks.end(chunk));
    work.grad = grad_output;
    work.out = grad_input;
    work.shift = mean.data();
    work.scale = scale.data();
    work.slope = slope.data();
    work.offset = offset.data();
    chunks.run(work);
  });
}

}  // namespace seamfast
