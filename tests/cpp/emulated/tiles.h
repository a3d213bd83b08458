// AMX tiles in plain AVX-512, so that the AMX kernels are compiled and checked on CPUs that have no tiles. Replaces the
// intrinsics by functions that follow the hardware bit for bit (TDPBF16PS: even and odd products in two fused chains
// from +0, their sum onto C, denormals flushed; TDPB..D: exact sums of products of bytes, wrapping) and stop the
// program where the hardware would fault.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#define _tile_loadconfig(config) emulated::load_config(config)
#define _tile_release() emulated::release()
#define _tile_zero(tile) emulated::zero(tile)
#define _tile_loadd(tile, base, stride) emulated::load(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated::store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b) emulated::multiply_bf16(c, a, b)
#define _tile_dpbssd(c, a, b) emulated::multiply_bytes<int8_t, int8_t>(c, a, b)
#define _tile_dpbsud(c, a, b) emulated::multiply_bytes<int8_t, uint8_t>(c, a, b)
#define _tile_dpbusd(c, a, b) emulated::multiply_bytes<uint8_t, int8_t>(c, a, b)
#define _tile_dpbuud(c, a, b) emulated::multiply_bytes<uint8_t, uint8_t>(c, a, b)

namespace {
namespace emulated {

struct Tile {
  bool configured = false;
  int rows = 0, bytes = 0;
  alignas(64) uint8_t data[16][64];
};
thread_local Tile tiles[8];

inline void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "tile fault: %s\n", what);
  std::abort();
}
inline Tile& configured(int i) {
  require(tiles[i].configured, "tile used before its configuration or after its release");
  return tiles[i];
}
inline void load_config(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  require(bytes[0] == 1 && bytes[1] == 0, "palette must be 1 and start row 0");
  for (int i = 0; i < 8; ++i) {
    uint16_t columns;
    std::memcpy(&columns, bytes + 16 + 2 * i, 2);
    require(bytes[48 + i] <= 16 && columns <= 64, "a tile has at most 16 rows of 64 bytes");
    tiles[i] = Tile();
    tiles[i].rows = bytes[48 + i];
    tiles[i].bytes = columns;
    tiles[i].configured = tiles[i].rows > 0 && tiles[i].bytes > 0;
  }
}
inline void release() {
  for (Tile& t : tiles) t = Tile();
}
inline void zero(int i) { std::memset(configured(i).data, 0, sizeof tiles[i].data); }
inline void load(int i, const void* base, int64_t stride) {
  zero(i);
  for (int r = 0; r < tiles[i].rows; ++r)
    std::memcpy(tiles[i].data[r], static_cast<const uint8_t*>(base) + r * stride, size_t(tiles[i].bytes));
}
inline void store(int i, void* base, int64_t stride) {
  const Tile& t = configured(i);
  for (int r = 0; r < t.rows; ++r) std::memcpy(static_cast<uint8_t*>(base) + r * stride, t.data[r], size_t(t.bytes));
}
inline float widen(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void check_product(int ic, int ia, int ib) {
  const Tile &c = configured(ic), &a = configured(ia), &b = configured(ib);
  require(c.rows == a.rows && a.bytes == 4 * b.rows && c.bytes == b.bytes, "shapes of the product do not fit");
  require(ic != ia && ic != ib && ia != ib, "the three tiles must differ");
}
// Bytes of A times bytes of B, in quads along k, onto int32 sums.
template <typename A, typename B>
inline void multiply_bytes(int ic, int ia, int ib) {
  check_product(ic, ia, ib);
  Tile &c = tiles[ic], &a = tiles[ia], &b = tiles[ib];
  for (int m = 0; m < c.rows; ++m)
    for (int n = 0; n < c.bytes / 4; ++n) {
      uint32_t sum;
      std::memcpy(&sum, c.data[m] + 4 * n, 4);
      for (int k = 0; k < b.rows; ++k)
        for (int i = 0; i < 4; ++i)
          sum += uint32_t(int32_t(A(a.data[m][4 * k + i])) * int32_t(B(b.data[k][4 * n + i])));
      std::memcpy(c.data[m] + 4 * n, &sum, 4);
    }
}
inline void multiply_bf16(int ic, int ia, int ib) {
  check_product(ic, ia, ib);
  Tile &c = tiles[ic], &a = tiles[ia], &b = tiles[ib];
  const unsigned csr = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // to nearest, FTZ and DAZ, no exceptions: the instruction ignores MXCSR
  for (int m = 0; m < c.rows; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int k = 0; k < b.rows; ++k) {
      const __m512i w = _mm512_load_si512(b.data[k]);
      const __m512 we = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
      const __m512 wo = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int(0xffff0000u))));
      even = _mm512_fmadd_ps(_mm512_set1_ps(widen(a.data[m] + 4 * k)), we, even);
      odd = _mm512_fmadd_ps(_mm512_set1_ps(widen(a.data[m] + 4 * k + 2)), wo, odd);
    }
    _mm512_store_ps(c.data[m], _mm512_add_ps(_mm512_load_ps(c.data[m]), _mm512_add_ps(even, odd)));
  }
  _mm_setcsr(csr);
}

}  // namespace emulated
}  // namespace
