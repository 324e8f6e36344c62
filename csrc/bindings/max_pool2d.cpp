#include "layers/max_pool2d.h"

#include "bindings/bindings.h"

namespace seamfast::bindings {
namespace {

MaxPool2d pool_of(int type, std::array<std::int64_t, 4> shape, std::array<std::int64_t, 2> window,
                  bool rectified = false) {
  const auto [batch, channels, height, width] = shape;
  require(type >= 0 && type <= static_cast<int>(LogitType::kBFloat16), "type is not in [0, 1]");
  require(batch >= 0, "a size is negative");
  require(channels >= 1 && height >= 1 && width >= 1, "an image has no pixels");
  require(window[0] >= 1 && window[0] <= height && window[1] >= 1 && window[1] <= width,
          "the window does not fit the image");
  require(window[0] <= kMaxWindow && window[1] <= kMaxWindow / window[0], "the window has more than 256 pixels");
  require(!rectified || window[0] * window[1] < kMaxWindow, "the window leaves no index for where nothing is above 0");
  return {static_cast<LogitType>(type), batch, channels, height, width, window[0], window[1], rectified};
}

void call_max_pool2d(std::uintptr_t input, int type, std::array<std::int64_t, 4> shape,
                     std::array<std::int64_t, 2> window, bool rectified, std::uintptr_t output, std::uintptr_t index,
                     int threads, const std::string& isa) {
  const MaxPool2d job = pool_of(type, shape, window, rectified);
  require(job.batch == 0 || (input != 0 && output != 0), "an address is null");
  threads = threads_of(threads);
  const Isa chosen = isa_named(isa);
  const py::gil_scoped_release release;
  max_pool2d(job, reinterpret_cast<const void*>(input), reinterpret_cast<void*>(output),
             reinterpret_cast<std::uint8_t*>(index), chosen, threads);
}

void call_max_pool2d_backward(std::uintptr_t grad_output, std::uintptr_t index, int type,
                              std::array<std::int64_t, 4> shape, std::array<std::int64_t, 2> window,
                              std::uintptr_t grad_input, int threads, const std::string& isa) {
  const MaxPool2d job = pool_of(type, shape, window);
  require(job.batch == 0 || (grad_output != 0 && index != 0 && grad_input != 0), "an address is null");
  threads = threads_of(threads);
  const Isa chosen = isa_named(isa);
  const py::gil_scoped_release release;
  max_pool2d_backward(job, reinterpret_cast<const void*>(grad_output), reinterpret_cast<const std::uint8_t*>(index),
                      reinterpret_cast<void*>(grad_input), chosen, threads);
}

}  // namespace

void bind_max_pool2d(py::module_& m) {
  m.def("max_pool2d", &call_max_pool2d, "Fills `output` and, where it is not null, `index`.", py::kw_only(),
        py::arg("input"), py::arg("type"), py::arg("shape"), py::arg("window"), py::arg("rectified"), py::arg("output"),
        py::arg("index"), py::arg("threads"), py::arg("isa"));
  m.def("max_pool2d_backward", &call_max_pool2d_backward, "Fills `grad_input`.", py::kw_only(), py::arg("grad_output"),
        py::arg("index"), py::arg("type"), py::arg("shape"), py::arg("window"), py::arg("grad_input"),
        py::arg("threads"), py::arg("isa"));
}

}  // namespace seamfast::bindings
