#include "layers/batch_norm.h"

#include <cmath>

#include "bindings/bindings.h"

namespace seamfast::bindings {
namespace {

BatchNorm norm_of(std::uintptr_t input, int type, std::int64_t rows, std::int64_t channels, std::uintptr_t weight,
                  std::uintptr_t mean, std::uintptr_t inverse_std) {
  require(type >= 0 && type <= static_cast<int>(LogitType::kBFloat16), "type is not in [0, 1]");
  require(rows >= 1 && channels >= 1, "there are no rows, or no channels");
  require(input != 0 && mean != 0 && inverse_std != 0, "an address is null");
  return {static_cast<LogitType>(type),           rows,
          channels,                               reinterpret_cast<const void*>(input),
          reinterpret_cast<const float*>(weight), reinterpret_cast<float*>(mean),
          reinterpret_cast<float*>(inverse_std)};
}

void call_batch_norm(std::uintptr_t input, int type, std::int64_t rows, std::int64_t channels, std::uintptr_t weight,
                     std::uintptr_t bias, double epsilon, std::uintptr_t running_mean, std::uintptr_t running_variance,
                     double momentum, std::uintptr_t output, std::uintptr_t mean, std::uintptr_t inverse_std,
                     int threads, const std::string& isa) {
  const BatchNorm job = norm_of(input, type, rows, channels, weight, mean, inverse_std);
  require(output != 0, "an address is null");
  require((running_mean == 0) == (running_variance == 0), "running mean and variance do not come together");
  const RunningStatistics running{reinterpret_cast<float*>(running_mean), reinterpret_cast<float*>(running_variance),
                                  momentum};
  threads = threads_of(threads);
  const Isa chosen = isa_named(isa);
  const py::gil_scoped_release release;
  batch_norm(job, reinterpret_cast<const float*>(bias), epsilon, running, reinterpret_cast<void*>(output), chosen,
             threads);
}

void call_batch_norm_backward(std::uintptr_t grad_output, std::uintptr_t input, int type, std::int64_t rows,
                              std::int64_t channels, std::uintptr_t weight, std::uintptr_t mean,
                              std::uintptr_t inverse_std, std::uintptr_t grad_weight, std::uintptr_t grad_bias,
                              std::uintptr_t grad_input, int threads, const std::string& isa) {
  const BatchNorm job = norm_of(input, type, rows, channels, weight, mean, inverse_std);
  require(grad_output != 0 && grad_weight != 0 && grad_bias != 0, "an address is null");
  threads = threads_of(threads);
  const Isa chosen = isa_named(isa);
  const py::gil_scoped_release release;
  batch_norm_backward(job, reinterpret_cast<const void*>(grad_output), reinterpret_cast<float*>(grad_weight),
                      reinterpret_cast<float*>(grad_bias), reinterpret_cast<void*>(grad_input), chosen, threads);
}

}  // namespace

void bind_batch_norm(py::module_& m) {
  m.def("batch_norm", &call_batch_norm,
        "Fills `output`, `mean` and `inverse_std`, and updates the running statistics where they are not null.",
        py::kw_only(), py::arg("input"), py::arg("type"), py::arg("rows"), py::arg("channels"), py::arg("weight"),
        py::arg("bias"), py::arg("epsilon"), py::arg("running_mean"), py::arg("running_variance"),
        py::arg("momentum"), py::arg("output"), py::arg("mean"), py::arg("inverse_std"), py::arg("threads"),
        py::arg("isa"));
  m.def("batch_norm_backward", &call_batch_norm_backward,
        "Fills `grad_weight`, `grad_bias` and, where it is not null, `grad_input`.", py::kw_only(),
        py::arg("grad_output"), py::arg("input"), py::arg("type"), py::arg("rows"), py::arg("channels"),
        py::arg("weight"), py::arg("mean"), py::arg("inverse_std"), py::arg("grad_weight"), py::arg("grad_bias"),
        py::arg("grad_input"), py::arg("threads"), py::arg("isa"));
}

}  // namespace seamfast::bindings
