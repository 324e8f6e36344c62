#include "ops/count_outcomes.h"

#include <utility>
#include <vector>

#include "bindings/bindings.h"

namespace seamfast::bindings {
namespace {

// (which, position) of the first element out of range: 0 for `labels`, 1 for `trigger_ids`; (-1, -1) if there is none.
std::pair<int, std::int64_t> call_count_outcomes(std::uintptr_t logits, int type, std::int64_t rows,
                                                 std::int64_t classes, std::int64_t row_stride,
                                                 std::int64_t column_stride, std::uintptr_t labels,
                                                 std::uintptr_t trigger_ids, std::uintptr_t targets,
                                                 std::int64_t triggers, std::uintptr_t counters,
                                                 std::uintptr_t class_correct, int threads, const std::string& isa) {
  CountOutcomes job{};
  job.logits = logits_of(logits, type, rows, classes, row_stride, column_stride);
  require(classes >= 1, "classes is below 1");
  require(triggers >= 0, "a size is negative");
  require(counters != 0 && (rows == 0 || labels != 0) && (triggers == 0 || targets != 0), "an address is null");
  threads = threads_of(threads);
  job.targets = reinterpret_cast<const std::int64_t*>(targets);
  job.triggers = triggers;
  job.counters = reinterpret_cast<std::int64_t*>(counters);
  job.class_correct = reinterpret_cast<std::int64_t*>(class_correct);
  const Isa chosen = isa_named(isa);

  const py::gil_scoped_release release;
  const auto own = copied(labels, rows);
  const auto ids = copied(trigger_ids, trigger_ids == 0 ? 0 : rows);
  if (const auto bad = first_outside(own, 0, classes); bad >= 0) return {0, bad};
  if (const auto bad = first_outside(ids, -1, triggers); bad >= 0) return {1, bad};
  count_outcomes(job, own, ids, chosen, threads);
  return {-1, -1};
}

}  // namespace

void bind_count_outcomes(py::module_& m) {
  m.def("count_outcomes", &call_count_outcomes,
        "Adds to the counters and returns (-1, -1); or writes nothing and returns which ids (0: labels, 1: trigger ids) "
        "and the position of the first out of range.",
        py::arg("logits"), py::arg("type"), py::arg("rows"), py::arg("classes"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("labels"), py::arg("trigger_ids"), py::arg("targets"), py::arg("triggers"),
        py::arg("counters"), py::arg("class_correct"), py::arg("threads"), py::arg("isa"));
}

}  // namespace seamfast::bindings
