// Shared by the bindings, the only files that use Python. They do not use torch: tensors arrive as addresses and sizes.
// seamfast/ops/cpp owns the tensors for the length of a call and has checked them; what could still corrupt memory is
// checked again here.

#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "data_path/pixels.h"
#include "isa.h"
#include "ops/rows.h"
#include "thread_pool.h"

namespace seamfast::bindings {

namespace py = pybind11;

inline constexpr int kMaxThreads = 1024;
inline constexpr std::array kIsas = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("seamfast._native: ") + what);
}

// The instruction set of that name; the best one for an empty name.
inline Isa isa_named(const std::string& wanted) {
  if (wanted.empty()) return best_isa();
  const auto found = std::find_if(kIsas.begin(), kIsas.end(), [&](Isa isa) { return wanted == name(isa); });
  require(found != kIsas.end() && supports(*found), "isa is not one that this CPU runs");
  return *found;
}

// The number of threads to use; 0 is one for each CPU in the affinity mask.
inline int threads_of(int threads) {
  require(threads >= 0 && threads <= kMaxThreads, "threads is not in [0, 1024]");
  return threads == 0 ? cpu_count() : threads;
}

// A copy: with the GIL released another thread could change an element between its check and its use.
inline std::vector<std::int64_t> copied(std::uintptr_t address, std::int64_t n) {
  const auto* first = reinterpret_cast<const std::int64_t*>(address);
  return n == 0 ? std::vector<std::int64_t>() : std::vector<std::int64_t>(first, first + n);
}

// The position of the first value outside [low, high), or -1.
inline std::int64_t first_outside(const std::vector<std::int64_t>& values, std::int64_t low, std::int64_t high) {
  bool any = false;  // without a branch for each, as errors are rare
  for (const std::int64_t v : values) any |= (v < low) | (v >= high);
  if (!any) return -1;
  const auto bad = std::find_if(values.begin(), values.end(), [=](std::int64_t v) { return v < low || v >= high; });
  return bad == values.end() ? -1 : bad - values.begin();
}

inline Logits logits_of(std::uintptr_t data, int type, std::int64_t rows, std::int64_t classes, std::int64_t row_stride,
                        std::int64_t column_stride) {
  require(type >= 0 && type <= static_cast<int>(LogitType::kFloat16), "type is not in [0, 2]");
  require(rows >= 0 && classes >= 0, "a size is negative");
  require(row_stride >= 0 && column_stride >= 0, "a stride is negative");
  require(data != 0 || rows == 0, "an address is null");
  return {reinterpret_cast<const void*>(data), static_cast<LogitType>(type), rows, classes, row_stride, column_stride};
}

inline PixelsOut pixels_of(std::uintptr_t out, std::int64_t batch, int element, bool channels_last,
                           std::int64_t channels, std::int64_t height, std::int64_t width, std::uintptr_t table,
                           const std::vector<double>& scale, const std::vector<double>& bias) {
  require(batch >= 0, "a size is negative");
  require(channels >= 1 && channels <= kMaxChannels, "channels is not in [1, 4]");
  require(height >= 1 && width >= 1, "an image has no pixels");
  require(element >= 0 && element <= static_cast<int>(Element::kFloat16), "element is not in [0, 2]");
  require(static_cast<std::int64_t>(scale.size()) == channels, "scale is not one number a channel");
  require(static_cast<std::int64_t>(bias.size()) == channels, "bias is not one number a channel");
  require(table != 0, "the address of the table is null");
  require(batch == 0 || out != 0, "an address is null");
  PixelsOut to{reinterpret_cast<void*>(out), static_cast<Element>(element), channels_last, channels, height, width,
               reinterpret_cast<const void*>(table), {}, {}};
  std::copy(scale.begin(), scale.end(), to.scale.begin());
  std::copy(bias.begin(), bias.end(), to.bias.begin());
  return to;
}

void bind_gather_augment(py::module_& m);
void bind_cross_entropy(py::module_& m);
void bind_count_outcomes(py::module_& m);
void bind_stamp_trigger(py::module_& m);
void bind_occlude(py::module_& m);
void bind_max_pool2d(py::module_& m);
void bind_batch_norm(py::module_& m);

}  // namespace seamfast::bindings
