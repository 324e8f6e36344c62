#include "ops/occlude.h"

#include "bindings/bindings.h"

namespace seamfast::bindings {
namespace {

void call_occlude(std::uintptr_t images, std::array<std::int64_t, 4> shape, bool channels_last, std::uintptr_t mean,
                  const std::vector<float>& lowest, const std::vector<float>& reach,
                  const std::vector<std::uint32_t>& heights, const std::vector<std::uint32_t>& widths,
                  std::uintptr_t sample_ids, std::int64_t n_rectangles, std::uint64_t seed, std::uint32_t step,
                  std::uintptr_t occluded, std::uintptr_t neutral, int threads) {
  const auto [count, channels, height, width] = shape;
  require(count >= 0, "a size is negative");
  require(n_rectangles >= 0 && n_rectangles <= kMaxRectangles, "n_rectangles is not in [0, 64]");
  require(channels >= 1 && channels <= kMaxOccludedChannels, "channels is not in [1, 4088]");
  require(height >= 1 && width >= 1, "an image has no pixels");
  require(static_cast<std::int64_t>(lowest.size()) == channels, "lowest is not one number a channel");
  require(static_cast<std::int64_t>(reach.size()) == channels, "reach is not one number a channel");
  require(static_cast<std::int64_t>(heights.size()) < height, "a rectangle is higher than the image");
  require(static_cast<std::int64_t>(widths.size()) < width, "a rectangle is wider than the image");
  require(count == 0 || (images != 0 && mean != 0 && sample_ids != 0 && occluded != 0 && neutral != 0),
          "an address is null");
  Occlude job{};
  job.images = reinterpret_cast<const float*>(images);
  job.count = count;
  job.channels = channels;
  job.height = height;
  job.width = width;
  job.channels_last = channels_last;
  job.mean = reinterpret_cast<const float*>(mean);
  job.lowest = lowest.data();
  job.reach = reach.data();
  job.heights = heights.data();
  job.n_heights = static_cast<std::int64_t>(heights.size());
  job.widths = widths.data();
  job.n_widths = static_cast<std::int64_t>(widths.size());
  job.sample_ids = reinterpret_cast<const std::int64_t*>(sample_ids);
  job.n_rectangles = n_rectangles;
  job.seed = seed;
  job.step = step;
  job.occluded = reinterpret_cast<float*>(occluded);
  job.neutral = reinterpret_cast<float*>(neutral);
  threads = threads_of(threads);
  const py::gil_scoped_release release;
  occlude(job, threads);
}

}  // namespace

void bind_occlude(py::module_& m) {
  m.def("occlude", &call_occlude, "Fills `occluded` and `neutral`.", py::kw_only(), py::arg("images"), py::arg("shape"),
        py::arg("channels_last"), py::arg("mean"), py::arg("lowest"), py::arg("reach"), py::arg("heights"),
        py::arg("widths"), py::arg("sample_ids"), py::arg("n_rectangles"), py::arg("seed"), py::arg("step"),
        py::arg("occluded"), py::arg("neutral"), py::arg("threads"));
}

}  // namespace seamfast::bindings
