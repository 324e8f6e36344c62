// seamfast._native: the Python module of the CPU kernels.

#include "bindings/bindings.h"
#include "memory.h"
#include "philox.h"

// One translation unit: reading pybind11's headers takes the compiler longer than everything in these files.
#include "bindings/batch_norm.cpp"
#include "bindings/count_outcomes.cpp"
#include "bindings/cross_entropy.cpp"
#include "bindings/gather_augment.cpp"
#include "bindings/max_pool2d.cpp"
#include "bindings/occlude.cpp"
#include "bindings/stamp_trigger.cpp"

namespace {

using namespace seamfast;

// Raised by one whenever a signature of a binding changes, so that a stale build is rejected.
constexpr int kInterface = 6;

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa isa : bindings::kIsas)
    if (supports(isa)) names.emplace_back(name(isa));
  return names;
}

}  // namespace

PYBIND11_MODULE(_native, m, pybind11::mod_gil_not_used()) {
  m.doc() = "The compiled part of seamfast. Private: call seamfast.ops.";
  m.attr("INTERFACE") = kInterface;
  m.attr("STREAM_AUGMENT") = static_cast<std::uint32_t>(Stream::kAugment);
  m.attr("STREAM_LABELS") = static_cast<std::uint32_t>(Stream::kLabels);
  m.attr("STREAM_PLACE") = static_cast<std::uint32_t>(Stream::kPlace);
  m.def("isas", &isas, "Instruction sets that this build and this CPU both have, the one in use last.");
  m.def("cpu_count", &cpu_count, "CPUs in the affinity mask: what threads=0 means.");
  m.def(
      "philox4x32", [](PhiloxCounter counter, PhiloxKey key) { return philox4x32(counter, key); },
      pybind11::arg("counter"), pybind11::arg("key"), "Four 32-bit words of Philox4x32-10.");
  m.def("keep_freed_memory", &keep_freed_memory, pybind11::arg("keep"),
        "Whether the C library keeps what is freed; calls with true and with false come in pairs.");
  bindings::bind_gather_augment(m);
  bindings::bind_cross_entropy(m);
  bindings::bind_count_outcomes(m);
  bindings::bind_stamp_trigger(m);
  bindings::bind_occlude(m);
  bindings::bind_max_pool2d(m);
  bindings::bind_batch_norm(m);
}
