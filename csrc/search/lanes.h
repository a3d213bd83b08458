// Sixteen-lane loops over a row of logits: block maxima and the sum of exponentials. Included by row.h once per
// instruction set, each time inside its own namespace where Floats and Ints are vectors that divide 64 bytes and
// multiply_add(a, b, c) is a * b + c, fused or not; hence no include guard. Instruction sets that fuse give the same
// bits: the lanes, what is done to them and the order of the final sum do not depend on the vector's length.

constexpr int kLanes = int(sizeof(Floats) / 4);
constexpr int kParts = 16 / kLanes;

static inline __attribute__((always_inline)) Floats load(const float* x) {
  Floats v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

// exp(d) for d <= 0, within 3e-7 of its true value (from -86 down it stays at exp(-86)).
// 2^t = 2^n * 2^f with n the nearest integer: adding 1.5 * 2^23 rounds and leaves n in the low bits of the sum; 2^f on
// [-0.5, 0.5] is a minimax polynomial (relative error 7.7e-8); 2^n is added into the exponent bits.
static inline __attribute__((always_inline)) Floats exp_of(Floats d) {
  Floats t = d * 1.44269504f;
  const Floats low = Floats{} - 124.0f;
  t = t > low ? t : low;
  const Floats shifted = t + 12582912.0f;
  const Floats f = t - (shifted - 12582912.0f);
  const Floats zero{};
  Floats p = multiply_add(zero + 1.327793890e-3f, f, zero + 9.675757641e-3f);
  p = multiply_add(p, f, zero + 5.550709598e-2f);
  p = multiply_add(p, f, zero + 2.402211434e-1f);
  p = multiply_add(p, f, zero + 6.931469682e-1f);
  p = multiply_add(p, f, zero + 1.000000073f);
  return (Floats)((Ints)p + ((Ints)shifted << 23));
}

// The largest of x[0..n), -inf for none; sets *has_nan when one is NaN (which is otherwise passed over).
static float block_max(const float* x, size_t n, bool* has_nan) {
  Floats best[kParts];
  Ints nan[kParts];
  for (int k = 0; k < kParts; ++k) {
    best[k] = Floats{} - INFINITY;
    nan[k] = Ints{};
  }
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < kParts; ++k) {
      const Floats v = load(x + i + k * kLanes);
      best[k] = v > best[k] ? v : best[k];
      nan[k] |= v != v;
    }
  }
  float top = -INFINITY;
  int32_t seen = 0;
  for (int k = 0; k < kParts; ++k) {
    for (int l = 0; l < kLanes; ++l) {
      top = best[k][l] > top ? best[k][l] : top;
      seen |= nan[k][l];
    }
  }
  for (; i < n; ++i) {
    top = x[i] > top ? x[i] : top;
    seen |= x[i] != x[i];
  }
  if (seen) *has_nan = true;
  return top;
}

// The sum of exp(x[i] - max); max is finite and no less than any x[i].
static double block_sum(const float* x, size_t n, float max) {
  Floats sum[kParts];
  for (int k = 0; k < kParts; ++k) sum[k] = Floats{};
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < kParts; ++k) sum[k] += exp_of(load(x + i + k * kLanes) - max);
  }
  float lane[16];
  std::memcpy(lane, sum, 64);
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  }
  double total = lane[0];
  for (; i < n; ++i) total += std::exp(double(x[i] - max));
  return total;
}
