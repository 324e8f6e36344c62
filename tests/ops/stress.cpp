// Drives the thread pool and the kernel the way Python does, for the sanitizers (test_native.py builds and runs it):
// concurrent callers, nested loops, exceptions, images at the very ends of their allocations.

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "data_path/gather_augment.h"
#include "thread_pool.h"

namespace {

using namespace seamfast;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

void covers_each_once() {
  std::vector<int> seen(1003);
  ThreadPool::instance().parallel_for(1003, 10, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
  });
  for (const int times : seen) expect(times == 1, "every index is visited once");
}

void nests() {
  std::atomic<std::int64_t> sum{0};
  ThreadPool::instance().parallel_for(8, 1, 4, [&](std::int64_t, std::int64_t) {
    ThreadPool::instance().parallel_for(100, 1, 4, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
  });
  expect(sum == 800, "a body may call the pool");
}

void throws() {
  bool caught = false;
  try {
    ThreadPool::instance().parallel_for(1000, 1, 4, [](std::int64_t begin, std::int64_t) {
      if (begin == 500) throw std::runtime_error("body");
    });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  expect(caught, "the body's exception reaches the caller");
}

template <class Bits>
void gathers(Element element, std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t pad) {
  const std::int64_t count = 3, batch = 40;
  const auto size = static_cast<std::size_t>(channels * height * width);
  // Exactly as large as they must be, so that the address sanitizer sees one byte too many.
  const std::unique_ptr<std::uint8_t[]> images(new std::uint8_t[3 * size]);
  for (std::size_t i = 0; i < 3 * size; ++i) images[i] = static_cast<std::uint8_t>(i * 7);
  const std::unique_ptr<Bits[]> table(new Bits[static_cast<std::size_t>(channels) * 256]());
  const std::unique_ptr<Bits[]> out(new Bits[static_cast<std::size_t>(batch) * size]);
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < batch; ++i) indices.push_back(i % count);

  for (const bool channels_last : {false, true}) {
    for (const bool computes : {false, true}) {
      // With the table that the arithmetic gives, and with one that it cannot give (all zeros).
      for (std::int64_t i = 0; i < channels * 256; ++i)
        table[static_cast<std::size_t>(i)] = static_cast<Bits>(computes ? i % 256 : 0);
      GatherAugment job{};
      job.images = images.get();
      job.count = count;
      job.channels = channels;
      job.height = height;
      job.width = width;
      job.out = out.get();
      job.element = element;
      job.channels_last = channels_last;
      job.table = table.get();
      job.scale.fill(1.0);
      job.bias.fill(0.0);
      job.pad = pad;
      job.flip = true;
      job.seed = 1;
      job.epoch = 2;
      for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
        if (supports(isa)) gather_augment(job, indices, isa, 4);
    }
  }
}

void all_shapes() {
  for (const std::int64_t channels : {1, 2, 3, 4}) {
    gathers<float>(Element::kFloat32, channels, 1, 1, 0);
    gathers<float>(Element::kFloat32, channels, 33, 17, 16);  // reflects by all but the last column
    gathers<std::uint16_t>(Element::kBFloat16, channels, 32, 32, 4);
    gathers<std::uint16_t>(Element::kFloat16, channels, 5, 40, 4);
    gathers<float>(Element::kFloat32, channels, 100, 100, 4);  // several bands, and work for several threads
    gathers<float>(Element::kFloat32, channels, 2, 5000, 1);   // a row larger than a band
  }
}

}  // namespace

int main() {
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([] {
      for (int repeat = 0; repeat < 20; ++repeat) {
        covers_each_once();
        nests();
        throws();
      }
      all_shapes();
    });
  }
  for (auto& caller : callers) caller.join();
}
