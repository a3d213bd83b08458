// Rows of activations as integers, the prepared form of the int8 and int4 matmuls: q = rint(x * (top / amax)).
// After a vec_*.h; the same integers on every instruction set.
//
// Prepared form of m rows, k padded with zeros to packed_k, all parts one after the other:
//   activations [m][planes][packed_k]  in the order that store_acts writes; planes: high and low of q = 256 * high +
//   low
//                                      or, where an activation has room for it, q itself
//   starts      [m][starts]            int32 that sums begin from: they take the zero point of the codes away
//   scales      [m]                    float, s_x
#pragma once
#include <cfloat>
#include <cmath>
#include <cstring>

#include "cpu/dot.h"
#include "kernels.h"

namespace pyllm {
namespace {

constexpr float top_of(Format f) { return f == Format::i8_fast ? 127.0f : 32639.0f; }
// int4: both planes at once where an activation has 16 bits, for sums of a group have room for them.
constexpr int planes_of(Format f) { return f == Format::i8 || (is_i4(f) && sizeof(Act) == 1) ? 2 : 1; }
// int8: -128 * sum a plane. int4: -8 * sum(q) a group, or with zero points the pair -sum(low), -sum(high) of int16.
constexpr int64_t starts_of(Format f, int64_t k) { return is_i8(f) ? planes_of(f) : packed_k(f, k) / group_of(f); }

// The parts of a prepared form.
struct Quantised {
  Act* acts;
  int32_t* starts;
  float* scales;
};
inline Quantised quantised_parts(Format f, int m, int64_t k, void* base) {
  Act* acts = static_cast<Act*>(base);
  int32_t* starts = reinterpret_cast<int32_t*>(acts + m * planes_of(f) * packed_k(f, k));
  return {acts, starts, reinterpret_cast<float*>(starts + m * starts_of(f, k))};
}
inline size_t quantised_bytes(Format f, int m, int64_t k) {
  return size_t(m) * (size_t(planes_of(f) * packed_k(f, k)) * sizeof(Act) + size_t(starts_of(f, k) + 1) * 4);
}

struct RowScale {
  float scale, factor;  // x ~ q * scale, q = rint(x * factor); factor 0: the row is written as zeros
};
// Of n floats. Infinities and NaN make the scale NaN, and with it all outputs. Rows whose scale would be denormal are
// rows of zeros, as they are where denormals are flushed.
inline RowScale row_scale(const float* x, int64_t n, float top) {
  I16 most[4] = {i_zero(), i_zero(), i_zero(), i_zero()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) most[j] = i_max(most[j], i_magnitude(f_load(x + i + 16 * j)));
  for (; i + 16 <= n; i += 16) most[0] = i_max(most[0], i_magnitude(f_load(x + i)));
  if (i < n) most[1] = i_max(most[1], i_magnitude(f_load_n(x + i, int(n - i))));
  const int32_t bits = i_reduce_max(i_max(i_max(most[0], most[1]), i_max(most[2], most[3])));
  if (bits >= 0x7f800000) return {NAN, 0.0f};
  float amax;
  std::memcpy(&amax, &bits, 4);
  const float scale = amax / top;
  if (scale < FLT_MIN) return {0.0f, 0.0f};
  return {scale, top / amax};
}

// Integers of 16 floats and what their high plane holds; low = q - 256 * high.
struct Integers {
  I16 q, high;
};
PYLLM_INLINE Integers integers(const F16& x, const F16& factor) {
  const I16 q = f_to_ints(f_mul(x, factor));
  return {q, i_right<8>(i_add(q, i_set(128)))};
}
PYLLM_INLINE I16 low_plane(const Integers& i) { return i_sub(i.q, i_left<8>(i.high)); }

PYLLM_INLINE F16 load_padded(const float* x, int64_t n) {  // zeros from n on
  return n >= 16 ? f_load(x) : n > 0 ? f_load_n(x, int(n)) : f_zero();
}

// One row of int8 activations, planes `depth` apart.
template <int Planes>
void quantise_bytes(const float* x, int64_t n, float factor, int64_t depth, Act* to, int32_t* starts) {
  const F16 by = f_set(factor);
  I16 sum = i_zero(), sum_high = i_zero();
  for (int64_t i = 0; i < depth; i += 16) {
    const Integers v = integers(load_padded(x + i, n - i), by);
    sum = i_add(sum, v.q);
    if constexpr (Planes == 2) {
      sum_high = i_add(sum_high, v.high);
      store_acts<false>(to + i, v.high);
      store_acts<false>(to + depth + i, low_plane(v));
    } else {
      store_acts<false>(to + i, v.q);
    }
  }
  const int32_t all = i_reduce_add(sum), high = i_reduce_add(sum_high);
  starts[0] = -128 * (Planes == 2 ? high : all);
  if (Planes == 2) starts[1] = -128 * (all - 256 * high);
}

// One row of int4 activations; starts as pairs where weights have zero points.
void quantise_groups(const float* x, int64_t n, float factor, int64_t depth, int group, bool zeros, Act* to,
                     int32_t* starts) {
  const F16 by = f_set(factor);
  for (int64_t g = 0; g < depth; g += group) {
    I16 sum = i_zero();
    for (int64_t i = g; i < g + group; i += 16) {
      const Integers v = integers(load_padded(x + i, n - i), by);
      const I16 low = low_plane(v);
      // The sums of 128 int8 are 16 bits wide: both planes are summed as one integer, 65536 * high + low.
      sum = i_add(sum, zeros ? i_add(i_left<16>(v.high), low) : v.q);
      if constexpr (sizeof(Act) == 1) {
        store_acts<true>(to + i, v.high);
        store_acts<true>(to + depth + i, low);
      } else {
        store_acts<true>(to + i, v.q);
      }
    }
    const int32_t all = i_reduce_add(sum);
    if (zeros) {
      const int32_t low = int16_t(all), high = (all - low) >> 16;
      *starts++ = int32_t(uint32_t(-high) << 16 | (uint32_t(-low) & 0xffff));
    } else {
      *starts++ = -8 * all;
    }
  }
}

void quantise_rows(Format f, const float* x, int64_t x_ld, int m, int64_t k, int row0, int row1, void* out) {
  const Quantised to = quantised_parts(f, m, k, out);
  const int64_t depth = packed_k(f, k), row_acts = planes_of(f) * depth, row_starts = starts_of(f, k);
  for (int r = row0; r < row1; ++r) {
    const float* from = x + r * x_ld;
    Act* acts = to.acts + r * row_acts;
    int32_t* starts = to.starts + r * row_starts;
    const RowScale s = row_scale(from, k, top_of(f));
    to.scales[r] = s.scale;
    if (s.factor == 0.0f) {
      std::memset(acts, 0, size_t(row_acts) * sizeof(Act));
      std::memset(starts, 0, size_t(row_starts) * sizeof(int32_t));
    } else if (is_i4(f)) {
      quantise_groups(from, k, s.factor, depth, group_of(f), has_zeros(f), acts, starts);
    } else if (planes_of(f) == 2) {
      quantise_bytes<2>(from, k, s.factor, depth, acts, starts);
    } else {
      quantise_bytes<1>(from, k, s.factor, depth, acts, starts);
    }
  }
}

}  // namespace
}  // namespace pyllm
