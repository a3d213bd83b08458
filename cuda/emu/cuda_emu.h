// Lets g++ compile kernel sources (.cu) for the CPU, for tests on machines without a GPU. What it can't show: time,
// effects of the memory model (one thread runs at a time), and rounding of fused or approximate instructions. Static
// shared memory is not poisoned, and __constant__ or __device__ variables are plain ones.
#pragma once
#include <cassert>
#include <cstdio>
#include <tuple>

#include "fibers.h"
#include "functions.h"
#include "types.h"
#include "warp.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static  // blocks run one at a time; not cleared between blocks, as on a GPU
#define __restrict__ __restrict
#define threadIdx (::pyllm::emu::thread_index)
#define blockIdx (::pyllm::emu::block_index)
#define blockDim (::pyllm::emu::block_size)
#define gridDim (::pyllm::emu::grid_size)
constexpr int warpSize = 32;

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr) {
  if (bytes) std::memmove(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  if (bytes) std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// Arguments are evaluated once and copied to each thread, as a GPU does.
#define PYLLM_DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(::pyllm::emu::dynamic_shared)
#define PYLLM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                            \
  do {                                                                                          \
    (void)(stream);                                                                             \
    const auto pyllm_arguments = std::make_tuple(__VA_ARGS__);                                  \
    ::pyllm::emu::launch(grid, block, shared_bytes, [=] {                                       \
      std::apply([=](const auto&... pyllm_each) { (kernel)(pyllm_each...); }, pyllm_arguments); \
    });                                                                                         \
  } while (0)
#define PYLLM_LAUNCH_OVERLAPPED PYLLM_LAUNCH
