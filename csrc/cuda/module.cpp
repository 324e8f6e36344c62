// seamfast._cuda: the Python module of the CUDA kernels.
//
// It does not use torch: tensors arrive as addresses and sizes, counters as (number, address or 0), streams as handles.
// seamfast/ops/cuda owns the tensors, which lie on `device`, and has checked them; what could still corrupt memory, and
// can be checked on the host, is checked again.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/cross_entropy.h"
#include "cuda/stamp_trigger.h"
#include "philox.h"

namespace {

namespace py = pybind11;
using namespace seamfast;
using std::int64_t;
using std::uintptr_t;

// Raised by one whenever a signature of a binding changes, so that a stale build is rejected.
constexpr int kInterface = 2;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("seamfast._cuda: ") + what);
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Element element_of(int element) {
  require(element >= 0 && element <= static_cast<int>(Element::kFloat16), "element is not in [0, 2]");
  return static_cast<Element>(element);
}

std::string why_unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

std::uint32_t cross_entropy_blocks(int64_t rows, int64_t classes) {
  require(rows >= 0, "a size is negative");
  require(classes >= 2 && classes <= cuda::kMaxClasses, "classes is not in [2, 1024]");
  return cuda::loss_blocks(rows, classes);
}

void call_cross_entropy(uintptr_t logits, int element, int64_t rows, int64_t classes, int64_t row_stride,
                        int64_t column_stride, uintptr_t labels, uintptr_t sample_ids, uintptr_t mixed_labels,
                        uintptr_t mixed_weight, std::uint64_t seed, uintptr_t seed_at, std::uint64_t step,
                        uintptr_t step_at, bool exclude_true, double scale, bool each, uintptr_t loss, uintptr_t grad,
                        uintptr_t n_correct, uintptr_t parts, int device, uintptr_t stream) {
  const std::uint32_t blocks = cross_entropy_blocks(rows, classes);
  require(rows >= 1, "there are no rows");
  require(row_stride >= 0 && column_stride >= 0, "a stride is negative");
  require(logits != 0 && labels != 0 && loss != 0 && n_correct != 0, "an address is null");
  require(blocks == 1 || parts != 0, "an address is null");
  require((mixed_labels == 0) == (mixed_weight == 0), "mixed labels and their weights do not come together");
  const cuda::LossJob job{at<const void>(logits),
                          rows,
                          static_cast<std::int32_t>(classes),
                          row_stride,
                          column_stride,
                          at<const int64_t>(labels),
                          at<const int64_t>(sample_ids),
                          at<const int64_t>(mixed_labels),
                          at<const float>(mixed_weight),
                          {seed, at<const std::uint64_t>(seed_at)},
                          {step, at<const std::uint64_t>(step_at)},
                          exclude_true,
                          static_cast<float>(scale),
                          each,
                          at<float>(loss),
                          at<void>(grad),
                          at<int64_t>(n_correct),
                          at<cuda::LossPart>(parts),
                          blocks};
  const Element type = element_of(element);
  const py::gil_scoped_release release;  // a launch waits where the queue is full
  cuda::cross_entropy(job, type, {device, at<CUstream_st>(stream)});
}

bool dithers(uintptr_t rows, int64_t triggers) {
  require(triggers >= 0, "a size is negative");
  require(triggers == 0 || rows != 0, "an address is null");
  const auto* first = at<const TriggerRow>(rows);
  for (const TriggerRow* row = first; row < first + triggers; ++row)
    if (row->kind == static_cast<int64_t>(TriggerKind::kDither)) return true;
  return false;
}

void call_stamp_trigger(uintptr_t images, int64_t count, int64_t channels, int64_t height, int64_t width,
                        uintptr_t indices, uintptr_t trigger_ids, uintptr_t sample_ids, int64_t batch,
                        uintptr_t rows, int64_t triggers, uintptr_t numbers, uintptr_t table, int element,
                        std::uint64_t seed, uintptr_t seed_at, uintptr_t out, bool channels_last, uintptr_t above,
                        int device, uintptr_t stream) {
  require(batch >= 1, "there are no images");
  require(count >= 0 && triggers >= 0, "a size is negative");
  require(channels >= 1 && channels <= kMaxChannels, "channels is not in [1, 4]");
  require(height >= 1 && width >= 1, "an image has no pixels");
  require(height <= cuda::kMaxImage / channels / width, "an image has more than 2^30 values");
  require(images != 0 || count == 0, "an address is null");
  require(indices != 0 && trigger_ids != 0 && sample_ids != 0 && table != 0 && out != 0, "an address is null");
  require(triggers == 0 || (rows != 0 && numbers != 0), "an address is null");
  constexpr std::uint32_t kNan[] = {0x7FC00000, 0x7FC0, 0x7E00};
  const Element type = element_of(element);
  const cuda::StampJob job{at<const std::uint8_t>(images),
                           count,
                           static_cast<std::int32_t>(channels),
                           static_cast<std::int32_t>(height),
                           static_cast<std::int32_t>(width),
                           at<const int64_t>(indices),
                           at<const int64_t>(trigger_ids),
                           at<const int64_t>(sample_ids),
                           batch,
                           at<const TriggerRow>(rows),
                           triggers,
                           at<const double>(numbers),
                           at<const void>(table),
                           kNan[element],
                           {seed, at<const std::uint64_t>(seed_at)},
                           at<void>(out),
                           channels_last,
                           at<double>(above)};
  const py::gil_scoped_release release;  // a launch waits where the queue is full
  cuda::stamp_trigger(job, type, {device, at<CUstream_st>(stream)});
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "The CUDA part of seamfast. Private: call seamfast.ops.";
  m.attr("INTERFACE") = kInterface;
  m.attr("MAX_CLASSES") = cuda::kMaxClasses;
  m.def("why_unavailable", &why_unavailable, "Why the runtime finds no device, or nothing.");
  m.def("cross_entropy_blocks", &cross_entropy_blocks, py::arg("rows"), py::arg("classes"),
        "How many parts of 8 bytes `cross_entropy` wants; of one it can do without.");
  m.def("cross_entropy", &call_cross_entropy, "Launches what writes loss, gradient and count.", py::arg("logits"),
        py::arg("element"), py::arg("rows"), py::arg("classes"), py::arg("row_stride"), py::arg("column_stride"),
        py::arg("labels"), py::arg("sample_ids"), py::arg("mixed_labels"), py::arg("mixed_weight"), py::arg("seed"),
        py::arg("seed_at"), py::arg("step"), py::arg("step_at"), py::arg("exclude_true"), py::arg("scale"),
        py::arg("each"), py::arg("loss"), py::arg("grad"), py::arg("n_correct"), py::arg("parts"), py::arg("device"),
        py::arg("stream"));
  m.def("dithers", &dithers, py::arg("rows"), py::arg("triggers"), "Whether a table, on the CPU, dithers.");
  m.def("stamp_trigger", &call_stamp_trigger, "Launches what fills `out`.", py::arg("images"), py::arg("count"),
        py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("indices"),
        py::arg("trigger_ids"), py::arg("sample_ids"), py::arg("batch"), py::arg("rows"), py::arg("triggers"),
        py::arg("numbers"), py::arg("table"), py::arg("element"), py::arg("seed"), py::arg("seed_at"), py::arg("out"),
        py::arg("channels_last"), py::arg("above"), py::arg("device"), py::arg("stream"));
}
