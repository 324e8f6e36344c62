// Shared by the CUDA kernels: where to launch, checked launches, and numbers that may lie on the device.
//
// Nothing here allocates or waits for the device, so a captured graph may hold every launch.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace seamfast::cuda {

struct Queue {
  int device;
  cudaStream_t stream;
};

// A number, or the address of one on the device: a captured graph reads it anew at each replay.
struct Counter {
  std::uint64_t value;
  const std::uint64_t* at;  // null: `value`
};

__device__ inline std::uint64_t value_of(const Counter& counter) {
  return counter.at == nullptr ? counter.value : *counter.at;
}

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("seamfast._cuda: ") + what + ": " + cudaGetErrorString(error));
}

// torch's runtime and this extension's each have a current device of their own.
inline void use(const Queue& queue) { check(cudaSetDevice(queue.device), "cudaSetDevice"); }

template <class Job>
void launch(const char* name, void (*kernel)(Job), std::int64_t blocks, int threads, const Job& job,
            const Queue& queue) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = queue.stream;
  check(cudaLaunchKernelEx(&config, kernel, job), name);  // which returns the error of this launch, not the last one's
}

}  // namespace seamfast::cuda
