// CUDA on the CPU, as far as csrc/cuda needs it: test_cuda_twins.py compiles those sources against this.

#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // blocks run one after another
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x;
  dim3(unsigned x_ = 1) : x(x_) {}
};
inline dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int*) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration"; }

// A block's threads are fibres, which run in turn, each from one barrier to the next.
namespace fibres {
struct Fibre {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  unsigned barriers;
  bool done;
};
inline std::vector<Fibre> all(1024);
inline ucontext_t scheduler;
inline void (*body)(const void*);
inline const void* job;

inline void barrier() {
  ++all[threadIdx.x].barriers;
  swapcontext(&all[threadIdx.x].context, &scheduler);
}

inline void enter() {
  body(job);
  all[threadIdx.x].done = true;
}

inline void run_block() {
  for (unsigned t = 0; t < blockDim.x; ++t) {
    Fibre& fibre = all[t];
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = fibre.stack.size();
    fibre.context.uc_link = &scheduler;
    fibre.barriers = 0;
    fibre.done = false;
    makecontext(&fibre.context, enter, 0);
  }
  while (!all[0].done)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
      swapcontext(&scheduler, &all[threadIdx.x].context);
      if (all[threadIdx.x].done == all[0].done && all[threadIdx.x].barriers == all[0].barriers) continue;
      std::fputs("a thread is not where thread 0 is\n", stderr);
      std::abort();
    }
}
}  // namespace fibres

template <class Job>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Job), const Job& job) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  if (gridDim.x < 1 || blockDim.x < 1 || blockDim.x > fibres::all.size()) return cudaErrorInvalidConfiguration;
  static void (*current)(Job);
  current = kernel;
  fibres::body = [](const void* given) { current(*static_cast<const Job*>(given)); };
  fibres::job = &job;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) fibres::run_block();
  return cudaSuccess;
}

inline void __syncthreads() { fibres::barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static T slots[2][1024];  // by turns: some threads write the next exchange's while others read this one's
  T* slot = slots[fibres::all[threadIdx.x].barriers % 2];
  slot[threadIdx.x] = value;
  fibres::barrier();
  return slot[threadIdx.x ^ mask];
}

using std::max, std::min;

inline float __int_as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct __half {
  _Float16 value;
};
inline float __half2float(__half x) { return x.value; }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }

struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return __int_as_float(std::uint32_t{x.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<std::uint16_t>(x != x ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
