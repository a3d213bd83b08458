// What every kernel source includes: CUDA, or its emulation on the CPU (PYLLM_CUDA_EMU); launches; reductions.
//
// In a kernel, its dynamic shared memory, on 128 bytes:
//   PYLLM_DYN_SHARED(float, scores);
// A launch, which throws Error(device) when it is refused:
//   PYLLM_LAUNCH((kernel<64>), grid, block, bytes, stream, args...);
//
// Sources are compiled with -fmad=false (g++: -ffp-contract=off): a * b + c is two roundings in every instance of a
// template; write fmaf(a, b, c) where one is meant.
#pragma once
#include <cstddef>
#include <cstdint>

#include "errors.h"
#if defined(PYLLM_CUDA_EMU)
#include "emu/cuda_emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace pyllm {
namespace cuda {

// Most dynamic shared memory that one block may ask for on the current device (runtime.cpp).
size_t shared_memory_limit();

#if !defined(PYLLM_CUDA_EMU)
// Dynamic shared memory above which a launch asks first. A kernel's static shared memory counts towards the 48 KB that
// need no asking, so less than 48 KB of dynamic may already be refused.
constexpr size_t kAskedShared = 16 * 1024;
void allow_shared_memory(const void* kernel, size_t bytes);  // runtime.cpp: above 48 KB a kernel must be told
void check_launch(const char* kernel);                       // runtime.cpp: throws Error(device)
bool can_overlap();                                          // runtime.cpp: whether the current device is an sm_90

// A launch that may begin while the kernel before it still ends (sm_90; elsewhere a plain one): the kernel must call
// wait_for_previous() before it reads or writes anything that another kernel of the stream touches.
template <class... Parameters, class... Arguments>
void launch_overlapped(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t bytes, cudaStream_t stream,
                       const Arguments&... arguments) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = can_overlap() ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}
#define PYLLM_DYN_SHARED(T, name)                                        \
  extern __shared__ __align__(128) unsigned char pyllm_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(pyllm_dynamic_shared)
#define PYLLM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                            \
  do {                                                                                          \
    const size_t pyllm_bytes = (shared_bytes);                                                  \
    if (pyllm_bytes > ::pyllm::cuda::kAskedShared)                                              \
      ::pyllm::cuda::allow_shared_memory(reinterpret_cast<const void*>(kernel), pyllm_bytes);   \
    (kernel)<<<(grid), (block), pyllm_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
    ::pyllm::cuda::check_launch(#kernel);                                                       \
  } while (0)
#define PYLLM_LAUNCH_OVERLAPPED(kernel, grid, block, shared_bytes, stream, ...)                                 \
  do {                                                                                                          \
    const size_t pyllm_bytes = (shared_bytes);                                                                  \
    if (pyllm_bytes > ::pyllm::cuda::kAskedShared)                                                              \
      ::pyllm::cuda::allow_shared_memory(reinterpret_cast<const void*>(kernel), pyllm_bytes);                   \
    ::pyllm::cuda::launch_overlapped((kernel), (grid), (block), pyllm_bytes, static_cast<cudaStream_t>(stream), \
                                     __VA_ARGS__);                                                              \
    ::pyllm::cuda::check_launch(#kernel);                                                                       \
  } while (0)
#endif

constexpr unsigned kWarp = 0xffffffffu;

// For kernels launched by PYLLM_LAUNCH_OVERLAPPED: waits until the kernels before are complete and visible.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel of the stream begin (where it is launched so); without it that happens when this block ends.
__device__ __forceinline__ void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Over the lanes of a warp, for all of them, in one fixed order (so are the block's).
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(kWarp, v, d);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v = fmaxf(v, __shfl_xor_sync(kWarp, v, d));
  return v;
}
// Over the threads of a block, for all of them; blockDim.x is a multiple of 32, y and z are 1. fmaxf drops NaNs.
template <bool Max>
__device__ __forceinline__ float block_reduce(float v) {
  __shared__ float parts[32];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
  v = Max ? warp_max(v) : warp_sum(v);
  __syncthreads();  // parts may still be read from the call before
  if (lane == 0) parts[warp] = v;
  __syncthreads();
  v = lane < warps ? parts[lane] : (Max ? -INFINITY : 0.0f);
  return Max ? warp_max(v) : warp_sum(v);
}
__device__ __forceinline__ float block_sum(float v) { return block_reduce<false>(v); }
__device__ __forceinline__ float block_max(float v) { return block_reduce<true>(v); }

}  // namespace cuda
}  // namespace pyllm
