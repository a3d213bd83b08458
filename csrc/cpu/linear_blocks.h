// Register blocks of a matmul over packed panels, on the vector F16 of the vec_*.h that the including file chose, and
// the pass of all rows over one piece of a panel. The arithmetic of an output never depends on how many rows there are.
#pragma once
#include "cpu/linear_bf16.h"
#include "kernels.h"

namespace pyllm {
namespace {

// Register blocks are R rows by V vectors of 16 outputs; R * V accumulators, V weights and one activation must fit the
// registers or everything spills. kStreamRows: rows of a pass of the bfloat16 kernel that unpacks as it goes (two
// accumulators a row). kUnpackFrom: rows from which unpacking a piece of weights to floats first is faster. kNear: the
// next piece is fetched into L1 as well (better where blocks narrower than a panel read every other line).
#if defined(__AVX512F__)  // 32 registers, F16 is one
constexpr int kBlockRows = 6, kStreamRows = 4, kUnpackFrom = 5;
constexpr int block_vectors(int) { return 4; }
constexpr bool kNear = false;
#elif defined(__AVX2__)     // 16 registers, F16 is two
constexpr int kBlockRows = 6, kStreamRows = 3, kUnpackFrom = 5;
constexpr int block_vectors(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
constexpr bool kNear = true;
#elif defined(__aarch64__)  // 32 registers, F16 is four
constexpr int kBlockRows = 6, kStreamRows = 3, kUnpackFrom = 5;
constexpr int block_vectors(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
constexpr bool kNear = false;
#else                       // 16 registers, F16 is four
constexpr int kBlockRows = 3, kStreamRows = 3, kUnpackFrom = 4;
constexpr int block_vectors(int rows) { return rows == 1 ? 2 : 1; }
constexpr bool kNear = false;
#endif

constexpr int kRowBlock = 96;  // rows whose sums wait in scratch for the end of k: 24 KB of floats
constexpr int kPiece = 64;     // k of a panel that all rows pass over before the next: 16 KB of floats, stays in L1
constexpr int kAhead = 4096;   // bytes that software prefetch into L2 runs ahead where one pass reads the weights

// Parts as even as possible, so that no small and slow part is left over: the size of the next one.
PYLLM_INLINE int next_part(int left, int most) {
  const int parts = (left + most - 1) / most;
  return (left + parts - 1) / parts;
}

PYLLM_INLINE F16 load_weights(const float* w) { return f_load(w); }
PYLLM_INLINE F16 load_weights(const uint16_t* halves) { return f_f16_load(halves); }

// sum[r][v] += x[r * x_ld + s * XStep] * w[s * WStep + 16 v ..] for s ascending: one FMA chain per output. Fetches
// Lines lines a step, from `ahead` on. W: float, or uint16_t for float16.
template <int R, int V, int WStep, int XStep, int Lines, class W>
PYLLM_INLINE void fma_chains(F16 (&sum)[R][V], const W* w, const float* x, int64_t x_ld, int64_t steps,
                             const uint8_t* ahead) {
  for (int64_t s = 0; s < steps; ++s, w += WStep, x += XStep, ahead += 64 * Lines) {
    F16 weight[V];
#pragma GCC unroll 4
    for (int i = 0; i < Lines; ++i) fetch_line<(kNear && V < 4)>(ahead + 64 * i);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) weight[v] = load_weights(w + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F16 activation = f_set(x[r * x_ld]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = f_fma(activation, weight[v], sum[r][v]);
    }
  }
}

// One register block of float32 or float16 weights: sums c[R][64] (`first`: from zero) over a piece of k.
template <int R, int V, int Lines, class W>
PYLLM_APART void float_block(const W* w, const float* x, int64_t x_ld, int64_t steps, bool first, const uint8_t* ahead,
                             float* c) {
  F16 sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = first ? f_zero() : f_load(c + r * kPanel + 16 * v);
  fma_chains<R, V, kPanel, 1, Lines>(sum, w, x, x_ld, steps, ahead);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) f_store(c + r * kPanel + 16 * v, sum[r][v]);
}

// One register block of bfloat16 from unpacked weights [steps / 32][16 pairs][even, odd][64], in TDPBF16PS order: per
// 32 k a chain over even k, a chain over odd k, and their sum added. Both chains at once would need twice the
// registers, so the even one is put aside in memory.
template <int R, int V, int Lines>
PYLLM_APART void pair_block(const float* w, const float* x, int64_t x_ld, int64_t steps, bool first,
                            const uint8_t* ahead, float* c) {
  alignas(64) float even[R][V][16];
  for (int64_t k = 0; k < steps; k += 32, x += 32, w += 32 * kPanel, first = false, ahead += 32 * 64 * Lines) {
    F16 sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = f_zero();
    fma_chains<R, V, 2 * kPanel, 2, Lines>(sum, w, x, x_ld, 16, ahead);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        f_store(even[r][v], sum[r][v]);
        sum[r][v] = f_zero();
      }
    fma_chains<R, V, 2 * kPanel, 2, Lines>(sum, w + kPanel, x + 1, x_ld, 16, ahead + 16 * 64 * Lines);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        float* out = c + r * kPanel + 16 * v;
        const F16 both = f_add(f_load(even[r][v]), sum[r][v]);
        f_store(out, f_add(first ? f_zero() : f_load(out), both));
      }
  }
}

// The same sums for R rows of all 64 outputs straight from packed weights: for few rows, where memory sets the speed.
template <int R, bool Prefetch>
PYLLM_APART void stream_block(const uint8_t* w, const float* x, int64_t x_ld, int64_t steps, bool first, float* c) {
  for (int64_t k = 0; k < steps; k += 32, x += 32, first = false) {
    for (int t = 0; t < kPanel; t += 16) {
      F16 even[R], odd[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) even[r] = odd[r] = f_zero();
#pragma GCC unroll 16
      for (int pair = 0; pair < 32; pair += 2, w += 64) {
        if (Prefetch) f_prefetch_l2(w + kAhead);
        const F16 w_even = f_bf16_even(w), w_odd = f_bf16_odd(w);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          even[r] = f_fma(f_set(x[r * x_ld + pair]), w_even, even[r]);
          odd[r] = f_fma(f_set(x[r * x_ld + pair + 1]), w_odd, odd[r]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        float* out = c + r * kPanel + t;
        const F16 both = f_add(even[r], odd[r]);
        f_store(out, f_add(first ? f_zero() : f_load(out), both));
      }
    }
  }
}

void unpack_piece(const uint8_t* w, int64_t steps, float* out) {
  for (int64_t k = 0; k < steps; k += 32, out += 32 * kPanel)
    for (int t = 0; t < kPanel; t += 16)
      for (int pair = 0; pair < 16; ++pair, w += 64) {
        f_store(out + pair * 2 * kPanel + t, f_bf16_even(w));
        f_store(out + pair * 2 * kPanel + kPanel + t, f_bf16_odd(w));
      }
}

// What all register blocks of one piece of a panel share.
struct Piece {
  const uint8_t* packed;  // the weights as they lie in memory
  int64_t bytes;          // of them
  const float* weights;   // the same as floats; nullptr: unpack as you go
  const float* x;         // first row, first k of the piece; of dots: pairs of bfloat16
  int64_t x_ld, steps;    // k; of dots: pairs
  bool first;             // the piece begins at k = 0
  float* c;               // sums [rows][64]
  const float* y;         // where they end up
  int64_t y_ld;
  bool streams;  // one block reads all of k: fetch kAhead on, not the next piece
};

void widen_piece(const uint8_t* halves, int64_t steps, float* out) {
  for (int64_t i = 0; i < steps * kPanel; i += 16) f_store(out + i, f_f16_load(halves + 2 * i));
}

enum class Blocks { floats, halves, pairs, stream, dots };

template <Blocks B>
PYLLM_INLINE const auto* weights_of(const Piece& p) {
  if constexpr (B == Blocks::halves) return reinterpret_cast<const uint16_t*>(p.packed);
  else return p.weights;
}
template <Blocks B, int R, int V, int Lines>
constexpr auto row_block() {
  if constexpr (B == Blocks::halves) return float_block<R, V, Lines, uint16_t>;
  else if constexpr (B == Blocks::floats) return float_block<R, V, Lines, float>;
  else return pair_block<R, V, Lines>;
}

template <Blocks B, int R, int Lines>
void block_row(const Piece& p, int row, const uint8_t* ahead) {
  const float* x = p.x + row * p.x_ld;
  float* c = p.c + row * kPanel;
  if constexpr (B == Blocks::stream) {
    stream_block<R, Lines != 0>(p.packed, x, p.x_ld, p.steps, p.first, c);
#ifdef PYLLM_BF16_DOT
  } else if constexpr (B == Blocks::dots) {
    dot_block<R, Lines>(p.packed, reinterpret_cast<const uint32_t*>(x), p.x_ld, p.steps, p.first, ahead, c);
#endif
  } else {
    constexpr int V = block_vectors(R);
    constexpr int passes = kPanel / 16 / V, each = (Lines + passes - 1) / passes, fetching = each ? Lines / each : 0;
    constexpr auto fetch = row_block<B, R, V, each>(), block = row_block<B, R, V, 0>();
    const auto* w = weights_of<B>(p);
    for (int i = 0; i < passes; ++i) {
      (i < fetching ? fetch : block)(w + 16 * V * i, x, p.x_ld, p.steps, p.first, ahead, c + 16 * V * i);
      ahead += 64 * each * p.steps;
    }
  }
}

template <Blocks B, int R>
void block_row(const Piece& p, int row, int rows, int lines, const uint8_t* ahead) {
  if constexpr (R > 1) {
    if (rows < R) return block_row<B, R - 1>(p, row, rows, lines, ahead);
  }
  if (lines == 0) return block_row<B, R, 0>(p, row, ahead);
  if (lines == 1) return block_row<B, R, 1>(p, row, ahead);
  if (lines == 2) return block_row<B, R, 2>(p, row, ahead);
  block_row<B, R, 4>(p, row, ahead);
}

// All rows over one piece. The next piece is fetched meanwhile, each register block its share; so are the lines of y
// into L2 (one miss a line would cost a tenth of the time of many rows).
template <Blocks B, int Most>
void all_rows(const Piece& p, int rows) {
  const int blocks = (rows + Most - 1) / Most, lines = int(p.bytes / 64 / p.steps);
  const int share = (lines + blocks - 1) / blocks;
  const uint8_t *ahead = p.packed + (p.streams ? kAhead : p.bytes), *end = ahead + p.bytes;
  for (int row = 0, part; row < rows; row += part) {
    part = next_part(rows - row, Most);
    block_row<B, Most>(p, row, part, ahead < end ? share : 0, ahead);
    ahead += 64 * share * p.steps;
    for (int r = p.first ? row : row + part; r < row + part; ++r)
      for (int i = 0; i < kPanel; i += 16) f_prefetch_l2(p.y + r * p.y_ld + i);
  }
}

}  // namespace
}  // namespace pyllm
