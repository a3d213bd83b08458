// Tiles over float32 weights: true float32, one FMA chain an output over k ascending.
#include "tile_rows.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kRows = 64, kStep = 16, kThreads = 256, kLd = kRows + 4, kSumsLd = kRows + 4;
constexpr int kStage = 2 * kStep * kLd;  // floats: weights, then x, both [k][row]
static_assert(2 * kStage >= kRows * kSumsLd, "sums lie where the stages were");

// One row's four k: thread i has row i / 4, k0 + i % 4 * 4 .. + 3.
struct Quad {
  float v[4];
};

__device__ __forceinline__ Quad load_weights(const Matrix& w, int64_t row, int64_t k) {
  const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(w.codes) + row * w.ld + k);
  return {{v.x, v.y, v.z, v.w}};
}
// from: the row's first element, or -1. Columns past K are zeros.
__device__ __forceinline__ Quad load_x(const TileArgs& a, int64_t from, int64_t k) {
  Quad q = {{0.0f, 0.0f, 0.0f, 0.0f}};
  if (from < 0) return q;
  if (a.x.type == Type::f32 && a.aligned_x && k + 4 <= a.w.k) {
    const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(a.x.data) + from + k);
    return {{v.x, v.y, v.z, v.w}};
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (k + i < a.w.k) q.v[i] = load_float(a.x.data, a.x.type, from + k + i);
  return q;
}
__device__ __forceinline__ void store_quad(float* stage, int row, int k, const Quad& q) {
#pragma unroll
  for (int i = 0; i < 4; i++) stage[(k + i) * kLd + row] = q.v[i];
}

// A thread has weight rows p, p + 1, p + 8, p + 9 of 16 (so gate and up of two outputs) and four rows of x. Those pairs
// are read flip and 8 - flip rows after p: half of the threads reads the upper one first, so that all banks are used.
__device__ __forceinline__ void add_products(float (&sums)[4][4], const float* stage, int w_row, int flip, int x_row) {
#pragma unroll
  for (int k = 0; k < kStep; k++) {
    const float* w = stage + k * kLd + w_row;
    const float4 x = *reinterpret_cast<const float4*>(stage + (kStep + k) * kLd + x_row);
    const float2 first = *reinterpret_cast<const float2*>(w + flip);
    const float2 second = *reinterpret_cast<const float2*>(w + 8 - flip);
    const float ws[4] = {first.x, first.y, second.x, second.y}, xs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) sums[i][j] = fmaf(ws[i], xs[j], sums[i][j]);
  }
}

__global__ void __launch_bounds__(kThreads) tile_f32_kernel(const __grid_constant__ TileArgs a) {
  __shared__ __align__(16) float shared[2 * kStage];
  const int z = blockIdx.z, x0 = blockIdx.x * kRows;
  const int64_t w0 = int64_t(blockIdx.y) * kRows;
  const TileRows rows(a, z);
  if (x0 >= rows.count) return;
  const Matrix w = a.batch ? a.batch[z] : a.w;
  const int row = threadIdx.x / 4, k_in = threadIdx.x % 4 * 4;
  const int64_t w_from = min(w0 + row, packed_rows(w) - 1);
  const int64_t x_from = x0 + row < rows.count ? rows.x(x0 + row) * a.x.ld + a.x_begin + z * a.x_step : -1;
  const int w_row = threadIdx.x % 16 / 4 * 16 + threadIdx.x % 4 * 2, x_row = threadIdx.x / 16 * 4;
  const int flip = w_row & 32 ? 8 : 0;

  float sums[4][4] = {};
  Quad next_w = load_weights(w, w_from, k_in), next_x = load_x(a, x_from, k_in);
#pragma unroll 1
  for (int64_t k = 0, s = 0; k < w.ld; k += kStep, s ^= 1) {
    float* stage = shared + s * kStage;
    store_quad(stage, row, k_in, next_w);
    store_quad(stage + kStep * kLd, row, k_in, next_x);
    __syncthreads();  // one is enough: the stage stored next is the one read before this barrier
    if (k + kStep < w.ld) {
      next_w = load_weights(w, w_from, k + kStep + k_in);
      next_x = load_x(a, x_from, k + kStep + k_in);
    }
    add_products(sums, stage, w_row, flip, x_row);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) shared[(x_row + j) * kSumsLd + w_row + i % 2 + (i < 2 ? flip : 8 - flip)] = sums[i][j];
  __syncthreads();
  write_tile(a, w, z, rows, shared, kSumsLd, x0, kRows, w0, kRows);
}

}  // namespace

void tiles_f32(const TileArgs& a, Stream stream) {
  const dim3 grid(unsigned((a.m + kRows - 1) / kRows), unsigned((a.w.n + kRows - 1) / kRows), unsigned(a.count));
  PYLLM_LAUNCH(tile_f32_kernel, grid, dim3(kThreads), 0, stream, a);
}

}  // namespace cuda
}  // namespace pyllm
