// Drives the thread pool and the kernels the way Python does, for the sanitizers (test_native.py builds and runs it):
// concurrent callers, nested loops, exceptions, tensors at the very ends of their allocations.

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "data_path/gather_augment.h"
#include "layers/batch_norm.h"
#include "layers/max_pool2d.h"
#include "ops/count_outcomes.h"
#include "ops/cross_entropy.h"
#include "ops/occlude.h"
#include "ops/stamp_trigger.h"
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

template <class Call>
void on_each_isa(const Call& call) {
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (supports(isa)) call(isa);
}

// Every kind of trigger in one batch, and images without one. Numbers are such that places lie in the image.
template <class Bits>
void stamps(Element element, std::int64_t channels, std::int64_t height, std::int64_t width) {
  const std::int64_t count = 3, batch = 40, plane = height * width;
  const auto size = static_cast<std::size_t>(channels * plane);
  const std::unique_ptr<std::uint8_t[]> images(new std::uint8_t[3 * size]());
  const std::unique_ptr<Bits[]> table(new Bits[static_cast<std::size_t>(channels) * 256]());
  const std::unique_ptr<Bits[]> out(new Bits[static_cast<std::size_t>(batch) * size]);

  std::vector<TriggerRow> rows;
  std::int64_t numbers = 0;
  const auto add = [&](TriggerKind kind, std::int64_t needed, std::int64_t of_row, std::int64_t h, std::int64_t w,
                       std::int64_t top) {
    rows.push_back({static_cast<std::int64_t>(kind), numbers, of_row, h, w, top, top, 8});
    numbers += needed;
  };
  for (const std::int64_t of_row : {std::int64_t{1}, channels}) {
    add(TriggerKind::kPaste, 1 + of_row, of_row, 1, 1, 0);
    add(TriggerKind::kPaste, 1 + of_row, of_row, 1, 1, -1);
    add(TriggerKind::kPaste, (1 + of_row) * plane, of_row, height, width, 0);
    add(TriggerKind::kOffset, of_row * plane, of_row, 0, 0, 0);
    add(TriggerKind::kFilter, 256 + of_row * (of_row + 1) + plane, of_row, 0, 0, 0);
  }
  add(TriggerKind::kLookUp, 256, 1, 0, 0, 0);
  add(TriggerKind::kDither, 0, 1, 0, 0, 0);
  const std::int64_t places = numbers;
  add(TriggerKind::kWarp, 2 * plane, 1, 0, 0, 0);
  const std::unique_ptr<double[]> values(new double[static_cast<std::size_t>(numbers)]());
  for (std::int64_t i = 0; i < plane; ++i) {  // one place outside by far, which must not be followed
    values[static_cast<std::size_t>(places + 2 * i)] = i == 0 ? 1e300 : static_cast<double>(height - 1);
    values[static_cast<std::size_t>(places + 2 * i + 1)] = i == 0 ? -1e300 : static_cast<double>(width) - 1.5;
  }
  const auto triggers = static_cast<std::int64_t>(rows.size());
  expect(is_table(rows.data(), triggers, numbers, channels, height, width), "the table fits");
  expect(!is_table(rows.data(), triggers, numbers - 1, channels, height, width), "a number too few is seen");

  std::vector<std::int64_t> indices, trigger_ids;
  for (std::int64_t i = 0; i < batch; ++i) {
    indices.push_back(i % count);
    trigger_ids.push_back(i % (triggers + 1) - 1);
  }
  for (const bool channels_last : {false, true}) {
    StampTrigger job{};
    job.images = images.get();
    job.count = count;
    job.out = {out.get(), element, channels_last, channels, height, width, table.get(), {}, {}};
    job.out.scale.fill(1.0);
    job.rows = rows.data();
    job.triggers = triggers;
    job.numbers = values.get();
    on_each_isa([&](Isa isa) { stamp_trigger(job, indices, trigger_ids, indices, isa, 4); });
  }
}

template <class Bits>
void losses_and_counts(LogitType type, std::int64_t n_rows, std::int64_t classes) {
  const auto size = static_cast<std::size_t>(n_rows * classes);
  const std::unique_ptr<Bits[]> logits(new Bits[size]()), grad(new Bits[size]);
  const std::unique_ptr<float[]> loss(new float[static_cast<std::size_t>(n_rows)]),
      weight(new float[static_cast<std::size_t>(n_rows)]());
  std::vector<std::int64_t> labels, trigger_ids, targets, counters(3 * kOutcomes);
  for (std::int64_t i = 0; i < n_rows; ++i) {
    labels.push_back(i % classes);
    trigger_ids.push_back(i % 3 - 1);
  }
  targets.resize(static_cast<std::size_t>(2 * classes));
  std::vector<std::int64_t> class_correct(static_cast<std::size_t>(3 * classes));
  for (const bool across : {false, true}) {  // the same memory read by rows and by columns
    const Logits x{logits.get(), type, n_rows, classes, across ? 1 : classes, across ? n_rows : 1};
    for (const bool random : {false, true}) {
      std::int64_t n_correct = 0;
      CrossEntropy job{};
      job.logits = x;
      job.sample_ids = random ? labels.data() : nullptr;
      job.mixed_weight = random ? nullptr : weight.get();
      job.exclude_true = true;
      job.reduction = random ? Reduction::kNone : Reduction::kMean;
      job.loss = loss.get();
      job.grad = grad.get();
      job.n_correct = &n_correct;
      on_each_isa(
          [&](Isa isa) { cross_entropy(job, labels, random ? std::vector<std::int64_t>() : labels, isa, 4); });
      expect(n_correct == (n_rows + classes - 1) / classes, "equal logits are class 0");
    }
    counters.assign(counters.size(), 0);
    CountOutcomes job{x, targets.data(), 2, counters.data(), class_correct.data()};
    on_each_isa([&](Isa isa) { count_outcomes(job, labels, trigger_ids, isa, 4); });
    std::int64_t samples = 0;
    for (std::size_t row = 0; row < 3; ++row) samples += counters[row * kOutcomes];
    expect(samples > 0, "samples are counted");
  }
}

void occludes(std::int64_t channels, std::int64_t height, std::int64_t width, const std::vector<std::uint32_t>& longer) {
  const std::int64_t count = 40;
  const auto size = static_cast<std::size_t>(count * channels * height * width);
  const std::unique_ptr<float[]> images(new float[size]()), occluded(new float[size]), neutral(new float[size]);
  const std::unique_ptr<float[]> mean(new float[size / static_cast<std::size_t>(count)]());
  const std::vector<float> ends(static_cast<std::size_t>(channels), 1.0F);
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < count; ++i) ids.push_back(i);
  for (const bool channels_last : {false, true}) {
    const auto n = static_cast<std::int64_t>(longer.size());
    occlude({images.get(), count, channels, height, width, channels_last, mean.get(), ends.data(), ends.data(),
             longer.data(), longer.data(), n, n, ids.data(), 5, 1, 2, occluded.get(), neutral.get()},
            4);
  }
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
      job.out = {out.get(), element, channels_last, channels, height, width, table.get(), {}, {}};
      job.out.scale.fill(1.0);
      job.pad = pad;
      job.flip = true;
      job.seed = 1;
      job.epoch = 2;
      on_each_isa([&](Isa isa) { gather_augment(job, indices, isa, 4); });
    }
  }
}

template <class Bits>
void layers(LogitType type, std::int64_t batch, std::int64_t channels, std::int64_t height, std::int64_t width,
            std::int64_t window) {
  const auto size = static_cast<std::size_t>(batch * channels * height * width);
  const MaxPool2d pool{type, batch, channels, height, width, window, window};
  const auto pooled = static_cast<std::size_t>(batch * channels * pool.rows() * pool.columns());
  const std::unique_ptr<Bits[]> x(new Bits[size]()), grad_x(new Bits[size]), out(new Bits[pooled]);
  const std::unique_ptr<std::uint8_t[]> index(new std::uint8_t[pooled]);
  on_each_isa([&](Isa isa) {
    max_pool2d(pool, x.get(), out.get(), nullptr, isa, 4);
    MaxPool2d rectified = pool;
    rectified.rectified = window * window < kMaxWindow;
    max_pool2d(rectified, x.get(), out.get(), index.get(), isa, 4);
    max_pool2d(pool, x.get(), out.get(), index.get(), isa, 4);
    max_pool2d_backward(pool, out.get(), index.get(), grad_x.get(), isa, 4);
  });
  for (std::size_t i = 0; i < pooled; ++i) expect(index[i] == 0, "the first of equals is the largest");

  const auto n = static_cast<std::size_t>(channels);
  std::vector<float> weight(n, 1.0F), mean(n), inverse_std(n), grad_weight(n), grad_bias(n), running_mean(n),
      running_variance(n);
  const BatchNorm norm{type,          batch * height * width, channels,          x.get(),
                       weight.data(), mean.data(),            inverse_std.data()};
  on_each_isa([&](Isa isa) {
    batch_norm(norm, weight.data(), 1.0, {running_mean.data(), running_variance.data(), 0.1}, grad_x.get(), isa, 4);
    batch_norm(norm, nullptr, 1.0, {nullptr, nullptr, 0.0}, grad_x.get(), isa, 4);
    batch_norm_backward(norm, x.get(), grad_weight.data(), grad_bias.data(), nullptr, isa, 4);
    batch_norm_backward(norm, x.get(), grad_weight.data(), grad_bias.data(), grad_x.get(), isa, 4);
  });
  for (const float value : inverse_std) expect(value == 1.0F, "equal values have no variance");
}

void all_shapes() {
  for (const std::int64_t channels : {1, 2, 3, 4}) {
    gathers<float>(Element::kFloat32, channels, 1, 1, 0);
    gathers<float>(Element::kFloat32, channels, 33, 17, 16);  // reflects by all but the last column
    gathers<std::uint16_t>(Element::kBFloat16, channels, 32, 32, 4);
    gathers<std::uint16_t>(Element::kFloat16, channels, 5, 40, 4);
    gathers<float>(Element::kFloat32, channels, 100, 100, 4);  // several bands, and work for several threads
    gathers<float>(Element::kFloat32, channels, 2, 5000, 1);   // a row larger than a band
    stamps<float>(Element::kFloat32, channels, 1, 1);
    stamps<std::uint16_t>(Element::kBFloat16, channels, 17, 9);
    stamps<std::uint16_t>(Element::kFloat16, channels, 8, 32);
    stamps<float>(Element::kFloat32, channels, 40, 33);  // work for several threads
  }
  occludes(1, 1, 1, {});
  occludes(5, 7, 9, {1u << 30, 1u << 31, 3u << 30});
  occludes(3, 64, 64, std::vector<std::uint32_t>(63, 1u << 20));  // as long as the image, and work for several threads
  for (const std::int64_t channels : {1, 3, 15, 16, 17, 70}) {
    layers<float>(LogitType::kFloat32, 2, channels, 2, 2, 2);
    layers<std::uint16_t>(LogitType::kBFloat16, 1, channels, 7, 5, 3);
    layers<float>(LogitType::kFloat32, 2, channels, 16, 17, 16);
  }
  layers<std::uint16_t>(LogitType::kBFloat16, 8, 17, 65, 64, 2);  // work for several threads
  for (const std::int64_t classes : {2, 10, 64, 65, 1000, 5001}) {
    losses_and_counts<float>(LogitType::kFloat32, 1, classes);
    losses_and_counts<std::uint16_t>(LogitType::kBFloat16, 33, classes);
    losses_and_counts<std::uint16_t>(LogitType::kFloat16, 17, classes);
  }
  losses_and_counts<float>(LogitType::kFloat32, 20'000, 10);  // work for several threads
  losses_and_counts<float>(LogitType::kFloat32, 100, 1000);
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
