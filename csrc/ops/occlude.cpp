#include "ops/occlude.h"

#include <algorithm>
#include <cstring>

#include "philox.h"
#include "thread_pool.h"

namespace seamfast {
namespace {

using std::int64_t;
using std::uint32_t;
using std::uint64_t;

// Waking a helper costs some 10 us; so much output takes about 50.
constexpr int64_t kBytesPerThread = 512 * 1024;

enum class Filling : uint32_t { kColor = 0, kExtreme = 1, kNoise = 2, kOther = 3 };

struct Span {
  int64_t begin, end;
};

// Where a rectangle lies along a side: from touching the first position to touching the last, pushed back inside.
Span span_of(uint32_t length_word, uint32_t place_word, const uint32_t* thresholds, int64_t n, int64_t side) {
  const int64_t length = 1 + (std::upper_bound(thresholds, thresholds + n, length_word) - thresholds);
  const int64_t place = below(place_word, static_cast<uint32_t>(side + length - 1)) - (length - 1);
  const int64_t begin = std::min(std::max<int64_t>(place, 0), side - length);
  return {begin, begin + length};
}

// Bits of a rectangle's noise, generated four words at a time on demand.
class Noise {
 public:
  Noise(const Occlude& job, uint64_t sample, int64_t rectangle) : job_(job), sample_(sample), rectangle_(rectangle) {}

  bool at(int64_t place) {
    if (place / 128 != block_) {
      block_ = place / 128;
      words_ = draw(job_.seed, sample_, job_.step, noise_stream(rectangle_, block_));
    }
    return (words_[static_cast<std::size_t>(place % 128 / 32)] >> (place % 32) & 1) != 0;
  }

 private:
  const Occlude& job_;
  uint64_t sample_;
  int64_t rectangle_;
  int64_t block_ = -1;
  PhiloxCounter words_{};
};

void paste(const Occlude& job, int64_t i, int64_t rectangle) {
  const int64_t plane = job.height * job.width, size = job.channels * plane;
  const auto sample = static_cast<uint64_t>(job.sample_ids[i]);
  const auto sides = draw(job.seed, sample, job.step, occlude_stream(rectangle, 0));
  const auto kinds = draw(job.seed, sample, job.step, occlude_stream(rectangle, 1));
  PhiloxCounter colors{};
  const Span rows = span_of(sides[0], sides[1], job.heights, job.n_heights, job.height);
  const Span columns = span_of(sides[2], sides[3], job.widths, job.n_widths, job.width);
  const auto filling = static_cast<Filling>(kinds[0] >> 30);
  const float* other = job.images + below(kinds[1], static_cast<uint32_t>(job.count)) * size;
  Noise noise(job, sample, rectangle);

  for (int64_t c = 0; c < job.channels; ++c) {
    if (c % 4 == 0) colors = draw(job.seed, sample, job.step, occlude_stream(rectangle, 2 + static_cast<uint32_t>(c / 4)));
    const uint32_t word = colors[static_cast<std::size_t>(c % 4)];
    const float low = job.lowest[c], reach = job.reach[c];
    const float share = filling == Filling::kColor ? static_cast<float>(word >> 8) * 0x1p-24F
                                                   : static_cast<float>(word >> 31);
    const float value = low + reach * share, high = low + reach;
    for (int64_t y = rows.begin; y < rows.end; ++y)
      for (int64_t x = columns.begin; x < columns.end; ++x) {
        const int64_t place = c * plane + y * job.width + x;
        const int64_t at = job.channels_last ? (y * job.width + x) * job.channels + c : place;
        float seen = value;
        if (filling == Filling::kNoise) seen = noise.at(place) ? high : low;
        if (filling == Filling::kOther) seen = other[at];
        job.occluded[i * size + at] = seen;
        job.neutral[i * size + at] = job.mean[place];
      }
  }
}

}  // namespace

void occlude(const Occlude& job, int threads) {
  const int64_t size = job.channels * job.height * job.width;
  const auto bytes = static_cast<std::size_t>(size) * sizeof(float);
  const int64_t useful = std::clamp<int64_t>(2 * job.count * static_cast<int64_t>(bytes) / kBytesPerThread, 1, threads);
  const int64_t pieces = 4 * useful;  // so that a delayed thread does not delay the others
  const int64_t grain = std::max<int64_t>(1, (job.count + pieces - 1) / pieces);
  ThreadPool::instance().parallel_for(job.count, grain, static_cast<int>(useful), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(job.occluded + i * size, job.images + i * size, bytes);
      std::memcpy(job.neutral + i * size, job.images + i * size, bytes);
      for (int64_t rectangle = 0; rectangle < job.n_rectangles; ++rectangle) paste(job, i, rectangle);
    }
  });
}

}  // namespace seamfast
