#include "ops/cross_entropy.h"

#include <utility>
#include <vector>

#include "bindings/bindings.h"

namespace seamfast::bindings {
namespace {

// (which, position) of the first label out of range: 0 for `labels`, 1 for `mixed_labels`; (-1, -1) if there is none.
std::pair<int, std::int64_t> call_cross_entropy(std::uintptr_t logits, int type, std::int64_t rows, std::int64_t classes,
                                                std::int64_t row_stride, std::int64_t column_stride,
                                                std::uintptr_t labels, std::uintptr_t sample_ids,
                                                std::uintptr_t mixed_labels, std::uintptr_t mixed_weight,
                                                std::uint64_t seed, std::uint32_t step, bool exclude_true,
                                                int reduction, std::uintptr_t loss, std::uintptr_t grad,
                                                std::uintptr_t n_correct, int threads, const std::string& isa) {
  CrossEntropy job{};
  job.logits = logits_of(logits, type, rows, classes, row_stride, column_stride);
  require(classes >= 2, "classes is below 2");
  require(reduction >= 0 && reduction <= static_cast<int>(Reduction::kMean), "reduction is not in [0, 2]");
  require(loss != 0 && n_correct != 0, "an address is null");
  require(rows == 0 || labels != 0, "an address is null");
  require((mixed_labels == 0) == (mixed_weight == 0), "mixed labels and their weights do not come together");
  threads = threads_of(threads);
  job.sample_ids = reinterpret_cast<const std::int64_t*>(sample_ids);
  job.mixed_weight = reinterpret_cast<const float*>(mixed_weight);
  job.seed = seed;
  job.step = step;
  job.exclude_true = exclude_true;
  job.reduction = static_cast<Reduction>(reduction);
  job.loss = reinterpret_cast<float*>(loss);
  job.grad = reinterpret_cast<void*>(grad);
  job.n_correct = reinterpret_cast<std::int64_t*>(n_correct);
  const Isa chosen = isa_named(isa);

  const py::gil_scoped_release release;
  const auto own = copied(labels, rows);
  const auto mixed = copied(mixed_labels, mixed_labels == 0 ? 0 : rows);
  if (const auto bad = first_outside(own, 0, classes); bad >= 0) return {0, bad};
  if (const auto bad = first_outside(mixed, 0, classes); bad >= 0) return {1, bad};
  cross_entropy(job, own, mixed, chosen, threads);
  return {-1, -1};
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
  m.def("cross_entropy", &call_cross_entropy,
        "Writes loss, gradient and count, and returns (-1, -1); or writes nothing and returns which labels (0: labels, "
        "1: mixed labels) and the position of the first out of range.",
        py::arg("logits"), py::arg("type"), py::arg("rows"), py::arg("classes"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("labels"), py::arg("sample_ids"), py::arg("mixed_labels"),
        py::arg("mixed_weight"), py::arg("seed"), py::arg("step"), py::arg("exclude_true"), py::arg("reduction"),
        py::arg("loss"), py::arg("grad"), py::arg("n_correct"), py::arg("threads"), py::arg("isa"));
}

}  // namespace seamfast::bindings
