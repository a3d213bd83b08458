// Matmul over packed int8 and int4 panels for any number of rows of integers (quantise_rows.h), on the vectors of the
// vec_*.h that the including file chose. Integer sums are exact, so blocks may take k and rows in any order.
//
// int8: every plane of a row is a row of its own ("line of activations") until the sums are finished. int4: sums of a
// group of k become floats at its end, both planes together.
#pragma once
#include "cpu/linear_blocks.h"
#include "cpu/linear_finish.h"
#include "cpu/quantise_rows.h"
#include "kernels.h"

namespace pyllm {
namespace {

// Register blocks are R lines of activations by V vectors of 16 outputs: R * V sums, V codes and a quad of activations
// must fit the registers. kWideCodes: codes are widened to 16 bits, in twice the registers.
constexpr bool kWideCodes = sizeof(Act) == 2;
#if defined(__AVX512F__)  // 32 registers, I16 is one
constexpr int kByteLines = kWideCodes ? 5 : 6;
constexpr int byte_vectors(int lines) { return !kWideCodes || lines <= 4 ? 4 : 2; }
constexpr int nibble_vectors(int lines) { return lines <= (kWideCodes ? 2 : 4) ? 4 : 2; }
#else  // 16 registers, I16 is two or four
constexpr int kByteLines = kWideCodes ? 4 : 6;
constexpr int byte_vectors(int lines) { return !kWideCodes && lines <= 2 ? 2 : 1; }
constexpr int nibble_vectors(int lines) { return byte_vectors(lines); }
#endif

constexpr int kNibblePlanes = planes_of(Format::i4_g32);
// Rows of a register block of int4: with 16 registers, more would spill.
constexpr int kNibbleRows = nibble_vectors(8) > 1 ? 4 : 2;
constexpr int kIntPiece = 256;   // k of a panel that all rows pass over before the next: at most 16 KB, stays in L1
constexpr int kLineBlock = 192;  // lines of activations whose sums wait in scratch for the end of k

// What byte_block() fetches into L2 beside `ahead`: the lines that lie there as those it reads lie in w.
constexpr int kMirror = -1;

// Sums c[R][64] of R lines of activations over `steps` blocks of 64 k of an int8 panel, for V tiles; `starts`: what
// they begin from, nullptr: c. Fetches Lines lines for each 4 k, from `ahead` on, or kMirror.
template <int R, int V, int Lines>
PYLLM_APART void byte_block(const uint8_t* w, const Act* x, int64_t x_ld, int64_t steps, const int32_t* starts,
                            const uint8_t* ahead, int32_t* c) {
  I16 sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      if (starts) sum[r][v] = i_set(starts[r]);
      else sum[r][v] = i_load(c + r * kPanel + 16 * v);
    }
  for (; steps > 0; --steps, w += 64 * kPanel, x += 64, ahead += Lines == kMirror ? 64 * kPanel : 16 * 64 * Lines)
#pragma GCC unroll 2
    for (int i = 0; i < 16; ++i) {
      Codes codes[V];
#pragma GCC unroll 4
      for (int j = 0; j < (Lines == kMirror ? V : Lines); ++j)
        f_prefetch_l2(ahead + (Lines == kMirror ? j * 1024 + i * 64 : (i * Lines + j) * 64));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) codes[v] = codes_bytes(w + v * 1024 + i * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Quad quad = quad_load(x + r * x_ld + 4 * i);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = i_dot(sum[r][v], codes[v], quad);
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) i_store(c + r * kPanel + 16 * v, sum[r][v]);
}

// What all register blocks of one piece of an int8 panel share.
struct BytePiece {
  const uint8_t* w;
  const Act* x;  // first line of activations, first k of the piece
  int64_t x_ld, steps;
  const int32_t* starts;  // of the lines; nullptr: the piece does not begin at k = 0
  int32_t* c;             // sums [lines][64]
};

template <int R, int Lines>
void byte_row(const BytePiece& p, int row, const uint8_t* ahead) {
  constexpr int V = byte_vectors(R);
  const Act* x = p.x + row * p.x_ld;
  const int32_t* starts = p.starts ? p.starts + row : nullptr;
  int32_t* c = p.c + row * kPanel;
  byte_block<R, V, Lines>(p.w, x, p.x_ld, p.steps, starts, ahead, c);
  constexpr int Later = Lines == kMirror ? kMirror : 0;
  for (int v = V; v < kPanel / 16; v += V)
    byte_block<R, V, Later>(p.w + v * 1024, x, p.x_ld, p.steps, starts, ahead + v * 1024, c + 16 * v);
}

template <int R>
void byte_row(const BytePiece& p, int row, int rows, int lines, const uint8_t* ahead) {
  if constexpr (R > 1) {
    if (rows < R) return byte_row<R - 1>(p, row, rows, lines, ahead);
  }
  if (lines == 0) return byte_row<R, 0>(p, row, ahead);
  if (lines == 1) return byte_row<R, 1>(p, row, ahead);
  if (lines == 2) return byte_row<R, 2>(p, row, ahead);
  byte_row<R, kMirror>(p, row, ahead);
}

// Sums of rows [row0, row0 + rows) of panel p into c[rows * planes][64]. Where one block holds all rows and all tiles
// it streams the whole panel; else pieces, the next one fetched meanwhile by all blocks, each its share.
void sum_bytes(const LinearArgs& a, const Quantised& q, int p, int row0, int rows, int32_t* c) {
  const int planes = planes_of(a.format), count = rows * planes, blocks = (count + kByteLines - 1) / kByteLines;
  const bool stream = blocks == 1 && byte_vectors(count) == 4;
  const int64_t depth = packed_k(a.format, a.k), piece = stream ? depth : kIntPiece;
  const int share = blocks == 1 ? kMirror : blocks < 4 ? 2 : 1;
  const uint8_t* w = a.weights + size_t(p) * panel_bytes(a.format, a.k);
  for (int64_t k = 0, length; k < depth; k += length, w += length * kPanel) {
    length = 64 * next_part(int((depth - k) / 64), int(piece / 64));
    const BytePiece part = {w,           q.acts + row0 * planes * depth + k,          depth,
                            length / 64, k == 0 ? q.starts + row0 * planes : nullptr, c};
    const uint8_t *ahead = w + (stream ? kAhead : length * kPanel), *end = ahead + length * kPanel;
    for (int line = 0, n; line < count; line += n, ahead += 16 * share * length) {
      n = next_part(count - line, kByteLines);
      byte_row<kByteLines>(part, line, n, ahead < end ? share : 0, ahead);
    }
  }
}

void finish_bytes(const LinearArgs& a, const Quantised& q, int p, int row0, int rows, const int32_t* c) {
  const float* scales = reinterpret_cast<const float*>(a.weights + size_t(p + 1) * panel_bytes(a.format, a.k)) - kPanel;
  const bool two = planes_of(a.format) == 2;
  for (int r = row0; r < row0 + rows; ++r, c += (two ? 2 : 1) * kPanel) {
    const F16 row_scale = f_set(q.scales[r]);
    F16 y[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      F16 sum = i_to_float(i_load(c + 16 * v));
      if (two) sum = f_fma(sum, f_set(256.0f), i_to_float(i_load(c + kPanel + 16 * v)));
      y[v] = f_mul(sum, f_mul(row_scale, f_load(scales + 16 * v)));
    }
    finish_columns(a, r, int64_t(p) * kPanel, y[0], y[1]);
    finish_columns(a, r, int64_t(p) * kPanel + 32, y[2], y[3]);
  }
}

// A run of groups of an int4 panel. Codes are unpacked as they are read, however many rows there are: what that costs
// beside the products is less than reading them as bytes.
struct GroupPiece {
  const uint8_t* w;
  size_t stride;  // bytes from group to group
  int groups, group;
  const Act* x;  // first row, first k of the piece
  int64_t x_ld;  // between planes
  const int32_t* starts;
  int64_t starts_ld;
  float* c;  // sums [rows][64], not yet times s_x
};

// Zero points as pairs (z, 256 z): with the pair (-sum(low), -sum(high)) they give -z * sum(q).
PYLLM_INLINE I16 zero_pairs(const uint8_t* zeros) {
  const I16 z = i_from_u8(zeros);
  return i_add(z, i_left<24>(z));
}

// sum[r][v] += codes of 4 k (of V tiles from line `p` on) times quads of L lines of activations.
template <bool High, int L, int V>
PYLLM_INLINE void group_step(I16 (&sum)[L][V], const uint8_t* p, const Act* x, int64_t x_ld) {
  Codes codes[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) codes[v] = High ? codes_high(p + 64 * v) : codes_low(p + 64 * v);
#pragma GCC unroll 8
  for (int r = 0; r < L; ++r) {
    const Quad quad = quad_load(x + r * x_ld);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = i_dot(sum[r][v], codes[v], quad);
  }
}

// What one group adds to c[R][64] in the columns of V tiles from tile t on. Fetch: lines kAhead from those read.
template <int R, int V, bool Zeros, bool Fetch>
PYLLM_INLINE void group_sums(const GroupPiece& p, const uint8_t* group, int t, const Act* x, const int32_t* starts,
                             float* c) {
  constexpr int P = kNibblePlanes;
  I16 sum[R * P][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      I16& low = sum[r * P + P - 1][v];
      if (P == 2) sum[r * P][v] = i_zero();
      low = i_set(starts[r * p.starts_ld]);
      if (Zeros) low = i_pairs(zero_pairs(group + 128 + 16 * (t + v)), low);
    }
  const uint8_t* line = group + (Zeros ? 192 : 128) + 64 * t;
#pragma GCC unroll 1
  for (int k = 0; k < p.group; k += 8, line += 256) {
#pragma GCC unroll 4
    for (int v = 0; v < V && Fetch; ++v) f_prefetch_l2(line + kAhead + 64 * v);
    group_step<false>(sum, line, x + k, p.x_ld);
    group_step<true>(sum, line, x + k + 4, p.x_ld);
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const F16 scale = f_f16_load(group + 32 * (t + v));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* to = c + r * kPanel + 16 * (t + v);
      I16& all = sum[r * P + P - 1][v];
      if (P == 2) all = i_add(i_left<8>(sum[r * P][v]), all);
      f_store(to, f_fma(i_to_float(all), scale, f_load(to)));
    }
  }
}

// Adds a piece to c[R][64] of R rows from `row` on.
template <int R, bool Zeros, bool Fetch>
PYLLM_APART void group_block(const GroupPiece& p, int row) {
  constexpr int V = nibble_vectors(R * kNibblePlanes);
  const Act* x = p.x + row * kNibblePlanes * p.x_ld;
  const int32_t* starts = p.starts + row * p.starts_ld;
  const uint8_t* group = p.w;
#pragma GCC unroll 1
  for (int g = 0; g < p.groups; ++g, group += p.stride, x += p.group) {
    for (int i = 0; i < (Zeros ? 192 : 128) && Fetch; i += 64) f_prefetch_l2(group + kAhead + i);
#pragma GCC unroll 4
    for (int t = 0; t < 4; t += V) group_sums<R, V, Zeros, Fetch>(p, group, t, x, starts + g, p.c + row * kPanel);
  }
}

template <int R, bool Zeros>
void group_row(const GroupPiece& p, int row, int rows) {
  if constexpr (R > 1) {
    if (rows < R) return group_row<R - 1, Zeros>(p, row, rows);
  }
  if (row == 0) group_block<R, Zeros, true>(p, row);
  else group_block<R, Zeros, false>(p, row);
}

// Sums of rows [row0, row0 + rows) of panel p into c[rows][64], in pieces where one block can't hold all rows.
void sum_groups(const LinearArgs& a, const Quantised& q, int p, int row0, int rows, float* c) {
  const int group = group_of(a.format);
  const int64_t depth = packed_k(a.format, a.k), all = depth / group;
  const int64_t piece = rows > kNibbleRows ? kIntPiece / group : all;
  const size_t bytes = group_bytes(a.format);
  const uint8_t* w = a.weights + size_t(p) * panel_bytes(a.format, a.k);
  const Act* x = q.acts + row0 * kNibblePlanes * depth;
  const int32_t* starts = q.starts + row0 * all;
  std::memset(c, 0, size_t(rows) * kPanel * sizeof(float));
  for (int64_t g = 0; g < all;) {
    const int n = next_part(int(all - g), int(piece));
    const GroupPiece part = {w, bytes, n, group, x, depth, starts, all, c};
    for (int row = 0, count; row < rows; row += count) {
      count = next_part(rows - row, kNibbleRows);
      if (has_zeros(a.format)) group_row<kNibbleRows, true>(part, row, count);
      else group_row<kNibbleRows, false>(part, row, count);
    }
    g += n;
    w += n * bytes;
    x += n * group;
    starts += n;
  }
}

void finish_groups(const LinearArgs& a, const Quantised& q, int p, int row0, int rows, const float* c) {
  for (int r = row0; r < row0 + rows; ++r, c += kPanel) {
    const F16 scale = f_set(q.scales[r]);
    for (int i = 0; i < kPanel; i += 32)
      finish_columns(a, r, int64_t(p) * kPanel + i, f_mul(f_load(c + i), scale), f_mul(f_load(c + i + 16), scale));
  }
}

int int_row_block(Format f) { return kLineBlock / planes_of(f); }

size_t int_scratch(const LinearArgs& a) {
  const int most = int_row_block(a.format), rows = a.m < most ? a.m : most;
  return size_t(rows) * kPanel * (is_i8(a.format) ? planes_of(a.format) : 1) * 4;
}

void int_panels(const LinearArgs& a, int p0, int p1, void* scratch) {
  const Quantised q = quantised_parts(a.format, a.m, a.k, const_cast<void*>(a.x));
  for (int row = 0, rows; row < a.m; row += rows) {
    rows = next_part(a.m - row, int_row_block(a.format));
    for (int p = p0; p < p1; ++p) {
      if (is_i8(a.format)) {
        int32_t* c = static_cast<int32_t*>(scratch);
        sum_bytes(a, q, p, row, rows, c);
        finish_bytes(a, q, p, row, rows, c);
      } else {
        float* c = static_cast<float*>(scratch);
        sum_groups(a, q, p, row, rows, c);
        finish_groups(a, q, p, row, rows, c);
      }
    }
  }
}

}  // namespace
}  // namespace pyllm
