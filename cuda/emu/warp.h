// Operations of a whole warp for g++: barriers, shuffles, votes, reductions, and the matrix instructions of sm_80.
#pragma once
#include <type_traits>

#include "fibers.h"
#include "functions.h"

inline void __syncthreads() { pyllm::emu::sync_block(); }
inline void __syncwarp(unsigned mask = pyllm::emu::kFullMask) { pyllm::emu::sync_warp(mask, nullptr, nullptr); }

namespace pyllm {
namespace emu {

// Every lane's value, and what it gets of the others. Of a lane that has left the kernel: bits of ones.
template <class T>
struct Exchange {
  T value, result;
  unsigned source;
};
template <class T>
void exchange_all(void* const (&lanes)[32], unsigned mask) {
  for (unsigned l = 0; l < 32; l++) {
    if (!lanes[l]) continue;
    auto& mine = *static_cast<Exchange<T>*>(lanes[l]);
    if (!(mask >> mine.source & 1)) fail("a shuffle reads a lane that is not in its mask");
    if (lanes[mine.source]) mine.result = static_cast<Exchange<T>*>(lanes[mine.source])->value;
    else std::memset(static_cast<void*>(&mine.result), 0xff, sizeof(T));
  }
}
template <class T>
T exchange(unsigned mask, T value, unsigned source) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "shuffles move up to 8 bytes");
  Exchange<T> mine{value, value, source & 31u};
  sync_warp(mask, &mine, &exchange_all<T>);
  return mine.result;
}

// One value of all lanes' values, for all of them.
template <class T, class F>
void reduce_all(void* const (&lanes)[32], unsigned) {
  T all = F::start();
  for (unsigned l = 0; l < 32; l++)
    if (lanes[l]) all = F::add(all, *static_cast<T*>(lanes[l]), l);
  for (void* each : lanes)
    if (each) *static_cast<T*>(each) = all;
}
template <class F, class T>
T reduce(unsigned mask, T value) {
  sync_warp(mask, &value, &reduce_all<T, F>);
  return value;
}
struct Ballot {
  static unsigned start() { return 0; }
  static unsigned add(unsigned all, unsigned v, unsigned lane) { return all | (v ? 1u << lane : 0u); }
};
template <class T>
struct Add {
  static T start() { return 0; }
  static T add(T all, T v, unsigned) { return all + v; }
};
template <class T>
struct Most {
  static T start() { return std::is_signed<T>::value ? T(1u << 31) : 0; }
  static T add(T all, T v, unsigned) { return v > all ? v : all; }
};
template <class T>
struct Least {
  static T start() { return std::is_signed<T>::value ? T(0x7fffffff) : T(~0u); }
  static T add(T all, T v, unsigned) { return v < all ? v : all; }
};
struct Or {
  static unsigned start() { return 0; }
  static unsigned add(unsigned all, unsigned v, unsigned) { return all | v; }
};

inline void whole_warp(void* const (&lanes)[32]) {
  for (void* each : lanes)
    if (!each) fail("a matrix instruction needs all 32 lanes");
}

// ldmatrix: of matrix i (8 x 8 of 16 bits), lanes 8 i .. 8 i + 7 name the rows.
template <int Count>
struct LoadMatrix {
  const void* row;
  unsigned result[Count];
};
template <int Count, bool Transposed>
void load_matrix_all(void* const (&lanes)[32], unsigned) {
  whole_warp(lanes);
  using Lane = LoadMatrix<Count>;
  for (int i = 0; i < Count; i++) {
    uint16_t tile[8][8];
    for (int r = 0; r < 8; r++) {
      const void* row = static_cast<Lane*>(lanes[8 * i + r])->row;
      if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix needs rows at multiples of 16 bytes");
      std::memcpy(tile[r], row, 16);
    }
    for (int l = 0; l < 32; l++) {
      const int r = l / 4, c = l % 4 * 2;
      static_cast<Lane*>(lanes[l])->result[i] =
          Transposed ? tile[c][r] | unsigned(tile[c + 1][r]) << 16 : tile[r][c] | unsigned(tile[r][c + 1]) << 16;
    }
  }
}
template <int Count, bool Transposed>
void load_matrix(unsigned* out, const void* row) {
  LoadMatrix<Count> mine{row, {}};
  sync_warp(kFullMask, &mine, &load_matrix_all<Count, Transposed>);
  for (int i = 0; i < Count; i++) out[i] = mine.result[i];
}

// mma.m16n8k16.row.col: c[16][8] += a[16][16] b[16][8], 16-bit factors, float sums in the order of k.
struct Multiply {
  float* c;
  unsigned a[4], b[2];
};
template <class H>
float half_of(unsigned pair, int i) {
  return float(bits<H>(uint16_t(pair >> (16 * i))));
}
template <class H>
void multiply_all(void* const (&lanes)[32], unsigned) {
  whole_warp(lanes);
  float a[16][16], b[8][16];
  for (int l = 0; l < 32; l++) {
    const Multiply& m = *static_cast<Multiply*>(lanes[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 2; j++) a[g + i % 2 * 8][t + i / 2 * 8 + j] = half_of<H>(m.a[i], j);
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 2; j++) b[g][t + i * 8 + j] = half_of<H>(m.b[i], j);
  }
  for (int l = 0; l < 32; l++) {
    const Multiply& m = *static_cast<Multiply*>(lanes[l]);
    for (int i = 0; i < 4; i++) {
      const float *row = a[l / 4 + i / 2 * 8], *column = b[l % 4 * 2 + i % 2];
      float sum = m.c[i];
      for (int k = 0; k < 16; k++) sum += row[k] * column[k];
      m.c[i] = sum;
    }
  }
}
template <class H>
void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Multiply mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  sync_warp(kFullMask, &mine, &multiply_all<H>);
}

}  // namespace emu
}  // namespace pyllm

template <class T>
inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  const unsigned in = unsigned(width) - 1;
  return pyllm::emu::exchange(mask, v, (pyllm::emu::lane() & ~in) + (unsigned(source) & in));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32) {
  const unsigned lane = pyllm::emu::lane(), source = lane ^ unsigned(flip);
  return pyllm::emu::exchange(mask, v, source / unsigned(width) <= lane / unsigned(width) ? source : lane);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned distance, int width = 32) {
  const unsigned lane = pyllm::emu::lane();
  return pyllm::emu::exchange(mask, v, lane % unsigned(width) >= distance ? lane - distance : lane);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned distance, int width = 32) {
  const unsigned lane = pyllm::emu::lane();
  return pyllm::emu::exchange(mask, v, lane % unsigned(width) + distance < unsigned(width) ? lane + distance : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return pyllm::emu::reduce<pyllm::emu::Ballot>(mask, unsigned(predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
inline T __reduce_add_sync(unsigned mask, T v) {
  return pyllm::emu::reduce<pyllm::emu::Add<T>>(mask, v);
}
template <class T>
inline T __reduce_max_sync(unsigned mask, T v) {
  return pyllm::emu::reduce<pyllm::emu::Most<T>>(mask, v);
}
template <class T>
inline T __reduce_min_sync(unsigned mask, T v) {
  return pyllm::emu::reduce<pyllm::emu::Least<T>>(mask, v);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) { return pyllm::emu::reduce<pyllm::emu::Or>(mask, v); }
