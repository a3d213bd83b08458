// Sixteen-lane loops over a row of logits: block maxima, sums of exponentials, values that reach a bound. Included by
// row_kernels.h once per instruction set, each time inside its own namespace where Floats and Ints are vectors that
// divide 64 bytes, multiply_add(a, b, c) is a * b + c, fused or not, and reduce_max, reduce_add, any, at_least,
// compress, widen, evens and odds are given; hence no include guard. Instruction sets that fuse give the same bits: the
// lanes, what is done to them and the order of the final sum do not depend on the vector's length. block_sum of 64
// values is what Kernels::summarise gives for them.

constexpr int kLanes = int(sizeof(Floats) / 4);
constexpr int kParts = 16 / kLanes;
typedef double Doubles __attribute__((vector_size(sizeof(Floats))));

static inline __attribute__((always_inline)) Floats load(const float* x) {
  Floats v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

// exp(d) for d <= 0, within 2e-7 of its true value (from -87 down it stays at exp(-87)): the steps of f_exp in
// cpu/math.h. d = n ln 2 + r with ln 2 in two parts; adding 1.5 * 2^23 rounds and leaves n in the low bits of the sum;
// Cephes' polynomial for e^r; 2^n is added into the exponent bits.
static inline __attribute__((always_inline)) Floats exp_of(Floats d) {
  const Floats zero{}, low = zero - 87.0f;
  d = d > low ? d : low;
  const Floats shifted = d * 1.44269504f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = multiply_add(-n, zero - 2.12194440e-4f, multiply_add(-n, zero + 0.693359375f, d));
  Floats p = multiply_add(zero + 1.9875691500e-4f, r, zero + 1.3981999507e-3f);
  p = multiply_add(p, r, zero + 8.3334519073e-3f);
  p = multiply_add(p, r, zero + 4.1665795894e-2f);
  p = multiply_add(p, r, zero + 1.6666665459e-1f);
  p = multiply_add(p, r, zero + 5.0000001201e-1f);
  p = multiply_add(p * r, r, r + 1.0f);
  return (Floats)((Ints)p + ((Ints)shifted << 23));
}

// The largest of x[0..n), -inf for none; sets *has_nan when one is NaN (which is otherwise passed over).
static inline __attribute__((always_inline)) float block_max(const float* x, size_t n, bool* has_nan) {
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
  float top = reduce_max(best);
  bool seen = any(nan);
  for (; i < n; ++i) {
    top = x[i] > top ? x[i] : top;
    seen |= x[i] != x[i];
  }
  if (seen) *has_nan = true;
  return top;
}

// The sum of exp((x[i] - max) * scale); max is finite and no less than any x[i], scale > 0.
static inline __attribute__((always_inline)) float block_sum(const float* x, size_t n, float max, float scale) {
  Floats sum[kParts];
  for (int k = 0; k < kParts; ++k) sum[k] = Floats{};
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < kParts; ++k) sum[k] += exp_of((load(x + i + k * kLanes) - max) * scale);
  }
  if (i < n) {
    float rest[16] = {}, kept[16] = {};
    std::memcpy(rest, x + i, (n - i) * sizeof(float));
    for (size_t l = 0; l < n - i; ++l) kept[l] = 1.0f;
    for (int k = 0; k < kParts; ++k) {
      const Floats piece = exp_of((load(rest + k * kLanes) - max) * scale);
      sum[k] += load(kept + k * kLanes) > 0.0f ? piece : Floats{};
    }
  }
  return reduce_add(sum);
}

// Maxima and, unless sums is nullptr, sums of all blocks of 64 of x[0..n); returns the largest maximum.
static float scan(const float* x, size_t n, float scale, float* tops, float* sums, bool* has_nan) {
  float largest = -INFINITY;
  for (size_t b = 0; b * kBlock < n; ++b) {
    const float* block = x + b * kBlock;
    const size_t left = n - b * kBlock;
    if (left > (kAhead + 1) * kBlock) {
      for (size_t i = 0; i < kBlock; i += 16) __builtin_prefetch(block + kAhead * kBlock + i);
    }
    tops[b] = left >= kBlock ? block_max(block, kBlock, has_nan) : block_max(block, left, has_nan);
    largest = tops[b] > largest ? tops[b] : largest;
    if (sums == nullptr) continue;
    if (!(tops[b] > -INFINITY && tops[b] < INFINITY)) sums[b] = 0.0f;
    else sums[b] = left >= kBlock ? block_sum(block, kBlock, tops[b], scale) : block_sum(block, left, tops[b], scale);
  }
  return largest;
}

// Takes (maximum, sum) pairs apart; returns the largest maximum. *odd: whether a sum is no number >= 0.
static float take_apart(const float* pairs, size_t n, float* tops, float* sums, bool* odd) {
  Floats best[kParts];
  Ints wrong[kParts];
  for (int k = 0; k < kParts; ++k) {
    best[k] = Floats{} - INFINITY;
    wrong[k] = Ints{};
  }
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < kParts; ++k) {
      const size_t at = i + k * kLanes;
      const Floats a = load(pairs + 2 * at), b = load(pairs + 2 * at + kLanes);
      const Floats top = evens(a, b), sum = odds(a, b);
      best[k] = top > best[k] ? top : best[k];
      wrong[k] |= ~(sum >= 0.0f);
      std::memcpy(tops + at, &top, sizeof top);
      std::memcpy(sums + at, &sum, sizeof sum);
    }
  }
  float largest = reduce_max(best);
  *odd = any(wrong);
  for (; i < n; ++i) {
    tops[i] = pairs[2 * i];
    sums[i] = pairs[2 * i + 1];
    largest = tops[i] > largest ? tops[i] : largest;
    *odd |= !(sums[i] >= 0.0f);
  }
  return largest;
}

// Sixteen sums in double precision, lane by lane, and then by a fixed tree.
struct LaneSums {
  Doubles lanes[2 * kParts];
  inline __attribute__((always_inline)) LaneSums() : lanes{} {}
  inline __attribute__((always_inline)) void add(int part, Floats v) {
    Doubles low, high;
    widen(v, low, high);
    lanes[2 * part] += low;
    lanes[2 * part + 1] += high;
  }
  inline __attribute__((always_inline)) double sum() const {
    double lane[16];
    std::memcpy(lane, lanes, 128);
    for (int width = 8; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
    }
    return lane[0];
  }
};

// weights[b] = sums[b] * exp((tops[b] - max) * scale) for blocks b in [0, n), 0 where the top is -inf; returns their
// sum. n is a multiple of 16 (pad with tops of -inf).
static double weigh(const float* tops, const float* sums, size_t n, float max, float scale, float* weights) {
  const Floats none = Floats{} - INFINITY;
  LaneSums total;
  for (size_t i = 0; i < n; i += 16) {
    for (int k = 0; k < kParts; ++k) {
      const size_t at = i + k * kLanes;
      const Floats top = load(tops + at), one = load(sums + at) * exp_of((top - max) * scale);
      const Floats weight = top > none ? one : Floats{};
      std::memcpy(weights + at, &weight, sizeof weight);
      total.add(k, weight);
    }
  }
  return total.sum();
}

// How many of x[0..n) reach the bound; n is a multiple of 16.
static size_t count_at_least(const float* x, size_t n, float bound) {
  Ints count[kParts];
  for (int k = 0; k < kParts; ++k) count[k] = Ints{};
  for (size_t i = 0; i < n; i += 16) {
    for (int k = 0; k < kParts; ++k) count[k] -= load(x + i + k * kLanes) >= bound;
  }
  int32_t lane[16];
  std::memcpy(lane, count, 64);
  size_t total = 0;
  for (int32_t one : lane) total += size_t(one);
  return total;
}

// weights[i] = exp((x[i] - max) * scale), 0 for those that reach the limit; n is a multiple of 16.
static void powers(const float* x, size_t n, float limit, float max, float scale, float* weights) {
  for (size_t i = 0; i < n; i += kLanes) {
    const Floats v = load(x + i), power = exp_of((v - max) * scale), weight = v < limit ? power : Floats{};
    std::memcpy(weights + i, &weight, sizeof weight);
  }
}

// The sum of the weights of those of x[0..n) that reach the bound; n is a multiple of 64.
static double sum_at_least(const float* x, const float* weights, size_t n, float bound) {
  LaneSums total;
  for (size_t i = 0; i < n; i += 64) {
    for (int k = 0; k < kParts; ++k) {
      Floats sum{};
      for (size_t at = k * kLanes; at < 64; at += 16) {
        sum += load(x + i + at) >= bound ? load(weights + i + at) : Floats{};
      }
      total.add(k, sum);
    }
  }
  return total.sum();
}

// The same of each 64 of them, n / 64 sums.
static void sums_at_least(const float* x, const float* weights, size_t n, float bound, float* sums) {
  for (size_t i = 0; i < n; i += 64) {
    Floats sum[kParts];
    for (int k = 0; k < kParts; ++k) {
      sum[k] = Floats{};
      for (size_t at = k * kLanes; at < 64; at += 16) {
        sum[k] += load(x + i + at) >= bound ? load(weights + i + at) : Floats{};
      }
    }
    sums[i / 64] = reduce_add(sum);
  }
}

// Copies those of x[0..n) that reach the bound, in order, and returns how many; reads the listed blocks only.
// starts[i]: how many come before listed block i. Room for 15 more must follow what is copied.
static size_t collect(const float* x, size_t n, const int32_t* blocks, size_t count, float bound, float* out,
                      uint32_t* starts) {
  size_t found = 0;
  for (size_t at = 0; at < count; ++at) {
    starts[at] = uint32_t(found);
    const float* ahead = x + size_t(blocks[std::min(at + kAhead, count - 1)]) * kBlock;
    for (size_t i = 0; i < kBlock; i += 16) __builtin_prefetch(ahead + i);
    const float* block = x + size_t(blocks[at]) * kBlock;
    const size_t left = n - size_t(blocks[at]) * kBlock;
    float padded[kBlock];
    if (left < kBlock) {
      for (size_t i = 0; i < kBlock; ++i) padded[i] = i < left ? block[i] : -INFINITY;
      block = padded;
    }
    for (size_t i = 0; i < kBlock; i += kLanes) {
      const Floats v = load(block + i);
      const unsigned bits = at_least(v, bound);
      compress(v, bits, out + found);
      found += size_t(__builtin_popcount(bits));
    }
  }
  return found;
}

// Copies those of x[0..n) in [low, high) with their weights, in order, and returns how many; in place too. n is a
// multiple of 16; room for 15 more must follow what is copied.
static size_t between(const float* x, const float* weights, size_t n, float low, float high, float* out,
                      float* out_weights) {
  size_t found = 0;
  for (size_t i = 0; i < n; i += kLanes) {
    const Floats v = load(x + i), weight = load(weights + i);
    const unsigned bits = at_least(v, low) & ~at_least(v, high);
    compress(v, bits, out + found);
    compress(weight, bits, out_weights + found);
    found += size_t(__builtin_popcount(bits));
  }
  return found;
}

// Bit i: whether x[i] reaches the bound, for i in [0, n), n <= 64.
static uint64_t which_at_least(const float* x, size_t n, float bound) {
  uint64_t bits = 0;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) bits |= uint64_t(at_least(load(x + i), bound)) << i;
  for (; i < n; ++i) bits |= uint64_t(x[i] >= bound) << i;
  return bits;
}
