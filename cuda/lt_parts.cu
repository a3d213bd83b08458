// Conversions before a product by cuBLASLt and the epilogue after it: each reads and writes memory once.
#include "lt_parts.h"
#include "tile_rows.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t threads) { return unsigned((threads + kThreads - 1) / kThreads); }

template <class E>
__global__ void narrow_kernel(const float* x, int64_t x_ld, int64_t cols, E* out, int64_t out_ld) {
  const int64_t c = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * 4, row = blockIdx.x;
  if (c >= cols) return;
  const float* from = x + row * x_ld + c;
  E* to = out + row * out_ld + c;
  if (c + 4 <= cols) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    *reinterpret_cast<uint2*>(to) = make_uint2(Number<E>::pack(v.x, v.y), Number<E>::pack(v.z, v.w));
  } else {
    for (int i = 0; c + i < cols; i++) to[i] = from_float<E>(from[i]);
  }
}

// A thread takes 16 codes.
template <class E>
__global__ void widen_i8_kernel(const uint8_t* codes, int64_t pieces, E* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= pieces) return;
  const uint4 v = load_once16(codes + i * 16);
  const u32 words[4] = {v.x, v.y, v.z, v.w};
  u32 pairs[8];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    pairs[2 * j] = CodePair<E>::of_bytes(spread_bytes<0>(words[j]));
    pairs[2 * j + 1] = CodePair<E>::of_bytes(spread_bytes<2>(words[j]));
  }
  uint4* to = reinterpret_cast<uint4*>(out + i * 16);
  to[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  to[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

// A thread takes a piece of 16 bytes: 8 codes of each of 4 spans of 32 (launch.h, Matrix).
template <class E>
__global__ void widen_i4_kernel(const uint8_t* codes, const f16* scales, const uint8_t* zeros, int span_shift,
                                int64_t pieces, E* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= pieces) return;
  const uint4 v = load_once16(codes + i * 16);
  const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int64_t group = (i / 4 * 4 + j) >> span_shift;  // spans of 32 in one group: 1 or 4
    const float scale = to_float(scales[group]);
    const u32 minus = CodePair<E>::minus_zero(zeros ? zeros[group] : 8u, 0);
    u32 pairs[4];
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const float2 q = Number<E>::unpack(CodePair<E>::of_nibbles(words[j] >> 4 * p, minus));
      pairs[p] = Number<E>::pack(q.x * scale, q.y * scale);
    }
    *reinterpret_cast<uint4*>(out + i / 4 * 128 + 32 * j + 8 * (i % 4)) =
        make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

template <class E>
void widen_as(const Matrix& w, void* out, Stream stream) {
  const uint8_t* codes = static_cast<const uint8_t*>(w.codes);
  if (is_i8(w.format)) {
    const int64_t pieces = w.n * (w.ld / 16);
    PYLLM_LAUNCH(widen_i8_kernel<E>, dim3(blocks_for(pieces)), dim3(kThreads), 0, stream, codes, pieces,
                 static_cast<E*>(out));
  } else {
    const int64_t pieces = w.n * (w.ld / 32);
    PYLLM_LAUNCH(widen_i4_kernel<E>, dim3(blocks_for(pieces)), dim3(kThreads), 0, stream, codes,
                 static_cast<const f16*>(w.scales), w.zeros, group_of(w.format) == 32 ? 0 : 2, pieces,
                 static_cast<E*>(out));
  }
}

// A thread makes four outputs.
__global__ void finish_kernel(const __grid_constant__ TileArgs a, const float* sums, int64_t sums_ld, int row0) {
  const int64_t q = int64_t(blockIdx.x) * kThreads + threadIdx.x, column = q * 4;
  const int64_t outputs = a.w.gated ? a.w.n / 2 : a.w.n;
  if (column >= outputs) return;
  const int64_t row = a.w.gated ? q / 2 * 16 + q % 2 * 4 : column;
  const float4* from = reinterpret_cast<const float4*>(sums + blockIdx.y * sums_ld + row);
  float s[12] = {};
  const float4 first = from[0];
  s[0] = first.x, s[1] = first.y, s[2] = first.z, s[3] = first.w;
  if (a.w.gated) {
    const float4 up = from[2];
    s[8] = up.x, s[9] = up.y, s[10] = up.z, s[11] = up.w;
  }
  float v[4];
  finish_outputs(a, a.w, s, row, v);
  const int64_t to = row0 + int64_t(blockIdx.y);
  const int many = int(min(int64_t(4), outputs - column));
  if (a.residual.data) {
    const float* residual = static_cast<const float*>(a.residual.data) + to * a.residual.ld + column;
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < many) v[i] += residual[i];
  }
  store_four(a.y, to * a.y.ld + column, a.aligned_y, many, v);
}

}  // namespace

void narrow_rows(const View& x, int rows, int64_t cols, const View& out, Stream stream) {
  const dim3 grid(unsigned(rows), blocks_for((cols + 3) / 4));
  const float* from = static_cast<const float*>(x.data);
  if (out.type == Type::f16) {
    PYLLM_LAUNCH(narrow_kernel<f16>, grid, dim3(kThreads), 0, stream, from, x.ld, cols, static_cast<f16*>(out.data),
                 out.ld);
  } else {
    PYLLM_LAUNCH(narrow_kernel<bf16>, grid, dim3(kThreads), 0, stream, from, x.ld, cols, static_cast<bf16*>(out.data),
                 out.ld);
  }
}

void widen_weights(const Matrix& w, Type type, void* out, Stream stream) {
  type == Type::f16 ? widen_as<f16>(w, out, stream) : widen_as<bf16>(w, out, stream);
}

void finish_rows(const LinearArgs& a, const float* sums, int64_t sums_ld, int row0, int rows, Stream stream) {
  const TileArgs t = tile_args(a);
  const dim3 grid(blocks_for((a.w.outputs() + 3) / 4), unsigned(rows));
  PYLLM_LAUNCH(finish_kernel, grid, dim3(kThreads), 0, stream, t, sums, sums_ld, row0);
}

}  // namespace cuda
}  // namespace pyllm
