// The register block of bfloat16 matmuls in VDPBF16PS order, straight from packed weights and bfloat16 rows. Included
// where the table has the instruction (PYLLM_BF16_DOT); empty elsewhere.
#pragma once
#include "kernels.h"

#define PYLLM_APART \
  __attribute__((noinline))  // register blocks stay functions: inlined into loops around them they spill

namespace pyllm {
namespace {

// A line of weights that a later block will read: into L2, or L1 as well.
template <bool Near>
PYLLM_INLINE void fetch_line(const uint8_t* p) {
  if (Near) f_prefetch_l1(p);
  else f_prefetch_l2(p);
}

#ifdef PYLLM_BF16_DOT
// Sums c[R][64] (`first`: from zero) over a piece of `pairs` pairs of k, 16 at a time as they are packed: one chain of
// VDPBF16PS per output. x: pairs of bfloat16, x_ld words between rows. Fetches Lines lines a pair, from `ahead` on:
// into L1 from four rows on (measured; fewer rows wait for memory, and L1's line buffers with it).
template <int R, int Lines>
PYLLM_APART void dot_block(const uint8_t* w, const uint32_t* x, int64_t x_ld, int64_t pairs, bool first,
                           const uint8_t* ahead, float* c) {
  F16 sum[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[r][v] = first ? f_zero() : f_load(c + r * kPanel + 16 * v);
  for (const uint32_t* end = x + pairs; x < end; w += 3 * 1024)
    for (const uint8_t* tile = w + 1024; w < tile; w += 64, ++x, ahead += 64 * Lines) {
      P16 weight[4];
#pragma GCC unroll 4
      for (int i = 0; i < Lines; ++i) fetch_line<(R >= 4)>(ahead + 64 * i);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) weight[v] = p_load(w + 1024 * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const P16 activation = p_set(x[r * x_ld]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sum[r][v] = f_dpbf16(sum[r][v], weight[v], activation);
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) f_store(c + r * kPanel + 16 * v, sum[r][v]);
}
#endif

}  // namespace
}  // namespace pyllm
