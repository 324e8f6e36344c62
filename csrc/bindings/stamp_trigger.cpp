#include "ops/stamp_trigger.h"

#include <utility>

#include "bindings/bindings.h"

namespace seamfast::bindings {
namespace {

static_assert(sizeof(TriggerRow) == 8 * sizeof(std::int64_t), "a row of the table is eight integers");

// (which, position) of the first element out of range: 0 for `indices`, 1 for `trigger_ids`; (-1, -1) if there is none.
std::pair<int, std::int64_t> call_stamp_trigger(std::uintptr_t images, std::array<std::int64_t, 4> shape,
                                                std::uintptr_t indices, std::uintptr_t trigger_ids,
                                                std::uintptr_t sample_ids, std::int64_t batch, std::uintptr_t rows,
                                                std::int64_t triggers, std::uintptr_t numbers, std::int64_t size,
                                                std::uintptr_t out, int element, bool channels_last,
                                                std::uintptr_t table, const std::vector<double>& scale,
                                                const std::vector<double>& bias, std::uint64_t seed, int threads,
                                                const std::string& isa) {
  const auto [count, channels, height, width] = shape;
  StampTrigger job{};
  job.out = pixels_of(out, batch, element, channels_last, channels, height, width, table, scale, bias);
  require(count >= 0 && triggers >= 0 && size >= 0, "a size is negative");
  require(triggers == 0 || (rows != 0 && numbers != 0), "an address is null");
  require(batch == 0 || (indices != 0 && trigger_ids != 0 && sample_ids != 0 && (images != 0 || count == 0)),
          "an address is null");
  threads = threads_of(threads);
  const Isa chosen = isa_named(isa);

  const py::gil_scoped_release release;
  const auto* first = reinterpret_cast<const TriggerRow*>(rows);
  const std::vector<TriggerRow> own(first, first + triggers);
  require(is_table(own.data(), triggers, size, channels, height, width), "the trigger table does not fit the images");
  job.images = reinterpret_cast<const std::uint8_t*>(images);
  job.count = count;
  job.rows = own.data();
  job.triggers = triggers;
  job.numbers = reinterpret_cast<const double*>(numbers);
  job.seed = seed;
  const auto from = copied(indices, batch), by = copied(trigger_ids, batch), ids = copied(sample_ids, batch);
  if (const auto bad = first_outside(from, 0, count); bad >= 0) return {0, bad};
  if (const auto bad = first_outside(by, -1, triggers); bad >= 0) return {1, bad};
  stamp_trigger(job, from, by, ids, chosen, threads);
  return {-1, -1};
}

}  // namespace

void bind_stamp_trigger(py::module_& m) {
  m.def("stamp_trigger", &call_stamp_trigger,
        "Fills `out` and returns (-1, -1); or writes nothing and returns which ids (0: indices, 1: trigger ids) and the "
        "position of the first out of range.",
        py::kw_only(), py::arg("images"), py::arg("shape"), py::arg("indices"), py::arg("trigger_ids"),
        py::arg("sample_ids"), py::arg("batch"), py::arg("rows"), py::arg("triggers"), py::arg("numbers"),
        py::arg("size"), py::arg("out"), py::arg("element"), py::arg("channels_last"), py::arg("table"),
        py::arg("scale"), py::arg("bias"), py::arg("seed"), py::arg("threads"), py::arg("isa"));
}

}  // namespace seamfast::bindings
