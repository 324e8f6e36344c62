#include "data_path/gather_augment.h"

#include <vector>

#include "bindings/bindings.h"

namespace seamfast::bindings {
namespace {

std::int64_t call_gather_augment(std::uintptr_t images, std::array<std::int64_t, 4> shape, std::uintptr_t indices,
                                 std::int64_t batch, std::uintptr_t out, int element, bool channels_last,
                                 std::uintptr_t table, const std::vector<double>& scale,
                                 const std::vector<double>& bias, std::int64_t pad, bool flip, std::uint64_t seed,
                                 std::uint32_t epoch, int threads, const std::string& isa) {
  const auto [count, channels, height, width] = shape;
  GatherAugment job{};
  job.out = pixels_of(out, batch, element, channels_last, channels, height, width, table, scale, bias);
  require(count >= 0, "a size is negative");
  require(pad >= 0 && pad < std::min(height, width), "pad is not in [0, min(height, width))");
  require(pad < (std::int64_t{1} << 31), "pad is 2^31 or more");
  require(batch == 0 || (indices != 0 && (images != 0 || count == 0)), "an address is null");
  threads = threads_of(threads);
  job.images = reinterpret_cast<const std::uint8_t*>(images);
  job.count = count;
  job.pad = pad;
  job.flip = flip;
  job.seed = seed;
  job.epoch = epoch;
  const Isa chosen = isa_named(isa);

  const py::gil_scoped_release release;
  const auto ids = copied(indices, batch);
  const std::int64_t bad = first_outside(ids, 0, count);
  if (bad < 0) gather_augment(job, ids, chosen, threads);
  return bad;
}

bool call_computes(int element, std::uintptr_t table, double scale, double bias, const std::string& isa) {
  const PixelsOut to = pixels_of(0, 0, element, false, 1, 1, 1, table, {scale}, {bias});
  return computed_channels(to, isa_named(isa))[0];
}

}  // namespace

void bind_gather_augment(py::module_& m) {
  m.def("gather_augment", &call_gather_augment,
        "Fills `out` and returns -1; or writes nothing and returns the position of the first index out of range.",
        py::kw_only(), py::arg("images"), py::arg("shape"), py::arg("indices"), py::arg("batch"), py::arg("out"),
        py::arg("element"), py::arg("channels_last"), py::arg("table"), py::arg("scale"), py::arg("bias"),
        py::arg("pad"), py::arg("flip"), py::arg("seed"), py::arg("epoch"), py::arg("threads"), py::arg("isa"));
  m.def("gather_augment_computes", &call_computes,
        "Whether a channel with this table is computed, not looked up. For tests: only the time shows it.",
        py::kw_only(), py::arg("element"), py::arg("table"), py::arg("scale"), py::arg("bias"), py::arg("isa"));
}

}  // namespace seamfast::bindings
