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

// Register blocks are R rows of activations by V vectors of 16 outputs: R * V sums, V codes and a quad of activations
// must fit the registers. kWideCodes: codes are widened to 16 bits, in twice the registers.
constexpr bool kWideCodes = sizeof(Act) == 2;
#if defined(__AVX512F__)  // 32 registers, I16 is one
constexpr int kByteRows = kWideCodes ? 5 : 6;
constexpr int int_vectors(int rows) { return !kWideCodes || rows <= 4 ? 4 : 2; }
constexpr int nibble_vectors(int rows) { return rows <= (kWideCodes ? 2 : 4) ? 4 : 2; }
#else  // 16 registers, I16 is two or four
constexpr int kByteRows = kWideCodes ? 4 : 6;
constexpr int int_vectors(int rows) { return !kWideCodes && rows <= 2 ? 2 : 1; }
constexpr int nibble_vectors(int) { return 1; }
#endif

constexpr int kPlanes4 = planes_of(Format::i4_g32);           // of an int4 row
constexpr int kGroupRows = kByteRows / kPlanes4;              // rows of a block of int4
constexpr int kNibbleRows = kGroupRows < 4 ? kGroupRows : 4;  // the same where codes are unpacked as they are read
constexpr int kWidenFrom = 5;    // rows from which a piece of int4 codes is widened to bytes first
constexpr int kIntPiece = 256;   // k of a panel that all rows pass over before the next: 16 KB of bytes, stays in L1
constexpr int kLineBlock = 192;  // lines of activations whose sums wait in scratch for the end of k

// Sums c[R][64] of R lines of activations over `steps` blocks of 64 k of an int8 panel, for V tiles; `starts`: what
// they begin from, nullptr: c. Fetches Lines lines into L2 for each 4 k, from `ahead` on.
template <int R, int V, int Lines>
PYLLM_APART void byte_block(const uint8_t* w, const Act* x, int64_t x_ld, int64_t steps, const int32_t* starts,
                            const uint8_t* ahead, int32_t* c) {
  I16 sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = starts ? i_set(starts[r]) : i_load(c + r * kPanel + 16 * v);
  for (; steps > 0; --steps, w += 64 * kPanel, x += 64)
#pragma GCC unroll 2
    for (int i = 0; i < 16; ++i, ahead += 64 * Lines) {
      Codes codes[V];
#pragma GCC unroll 4
      for (int j = 0; j < Lines; ++j) f_prefetch_l2(ahead + 64 * j);
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
  constexpr int V = int_vectors(R);
  const Act* x = p.x + row * p.x_ld;
  const int32_t* starts = p.starts ? p.starts + row : nullptr;
  int32_t* c = p.c + row * kPanel;
  byte_block<R, V, Lines>(p.w, x, p.x_ld, p.steps, starts, ahead, c);
  for (int v = V; v < kPanel / 16; v += V)
    byte_block<R, V, 0>(p.w + v * 1024, x, p.x_ld, p.steps, starts, ahead, c + 16 * v);
}

template <int R>
void byte_row(const BytePiece& p, int row, int rows, int lines, const uint8_t* ahead) {
  if constexpr (R > 1) {
    if (rows < R) return byte_row<R - 1>(p, row, rows, lines, ahead);
  }
  if (lines == 0) return byte_row<R, 0>(p, row, ahead);
  if (lines == 1) return byte_row<R, 1>(p, row, ahead);
  if (lines == 2) return byte_row<R, 2>(p, row, ahead);
  byte_row<R, 4>(p, row, ahead);
}

// Sums of rows [row0, row0 + rows) of panel p into c[rows * planes][64]. Where one block holds all rows it streams the
// whole panel; else pieces, the next one fetched meanwhile by all blocks, each its share.
void sum_bytes(const LinearArgs& a, const Quantised& q, int p, int row0, int rows, int32_t* c) {
  const int planes = planes_of(a.format), count = rows * planes, blocks = (count + kByteRows - 1) / kByteRows;
  const int64_t depth = packed_k(a.format, a.k), piece = blocks == 1 ? depth : kIntPiece;
  const int share = blocks == 1 || blocks == 2 ? 4 / blocks : blocks < 4 ? 2 : 1;
  const uint8_t* w = a.weights + size_t(p) * panel_bytes(a.format, a.k);
  for (int64_t k = 0, length; k < depth; k += length, w += length * kPanel) {
    length = 64 * next_part(int((depth - k) / 64), int(piece / 64));
    const BytePiece part = {w,           q.acts + row0 * planes * depth + k,          depth,
                            length / 64, k == 0 ? q.starts + row0 * planes : nullptr, c};
    const uint8_t *ahead = w + (blocks == 1 ? kAhead : length * kPanel), *end = ahead + length * kPanel;
    for (int line = 0, n; line < count; line += n, ahead += 16 * share * length) {
      n = next_part(count - line, kByteRows);
      byte_row<kByteRows>(part, line, n, ahead < end ? share : 0, ahead);
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

// A run of groups of an int4 panel, and how it lies in memory: packed, or widened to { [64] float scales; with zero
// points [64] pairs of int16 (z, 256 z); [g/8][even k, odd k][4 tiles][16 n][4 k] bytes }.
struct GroupPiece {
  const uint8_t* w;
  size_t stride;  // bytes from group to group
  int groups, group;
  bool zeros, first;  // first: the piece begins at k = 0
  const Act* x;       // first row, first k of the piece
  int64_t x_ld;       // between planes
  const int32_t* starts;
  int64_t starts_ld;
  float* c;  // sums [rows][64], not yet times s_x
};

// Zero points as pairs (z, 256 z): with the pair (-sum(low), -sum(high)) they give -z * sum(q).
PYLLM_INLINE I16 zero_pairs(const uint8_t* zeros) {
  const I16 z = i_from_u8(zeros);
  return i_add(z, i_left<24>(z));
}

constexpr size_t wide_group_bytes(bool zeros, int group) {
  return size_t(kPanel) * (zeros ? 8 : 4) + size_t(group) * kPanel;
}

void widen_groups(const uint8_t* w, size_t bytes, const GroupPiece& p, uint8_t* to) {
  for (int g = 0; g < p.groups; ++g, w += bytes) {
    for (size_t i = 0; i < bytes; i += 64) f_prefetch_l2(w + p.groups * bytes + i);
    for (int i = 0; i < kPanel; i += 16) {
      f_store(reinterpret_cast<float*>(to) + i, f_f16_load(w + 2 * i));
      if (p.zeros) i_store(to + 256 + 4 * i, zero_pairs(w + 128 + i));
    }
    to += p.zeros ? 512 : 256;
    const uint8_t* line = w + (p.zeros ? 192 : 128);
    for (int k = 0; k < p.group; k += 8, to += 512)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v, line += 64) widen_nibbles(line, to + 64 * v, to + 256 + 64 * v);
  }
}

template <bool Packed>
PYLLM_INLINE F16 group_scale(const uint8_t* group, int v) {
  if constexpr (Packed) return f_f16_load(group + 32 * v);
  return f_load(reinterpret_cast<const float*>(group) + 16 * v);
}
template <bool Packed>
PYLLM_INLINE I16 group_zeros(const uint8_t* group, int v) {
  if constexpr (Packed) return zero_pairs(group + 128 + 16 * v);
  return i_load(group + 256 + 64 * v);
}

// sum[r][v] += codes of 4 k (of V tiles from line `p` on) times quads of the planes of R rows.
enum class Half { low, high, bytes };
template <Half H, int R, int V>
PYLLM_INLINE void group_step(I16 (&sum)[R][V], const uint8_t* p, const Act* x, int64_t x_ld) {
  Codes codes[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v)
    codes[v] = H == Half::low    ? codes_low(p + 64 * v)
               : H == Half::high ? codes_high(p + 64 * v)
                                 : codes_bytes(p + 64 * v);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Quad quad = quad_load(x + r * x_ld);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = i_dot(sum[r][v], codes[v], quad);
  }
}

// c[R][64] of R rows over a piece. Fetch: lines kAhead from those that are read.
template <int R, int V, bool Packed, bool Fetch>
PYLLM_APART void group_block(const GroupPiece& p, int row) {
  constexpr int Lines = R * kPlanes4;
  const Act* x = p.x + row * kPlanes4 * p.x_ld;
  const int32_t* starts = p.starts + row * p.starts_ld;
  const uint8_t* group = p.w;
  const int header = Packed ? (p.zeros ? 192 : 128) : (p.zeros ? 512 : 256);
  for (int g = 0; g < p.groups; ++g, group += p.stride, x += p.group) {
    if (Fetch)
      for (int i = 0; i < header; i += 64) f_prefetch_l2(group + kAhead + i);
#pragma GCC unroll 4
    for (int t = 0; t < 4; t += V) {
      I16 sum[Lines][V];
#pragma GCC unroll 8
      for (int r = 0; r < Lines; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          if (r % kPlanes4 != kPlanes4 - 1) {
            sum[r][v] = i_zero();
          } else {
            const I16 start = i_set(starts[r / kPlanes4 * p.starts_ld + g]);
            sum[r][v] = p.zeros ? i_pairs(group_zeros<Packed>(group, t + v), start) : start;
          }
        }
      const uint8_t* line = group + header + 64 * t;
#pragma GCC unroll 2
      for (int k = 0; k < p.group; k += 8, line += Packed ? 256 : 512) {
        if (Fetch)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) f_prefetch_l2(line + kAhead + 64 * v);
        group_step<Packed ? Half::low : Half::bytes>(sum, line, x + k, p.x_ld);
        group_step<Packed ? Half::high : Half::bytes>(sum, line + (Packed ? 0 : 256), x + k + 4, p.x_ld);
      }
      const bool from_zero = p.first && g == 0;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const F16 scale = group_scale<Packed>(group, t + v);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          float* c = p.c + (row + r) * kPanel + 16 * (t + v);
          const I16 all =
              kPlanes4 == 2 ? i_add(i_left<8>(sum[r * kPlanes4][v]), sum[r * kPlanes4 + kPlanes4 - 1][v]) : sum[r][v];
          f_store(c, f_fma(i_to_float(all), scale, from_zero ? f_zero() : f_load(c)));
        }
      }
    }
  }
}

template <int R, bool Packed>
void group_row(const GroupPiece& p, int row, int rows) {
  if constexpr (R > 1) {
    if (rows < R) return group_row<R - 1, Packed>(p, row, rows);
  }
  constexpr int V = Packed ? nibble_vectors(R * kPlanes4) : int_vectors(R * kPlanes4);
  if (Packed && row == 0) group_block<R, V, Packed, Packed>(p, row);
  else group_block<R, V, Packed, false>(p, row);
}

// Sums of rows [row0, row0 + rows) of panel p into c[rows][64]; wide: room for a piece of codes as bytes.
void sum_groups(const LinearArgs& a, const Quantised& q, int p, int row0, int rows, float* c, uint8_t* wide) {
  const int group = group_of(a.format);
  const int64_t depth = packed_k(a.format, a.k), all = depth / group, starts = row0 * all;
  const bool widen = rows >= kWidenFrom, zeros = has_zeros(a.format);
  const int most = widen ? kGroupRows : kNibbleRows;
  const int64_t groups = widen || rows > most ? kIntPiece / group : all;
  const size_t bytes = group_bytes(a.format);
  const uint8_t* w = a.weights + size_t(p) * panel_bytes(a.format, a.k);
  for (int64_t g = 0; g < all;) {
    const int n = next_part(int(all - g), int(groups));
    const Act* x = q.acts + row0 * kPlanes4 * depth + g * group;
    GroupPiece part = {w, bytes, n, group, zeros, g == 0, x, depth, q.starts + starts + g, all, c};
    if (widen) {
      widen_groups(w, bytes, part, wide);
      part.w = wide;
      part.stride = wide_group_bytes(zeros, group);
    }
    for (int row = 0, count; row < rows; row += count) {
      count = next_part(rows - row, most);
      if (widen) group_row<kGroupRows, false>(part, row, count);
      else group_row<kNibbleRows, true>(part, row, count);
    }
    g += n;
    w += n * bytes;
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
  const size_t sums = size_t(rows) * kPanel * 4;
  if (is_i8(a.format)) return sums * planes_of(a.format);
  const bool zeros = has_zeros(a.format);
  const int group = group_of(a.format);
  return sums + (a.m < kWidenFrom ? 0 : size_t(kIntPiece / group) * wide_group_bytes(zeros, group));
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
        sum_groups(a, q, p, row, rows, c, reinterpret_cast<uint8_t*>(c + rows * kPanel));
        finish_groups(a, q, p, row, rows, c);
      }
    }
  }
}

}  // namespace
}  // namespace pyllm
