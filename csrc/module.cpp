// seamfast._native: the only file that knows Python, and it knows nothing of torch. Tensors arrive as addresses and
// sizes; seamfast/ops/cpp.py owns the tensors for the length of a call and has checked them. What could still corrupt
// memory is checked again here.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "data_path/gather_augment.h"
#include "isa.h"
#include "philox.h"
#include "thread_pool.h"

namespace py = pybind11;

namespace {

using namespace seamfast;

// Raised by one whenever a signature below changes, so that a stale build is refused instead of called wrongly.
constexpr int kInterface = 1;

constexpr int kMaxThreads = 1024;
constexpr std::array kIsas = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("seamfast._native: ") + what);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa isa : kIsas)
    if (supports(isa)) names.emplace_back(name(isa));
  return names;
}

Isa isa_named(const std::string& wanted) {
  if (wanted.empty()) return best_isa();
  const auto found = std::find_if(kIsas.begin(), kIsas.end(), [&](Isa isa) { return wanted == name(isa); });
  require(found != kIsas.end() && supports(*found), "isa is not one that this CPU runs");
  return *found;
}

std::int64_t call_gather_augment(std::uintptr_t images, std::array<std::int64_t, 4> shape, std::uintptr_t indices,
                                 std::int64_t batch, std::uintptr_t out, int element, bool channels_last,
                                 std::uintptr_t table, const std::vector<double>& scale,
                                 const std::vector<double>& bias, std::int64_t pad, bool flip, std::uint64_t seed,
                                 std::uint32_t epoch, int threads, const std::string& isa) {
  const auto [count, channels, height, width] = shape;
  require(count >= 0 && batch >= 0, "a size is negative");
  require(channels >= 1 && channels <= kMaxChannels, "channels is not in [1, 4]");
  require(height >= 1 && width >= 1, "an image has no pixels");
  require(pad >= 0 && pad < std::min(height, width), "pad is not in [0, min(height, width))");
  require(pad < (std::int64_t{1} << 31), "pad is 2^31 or more");
  require(element >= 0 && element <= static_cast<int>(Element::kFloat16), "element is not in [0, 2]");
  require(static_cast<std::int64_t>(scale.size()) == channels, "scale is not one number a channel");
  require(static_cast<std::int64_t>(bias.size()) == channels, "bias is not one number a channel");
  require(threads >= 0 && threads <= kMaxThreads, "threads is not in [0, 1024]");
  require(table != 0, "the address of the table is null");
  require(batch == 0 || (indices != 0 && out != 0 && (images != 0 || count == 0)), "an address is null");

  GatherAugment job{};
  job.images = reinterpret_cast<const std::uint8_t*>(images);
  job.count = count;
  job.channels = channels;
  job.height = height;
  job.width = width;
  job.out = reinterpret_cast<void*>(out);
  job.element = static_cast<Element>(element);
  job.channels_last = channels_last;
  job.table = reinterpret_cast<const void*>(table);
  std::copy(scale.begin(), scale.end(), job.scale.begin());
  std::copy(bias.begin(), bias.end(), job.bias.begin());
  job.pad = pad;
  job.flip = flip;
  job.seed = seed;
  job.epoch = epoch;
  const Isa chosen = isa_named(isa);

  const py::gil_scoped_release release;
  // A copy: with the GIL released another thread could change an index between its check and its use.
  const auto* first = reinterpret_cast<const std::int64_t*>(indices);
  const std::vector<std::int64_t> ids(first, first + batch);
  const std::int64_t bad = first_out_of_range(ids, count);
  if (bad < 0) gather_augment(job, ids, chosen, threads == 0 ? cpu_count() : threads);
  return bad;
}

bool call_computes(int element, std::uintptr_t table, double scale, double bias, const std::string& isa) {
  require(element >= 0 && element <= static_cast<int>(Element::kFloat16), "element is not in [0, 2]");
  require(table != 0, "the address of the table is null");
  GatherAugment job{};
  job.channels = 1;
  job.element = static_cast<Element>(element);
  job.table = reinterpret_cast<const void*>(table);
  job.scale[0] = scale;
  job.bias[0] = bias;
  return computed_channels(job, isa_named(isa))[0];
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled part of seamfast. Private: call seamfast.ops.";
  m.attr("INTERFACE") = kInterface;
  m.attr("STREAM_AUGMENT") = static_cast<std::uint32_t>(Stream::kAugment);
  m.attr("STREAM_LABELS") = static_cast<std::uint32_t>(Stream::kLabels);
  m.def("isas", &isas, "Instruction sets that this build and this CPU both have, the one in use last.");
  m.def("cpu_count", &cpu_count, "CPUs in the affinity mask: what threads=0 means.");
  m.def(
      "philox4x32", [](PhiloxCounter counter, PhiloxKey key) { return philox4x32(counter, key); }, py::arg("counter"),
      py::arg("key"), "Four 32-bit words of Philox4x32-10.");
  m.def("gather_augment", &call_gather_augment,
        "Fills `out` and returns -1; or writes nothing and returns the position of the first index out of range.",
        py::kw_only(), py::arg("images"), py::arg("shape"), py::arg("indices"), py::arg("batch"), py::arg("out"),
        py::arg("element"), py::arg("channels_last"), py::arg("table"), py::arg("scale"), py::arg("bias"),
        py::arg("pad"), py::arg("flip"), py::arg("seed"), py::arg("epoch"), py::arg("threads"), py::arg("isa"));
  m.def("gather_augment_computes", &call_computes,
        "Whether a channel with this table is computed, not looked up. For tests: only the time shows it.",
        py::kw_only(), py::arg("element"), py::arg("table"), py::arg("scale"), py::arg("bias"), py::arg("isa"));
}
