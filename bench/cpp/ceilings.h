// What this machine can do at best, measured in the run that quotes it: read bandwidth at a given footprint, and the
// peak of the multiply-add instructions on ordinary numbers (zeros draw less power and flatter it).
//
// Compiled for plain x86-64; functions carry the instruction set they need and run only where the table that uses it
// does.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "threads.h"

namespace pyllm {
namespace bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of a job on `threads` workers at best (a ceiling is what nothing disturbed); each worker gets its index.
inline double best_time(int threads, const std::function<void(int)>& work, int repeats = 7) {
  double best = 1e30;
  for (int i = 0; i <= repeats; ++i) {
    const double start = now();
    Pool::instance().run(threads, [&](Team& team) { work(team.index); });
    if (i) best = std::min(best, now() - start);
  }
  return best;
}

#if defined(__x86_64__)

__attribute__((target("avx512f"))) inline uint64_t read_avx512(const uint8_t* p, size_t n) {
  __m512i sum[8] = {};
  for (const uint8_t* end = p + n; p < end; p += 512)
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sum[i] = _mm512_xor_si512(sum[i], _mm512_loadu_si512(p + 64 * i));
  for (int i = 1; i < 8; ++i) sum[0] = _mm512_xor_si512(sum[0], sum[i]);
  uint64_t words[8];
  _mm512_storeu_si512(words, sum[0]);
  return words[0];
}
inline uint64_t read_sse2(const uint8_t* p, size_t n) {
  __m128i sum[8] = {};
  for (const uint8_t* end = p + n; p < end; p += 128)
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      sum[i] = _mm_xor_si128(sum[i], _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i)));
  for (int i = 1; i < 8; ++i) sum[0] = _mm_xor_si128(sum[0], sum[i]);
  return uint64_t(_mm_cvtsi128_si64(sum[0]));
}

// Floating-point operations of `steps` steps of independent chains; the result goes to *sink so that it is computed.
__attribute__((target("avx512f"))) inline double multiply_add_avx512(int64_t steps, float* sink) {
  const __m512 factor = _mm512_set1_ps(0.9993f);
  __m512 x[16];
  for (int j = 0; j < 16; ++j) x[j] = _mm512_set1_ps(0.37f + 0.01f * j);
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = _mm512_fmadd_ps(x[j], factor, factor);
  for (int j = 1; j < 16; ++j) x[0] = _mm512_add_ps(x[0], x[j]);
  *sink = _mm512_cvtss_f32(x[0]);
  return double(steps) * 16 * 32;
}
__attribute__((target("avx2,fma"))) inline double multiply_add_avx2(int64_t steps, float* sink) {
  const __m256 factor = _mm256_set1_ps(0.9993f);
  __m256 x[12];
  for (int j = 0; j < 12; ++j) x[j] = _mm256_set1_ps(0.37f + 0.01f * j);
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) x[j] = _mm256_fmadd_ps(x[j], factor, factor);
  for (int j = 1; j < 12; ++j) x[0] = _mm256_add_ps(x[0], x[j]);
  *sink = _mm256_cvtss_f32(x[0]);
  return double(steps) * 12 * 16;
}
inline double multiply_add_sse2(int64_t steps, float* sink) {
  const __m128 factor = _mm_set1_ps(0.9993f);
  __m128 x[12];
  for (int j = 0; j < 12; ++j) x[j] = _mm_set1_ps(0.37f + 0.01f * j);
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) x[j] = _mm_add_ps(_mm_mul_ps(x[j], factor), factor);
  for (int j = 1; j < 12; ++j) x[0] = _mm_add_ps(x[0], x[j]);
  *sink = _mm_cvtss_f32(x[0]);
  return double(steps) * 12 * 8;
}

// 2 x 2 tiles of sums over operands that come from L1, new ones every step. `tiles`: 32 KB of bf16 numbers.
__attribute__((target("amx-tile,amx-bf16"))) inline double multiply_add_tiles(int64_t steps, const uint8_t* tiles) {
  alignas(64) uint8_t config[64] = {1};
  for (int i = 0; i < 8; ++i) config[16 + 2 * i] = 64, config[48 + i] = 16;
  __asm__ volatile("" : : "r"(config) : "memory");  // gcc 12 would drop the stores
  _tile_loadconfig(config);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < steps; ++i) {
    const uint8_t* p = tiles + i % 8 * 4096;
    _tile_loadd(0, p, 64);
    _tile_loadd(2, p + 2048, 64);
    _tile_dpbf16ps(4, 0, 2);
    _tile_loadd(3, p + 3072, 64);
    _tile_dpbf16ps(5, 0, 3);
    _tile_loadd(1, p + 1024, 64);
    _tile_dpbf16ps(6, 1, 2);
    _tile_dpbf16ps(7, 1, 3);
  }
  _tile_release();
  return double(steps) * 4 * 2 * 16 * 16 * 32;
}

// 16 chains of VDPBF16PS and of VPDPBUSD: operations of `steps` steps.
__attribute__((target("avx512f,avx512bf16"))) inline double pairs_avx512(int64_t steps, float* sink) {
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f7f3f7f), b = (__m512bh)_mm512_set1_epi32(0x3f013eff);
  __m512 x[16];
  for (int j = 0; j < 16; ++j) x[j] = _mm512_set1_ps(0.37f + 0.01f * j);
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = _mm512_dpbf16_ps(x[j], a, b);
  for (int j = 1; j < 16; ++j) x[0] = _mm512_add_ps(x[0], x[j]);
  *sink = _mm512_cvtss_f32(x[0]);
  return double(steps) * 16 * 64;
}
__attribute__((target("avx512f,avx512vnni"))) inline double quads_avx512(int64_t steps, float* sink) {
  const __m512i a = _mm512_set1_epi32(0x1357ace9), b = _mm512_set1_epi32(0x2468bdf1);
  __m512i x[16];
  for (int j = 0; j < 16; ++j) x[j] = _mm512_set1_epi32(j);
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = _mm512_dpbusd_epi32(x[j], a, b);
  for (int j = 1; j < 16; ++j) x[0] = _mm512_add_epi32(x[0], x[j]);
  *sink = float(_mm_cvtsi128_si32(_mm512_castsi512_si128(x[0])));
  return double(steps) * 16 * 128;
}

inline bool is_wide(const std::string& isa) { return isa == "amx" || isa.rfind("avx512", 0) == 0; }
inline uint64_t read_all(const std::string& isa, const uint8_t* p, size_t n) {
  return is_wide(isa) ? read_avx512(p, n) : read_sse2(p, n);
}
inline double multiply_add(const std::string& isa, int64_t steps, float* sink) {
  if (is_wide(isa)) return multiply_add_avx512(steps, sink);
  return isa.rfind("avx2", 0) == 0 ? multiply_add_avx2(steps, sink) : multiply_add_sse2(steps, sink);
}

#else  // other architectures: what the compiler makes of plain loops

inline uint64_t read_all(const std::string&, const uint8_t* p, size_t n) {
  uint64_t sum[8] = {}, word;
  for (size_t i = 0; i + 64 <= n; i += 64)
    for (int j = 0; j < 8; ++j) std::memcpy(&word, p + i + 8 * j, 8), sum[j] ^= word;
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}
inline double multiply_add(const std::string&, int64_t steps, float* sink) {
  float x[64];
  for (int j = 0; j < 64; ++j) x[j] = 0.37f + 0.01f * float(j);
  for (int64_t i = 0; i < steps; ++i)
    for (int j = 0; j < 64; ++j) x[j] = x[j] * 0.9993f + 0.9993f;
  *sink = 0;
  for (float v : x) *sink += v;
  return double(steps) * 64 * 2;
}

#endif

// GB/s of reading `bytes` again and again, each worker its part.
inline double read_gbs(const std::string& isa, int threads, const uint8_t* data, size_t bytes) {
  const size_t part = bytes / size_t(threads) / 4096 * 4096;
  std::atomic<uint64_t> sink{0};
  const double t = best_time(threads, [&](int i) { sink ^= read_all(isa, data + part * size_t(i), part); });
  return double(part) * threads / t * 1e-9;
}

// Billions of operations a second of a loop that returns how many it did.
inline double peak(int threads, const std::function<double(int64_t, float*)>& loop) {
  double work = 0;
  std::atomic<float> keep{0};
  const double t = best_time(threads, [&](int i) {
    float sink;
    const double mine = loop(100000, &sink);
    keep = sink;
    if (i == 0) work = mine;
  });
  return work * threads / t * 1e-9;
}

// GFLOP/s of the instruction set's widest fp32 multiply-add.
inline double peak_gflops(const std::string& isa, int threads) {
  return peak(threads, [&](int64_t steps, float* sink) { return multiply_add(isa, steps, sink); });
}

// GFLOP/s of TDPBF16PS.
inline double tile_peak_gflops(int threads) {
#if defined(__x86_64__)
  alignas(64) static uint8_t tiles[32768];
  uint32_t random = 1;
  for (size_t i = 0; i < sizeof tiles; i += 2) {  // +-[0.5, 2)
    random = random * 1664525u + 1013904223u;
    const uint16_t half = uint16_t((random >> 16 & 0x80ff) | 0x3f00);
    std::memcpy(tiles + i, &half, 2);
  }
  double work = 0;
  const double t = best_time(threads, [&](int i) {
    const double mine = multiply_add_tiles(50000, tiles);
    if (i == 0) work = mine;
  });
  return work * threads / t * 1e-9;
#else
  (void)threads;
  return 0;
#endif
}

}  // namespace bench
}  // namespace pyllm
