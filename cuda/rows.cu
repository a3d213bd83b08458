// Kernels over rows: embedding, rotary tables, norms, the rows that want an output, dense copies.
#include "rows.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ bool is_padding(const StepView& step, int t) {
  return step.sequence != nullptr && step.sequence[t] < 0;
}

// Columns k .. k + 7 of a row of a matrix in any format, k a multiple of 8: one load of up to 16 bytes (f32: two).
__device__ __forceinline__ void matrix8(const Matrix& m, int64_t row, int64_t k, float (&v)[8]) {
  const int64_t at = row * m.ld + k;
  const Format f = m.format;
  if (f == Format::i8 || f == Format::i8_fast) {
    const uint2 codes = *reinterpret_cast<const uint2*>(static_cast<const int8_t*>(m.codes) + at);
    const float scale = static_cast<const float*>(m.scales)[row];
    for (int i = 0; i < 8; ++i) v[i] = scale * float(int8_t((i < 4 ? codes.x : codes.y) >> i % 4 * 8));
  } else if (f >= Format::i4_g32 && f <= Format::i4z_g128) {
    // Word j of piece t of the 128 codes holds k0 + 32 j + 8 t ..: nibble c / 2 + 4 (c % 2) is that of column c.
    const int64_t j = k % 128 / 32, t = k % 32 / 8;
    const uint32_t word = static_cast<const uint32_t*>(m.codes)[(at - k % 128) / 8 + 4 * t + j];
    const int64_t group = at / (f == Format::i4_g32 || f == Format::i4z_g32 ? 32 : 128);
    const float scale = __half2float(static_cast<const __half*>(m.scales)[group]);
    const int zero = m.zeros ? m.zeros[group] : 8;
    for (int c = 0; c < 8; ++c) v[c] = scale * float(int(word >> 4 * (c / 2 + c % 2 * 4) & 15) - zero);
  } else if (f != Format::bf16 && f != Format::f16) {
    float part[4];
    for (int half = 0; half < 2; ++half) {
      load4<Type::f32>(m.codes, at + 4 * half, part);
      for (int i = 0; i < 4; ++i) v[4 * half + i] = part[i];
    }
  } else {
    const uint4 q = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(m.codes) + at);
    const uint32_t pairs[4] = {q.x, q.y, q.z, q.w};
    const bool bf16 = f == Format::bf16;
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = bf16 ? bf16_low(pairs[i]) : f16_low(pairs[i]);
      v[2 * i + 1] = bf16 ? bf16_high(pairs[i]) : f16_high(pairs[i]);
    }
  }
}

// Grid: rows x pieces of 8 * blockDim.x columns. Sums in the CPU's order: the table's, the position's, the type's.
__global__ void embed_kernel(EmbedArgs a, StepView step) {
  const int t = int(blockIdx.x);
  const int64_t k = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * 8;
  if (k >= a.cols) return;
  const bool padding = is_padding(step, t);
  const int64_t position = padding ? 0 : step.positions[t] + a.position_offset;
  float v[8], more[8];
  matrix8(a.table, padding ? 0 : a.by_position ? position : int64_t(step.ids[t]), k, v);
  for (int i = 0; i < 8; ++i) v[i] *= a.scale;
  if (a.positions.codes) {
    matrix8(a.positions, position, k, more);
    for (int i = 0; i < 8; ++i) v[i] += more[i];
  }
  if (a.types.codes) {
    matrix8(a.types, padding || !step.types ? 0 : step.types[t], k, more);
    for (int i = 0; i < 8; ++i) v[i] += more[i];
  }
  const float low[4] = {v[0], v[1], v[2], v[3]}, high[4] = {v[4], v[5], v[6], v[7]};
  store4(a.out, t * a.out.ld + k, low);
  store4(a.out, t * a.out.ld + k + 4, high);
}

// Cosine and sine of an angle up to 2^30 as double precision rounds them: taken to within pi / 4 by multiples of pi / 2
// in two parts, then Taylor's series, of which the first terms left out are below 2^-37 and 2^-41. (cosf and sinf need
// local memory for large angles.)
__device__ __forceinline__ void cos_sin(float angle, float& cosine, float& sine) {
  const double quarters = rint(double(angle) * 0.63661977236758134);
  double r = fma(-quarters, 1.5707963267948966, double(angle));
  r = fma(-quarters, 6.123233995736766e-17, r);
  const double s = r * r;
  double odd = fma(s, -1.0 / 39916800, 1.0 / 362880), even = fma(s, 1.0 / 479001600, -1.0 / 3628800);
  odd = fma(s, fma(s, fma(s, odd, -1.0 / 5040), 1.0 / 120), -1.0 / 6);
  even = fma(s, fma(s, fma(s, fma(s, even, 1.0 / 40320), -1.0 / 720), 1.0 / 24), -0.5);
  const float of_r[2] = {float(fma(s, even, 1.0)), float(fma(r * s, odd, r))};
  const int quarter = int(int64_t(quarters) & 3);
  const float c = quarter % 2 ? of_r[1] : of_r[0], other = quarter % 2 ? of_r[0] : of_r[1];
  cosine = quarter == 1 || quarter == 2 ? -c : c;
  sine = quarter >= 2 ? -other : other;
}

__global__ void rotary_kernel(View out, const float* inv_freq, int n, float scaling, StepView step) {
  const int t = int(blockIdx.x);
  const float position = is_padding(step, t) ? 0.0f : float(step.positions[t]);
  float* row = static_cast<float*>(out.data) + t * out.ld;
  for (int i = int(blockIdx.y * blockDim.x + threadIdx.x); i < n; i += int(gridDim.y * blockDim.x)) {
    const float angle = position * inv_freq[i];
    float cosine, sine;
    cos_sin(angle, cosine, sine);
    row[i] = cosine * scaling;
    row[n + i] = sine * scaling;
  }
}

// One block a row; each thread holds 4 * Held columns of it. Rows longer than the block holds are read anew for every
// pass, a block's width after the other.
template <Type T, int Held>
__global__ void __launch_bounds__(1024) norm_kernel(NormArgs a) {
  const int64_t row = blockIdx.x, n = a.n, width = int64_t(blockDim.x) * 4, span = width * Held;
  const int64_t base = row * a.x.ld, first = int64_t(threadIdx.x) * 4;
  float x[Held][4];
  auto fetch = [&](int64_t begin) {
#pragma unroll
    for (int j = 0; j < Held; ++j) {
      const int64_t at = begin + j * width + first;
      if (at < n) load4<T>(a.x.data, base + at, x[j]);
    }
  };
  // use(value) for each of this thread's columns, in ascending order.
  auto for_each = [&](auto use) {
    for (int64_t begin = 0; begin < n; begin += span) {
      if (n > span) fetch(begin);
#pragma unroll
      for (int j = 0; j < Held; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (begin + j * width + first + i < n) use(x[j][i]);
      }
    }
  };
  if (n <= span) fetch(0);
  float mean = 0.0f, sum = 0.0f;
  if (a.norm.kind == NormKind::layer) {
    for_each([&](float v) { sum += v; });
    mean = block_reduce<false>(sum) / float(n);
  }
  sum = 0.0f;
  for_each([&](float v) { sum = fmaf(v - mean, v - mean, sum); });
  const float inverse = 1.0f / sqrtf(block_reduce<false>(sum) / float(n) + a.norm.eps);
  for (int64_t begin = 0; begin < n; begin += span) {
    if (n > span) fetch(begin);
#pragma unroll
    for (int j = 0; j < Held; ++j) {
      const int64_t at = begin + j * width + first;
      if (at >= n) continue;
      float weight[4], bias[4] = {}, y[4];
      load4_of(a.norm.weight, at, n, weight);
      if (a.norm.bias) load4_of(a.norm.bias, at, n, bias);
      for (int i = 0; i < 4; ++i) {
        const float scaled = (x[j][i] - mean) * inverse;
        y[i] = a.norm.kind == NormKind::layer ? fmaf(scaled, weight[i], bias[i]) : scaled * weight[i];
      }
      if (a.residual.data) {
        float residual[4];
        load4(a.residual, row * a.residual.ld + at, residual);
        for (int i = 0; i < 4; ++i) y[i] = residual[i] + y[i];
      }
      store4(a.out, row * a.out.ld + at, y);
    }
  }
}

template <Type T>
void norm_of(const NormArgs& a, Stream stream) {
  // As many threads as four columns each make, up to 1024, then more columns each: only the row's length decides.
  const int64_t quads = round_up(a.n, 4) / 4;
  const dim3 grid(unsigned(a.rows)), block(unsigned(quads > 1024 ? 1024 : round_up(quads, 32)));
  if (quads <= 1024) PYLLM_LAUNCH((norm_kernel<T, 1>), grid, block, 0, stream, a);
  else if (quads <= 2048) PYLLM_LAUNCH((norm_kernel<T, 2>), grid, block, 0, stream, a);
  else PYLLM_LAUNCH((norm_kernel<T, 4>), grid, block, 0, stream, a);
}

constexpr int kWarpWidth = 512;  // widest group that one warp normalises

// One group of columns by `count` threads, of which this is number `at`; reduce adds over them.
template <class Reduce>
__device__ __forceinline__ void head_group(const HeadNormArgs& a, const HeadSlice& s, int64_t group, int64_t row,
                                           int at, int count, Reduce reduce) {
  const int64_t begin = s.begin + group * s.width, from = row * a.x.ld + begin, to = row * a.out.ld + begin;
  float mean = 0.0f, sum = 0.0f;
  if (!a.rms) {
    for (int64_t i = at; i < s.width; i += count) sum += load1(a.x, from + i);
    mean = reduce(sum) / float(s.width);
  }
  sum = 0.0f;
  for (int64_t i = at; i < s.width; i += count) {
    const float v = load1(a.x, from + i) - mean;
    sum = fmaf(v, v, sum);
  }
  const float inverse = 1.0f / sqrtf(reduce(sum) / float(s.width) + a.eps);
  const float* weight = s.weight + group * s.step;
  for (int64_t i = at; i < s.width; i += count) {
    const float scaled = (load1(a.x, from + i) - mean) * inverse;
    const float bias = s.bias ? s.bias[group * s.step + i] : 0.0f;
    store1(a.out, to + i, a.rms ? scaled * weight[i] : fmaf(scaled, weight[i], bias));
  }
}

// Grid: rows x parts of the columns. Narrow groups take a warp each, wide ones a block.
__global__ void __launch_bounds__(kThreads) head_norm_kernel(HeadNormArgs a) {
  const int64_t row = blockIdx.x;
  const int warps = kThreads / 32, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const HeadSlice* slices = static_cast<const HeadSlice*>(a.slices);
  for (int i = 0; i < a.num_slices; ++i) {
    const HeadSlice s = slices[i];
    if (s.width <= kWarpWidth) {
      for (int64_t g = int64_t(blockIdx.y) * warps + warp; g < s.count; g += int64_t(gridDim.y) * warps)
        head_group(a, s, g, row, lane, 32, [](float v) { return warp_sum(v); });
    } else {
      for (int64_t g = blockIdx.y; g < s.count; g += gridDim.y)
        head_group(a, s, g, row, int(threadIdx.x), kThreads, [](float v) { return block_reduce<false>(v); });
    }
  }
  if (a.x.data == a.out.data) return;
  for (int64_t c = int64_t(blockIdx.y) * kThreads + threadIdx.x; c < a.cols; c += int64_t(gridDim.y) * kThreads) {
    bool outside = true;
    for (int i = 0; i < a.num_slices; ++i)
      outside = outside && (c < slices[i].begin || c >= slices[i].begin + slices[i].width * slices[i].count);
    if (outside) store1(a.out, row * a.out.ld + c, load1(a.x, row * a.x.ld + c));
  }
}

// Grid: rows that want an output x pieces of columns.
__global__ void select_kernel(View x, View out, int64_t cols, StepView step) {
  const int64_t r = blockIdx.x, at = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * 4;
  const int32_t from = step.logit_rows[r];  // negative: a row that pads a graph's batch
  if (at >= cols) return;
  float v[4];
  load4(x, (from < 0 ? 0 : from) * x.ld + at, v);
  store4(out, r * out.ld + at, v);
}

__global__ void widen_kernel(View x, int64_t cols, float* out) {
  const int64_t row = blockIdx.x, at = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * 4;
  if (at >= cols) return;
  float v[4];
  load4(x, row * x.ld + at, v);
  float* y = out + row * cols + at;
  if (cols % 4 == 0) return store4<Type::f32>(y, 0, v);
  for (int i = 0; i < 4 && at + i < cols; ++i) y[i] = v[i];
}

// Blocks of up to `kThreads` threads, each of which takes `each` columns.
dim3 block_for(int64_t cols, int64_t each) {
  const int64_t threads = round_up((cols + each - 1) / each, 32);
  return dim3(unsigned(threads < kThreads ? threads : kThreads));
}
dim3 grid_for(int rows, int64_t cols, int64_t each) {
  const int64_t width = each * block_for(cols, each).x;
  return dim3(unsigned(rows), unsigned((cols + width - 1) / width));
}

}  // namespace

void embed(const EmbedArgs& a, const StepView& step, Stream stream) {
  if (step.rows == 0) return;
  PYLLM_LAUNCH(embed_kernel, grid_for(step.rows, a.cols, 8), block_for(a.cols, 8), 0, stream, a, step);
}

void rotary(const View& out, const float* inv_freq, int n, float scaling, const StepView& step, Stream stream) {
  if (step.rows == 0 || n == 0) return;
  PYLLM_LAUNCH(rotary_kernel, grid_for(step.rows, n, 1), block_for(n, 1), 0, stream, out, inv_freq, n, scaling, step);
}

void norm(const NormArgs& a, Stream stream) {
  if (a.rows == 0) return;
  if (a.x.type == Type::f32) norm_of<Type::f32>(a, stream);
  else if (a.x.type == Type::bf16) norm_of<Type::bf16>(a, stream);
  else norm_of<Type::f16>(a, stream);
}

void head_norm(const HeadNormArgs& a, Stream stream) {
  if (a.rows == 0) return;
  const int64_t parts = a.cols / 1024;
  const dim3 grid(unsigned(a.rows), unsigned(parts < 1 ? 1 : parts > 8 ? 8 : parts));
  PYLLM_LAUNCH(head_norm_kernel, grid, dim3(kThreads), 0, stream, a);
}

void select(const View& x, const View& out, int64_t cols, const StepView& step, Stream stream) {
  if (step.logits == 0) return;
  PYLLM_LAUNCH(select_kernel, grid_for(step.logits, cols, 4), block_for(cols, 4), 0, stream, x, out, cols, step);
}

void widen(const View& x, int rows, int64_t cols, float* out, Stream stream) {
  if (rows == 0) return;
  PYLLM_LAUNCH(widen_kernel, grid_for(rows, cols, 4), block_for(cols, 4), 0, stream, x, cols, out);
}

}  // namespace cuda
}  // namespace pyllm
