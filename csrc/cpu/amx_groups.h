// The AMX matmuls of int4: sums of a group in tiles, scaled and added up in vectors. Included by isa_amx.cpp only.
//
// A piece of up to 16 KB of weights is unpacked into L1, as B tiles of bytes code - zero: products are TDPBSSD and need
// no correction. Rows go past it: two sums of tiles a group, of the high and the low plane by 16 outputs, or, where
// both planes lie in one block (up to 8 rows), of two times 16 outputs. The tiles of a group are stored while those of
// the next are computed, and added up in registers one group later still, so that no step waits for another.
#pragma once
#include <cstring>

#include "cpu/amx_forms.h"

namespace pyllm {
namespace {

constexpr int kGroupBlocks = 16;          // blocks of A in a chunk
constexpr int kPieceBytes = 16 * 1024;    // of unpacked weights
constexpr int kChunkBytes = 1024 * 1024;  // of a chunk of A, or of a slice of it along k: stays in L2
constexpr int kGroupStrips = 64;          // strips of 32 outputs whose sums wait while k is sliced: 1 MB

struct alignas(64) GroupScratch {
  int32_t raw[2][2 * 16 * 16];          // sums of two tiles of two groups
  float scales[kPieceBytes / 512][16];  // of a piece
  int8_t b[kPieceBytes];                // [groups][16-output tiles][tile rows][64]
};

// Weights of 16 or 32 outputs of a panel from some group on.
struct GroupWeights {
  const uint8_t* group;  // where it begins
  int tile;              // 0 .. 3: the first 16 outputs
};
template <Format F>
PYLLM_INLINE const uint8_t* codes_at(const GroupWeights& w) {
  return w.group + 128 + (has_zeros(F) ? 64 : 0) + 64 * w.tile;
}

// The scales of the weights `ahead` are fetched into L2 meanwhile; their codes by the products.
template <Format F, int Tiles>
PYLLM_APART void unpack_groups(GroupWeights w, GroupWeights ahead, int groups, GroupScratch& s) {
  int8_t* to = s.b;
  float(*scales)[16] = s.scales;
  for (int g = 0; g < groups; ++g, w.group += group_bytes(F), ahead.group += group_bytes(F)) {
    f_prefetch_l2(ahead.group + 32 * ahead.tile);
    if (has_zeros(F)) f_prefetch_l2(ahead.group + 128);
    for (int t = 0; t < Tiles; ++t) {
      f_store(*scales++, f_f16_load(w.group + 32 * (w.tile + t)));
      __m512i zero = _mm512_set1_epi8(8);
      if constexpr (has_zeros(F))
        zero = _mm512_mullo_epi32(i_from_u8(w.group + 128 + 16 * (w.tile + t)).v, _mm512_set1_epi32(0x01010101));
      const uint8_t* codes = codes_at<F>(w) + 64 * t;
      for (int k = 0; k < group_of(F); k += 8, codes += 4 * 64, to += 128) {
        _mm512_store_si512(to, _mm512_sub_epi8(codes_low(codes).v, zero));
        _mm512_store_si512(to + 64, _mm512_sub_epi8(codes_high(codes).v, zero));
      }
    }
  }
  finish_stores();
}

// What the products of one piece share.
struct UnpackedPiece {
  GroupWeights ahead;  // the piece after it
  int groups;
  bool first;  // begins at k = 0
};

// The two tiles of sums of the next group: C0 and C1 as literals.
#define PYLLM_GROUP_TILES(C0, C1)                                  \
  do {                                                             \
    _tile_zero(C0);                                                \
    _tile_zero(C1);                                                \
    for (int i = 0; i < kBytes; i += kA) {                         \
      _tile_loadd(2, b + i, 64);                                   \
      _tile_stream_loadd(0, a + i, tile_row_bytes(F));             \
      _tile_dpbssd(C0, 0, 2);                                      \
      if constexpr (kTiles == 2) {                                 \
        _tile_loadd(3, b + kBytes + i, 64);                        \
        _tile_dpbssd(C1, 0, 3);                                    \
      } else {                                                     \
        _tile_stream_loadd(1, a + a_block + i, tile_row_bytes(F)); \
        _tile_dpbssd(C1, 1, 2);                                    \
      }                                                            \
    }                                                              \
    for (int i = 0; i < lines; ++i) {                              \
      f_prefetch_l2(ahead + 256 * i);                              \
      if (kTiles == 2) f_prefetch_l2(ahead + 256 * i + 64);        \
    }                                                              \
    b += kTiles * kBytes;                                          \
    a += kBytes;                                                   \
    ahead += group_bytes(F);                                       \
  } while (0)

// sum += scale * (256 * high + low) of one group. raw: sums of two tiles.
template <int Rows, int Tiles>
PYLLM_INLINE void add_group(F16 (&sum)[Rows * Tiles], const int32_t* raw, const float (*scales)[16]) {
  constexpr int kLow = Tiles == 1 ? 16 * 16 : 16 * Rows;  // from the high plane to the low one
#pragma GCC unroll 16
  for (int i = 0; i < Rows * Tiles; ++i) {
    const int32_t* high = raw + i / Rows * 256 + i % Rows * 16;
    const I16 all = i_add(i_left<8>(i_load(high)), i_load(high + kLow));
    sum[i] = f_fma(i_to_float(all), f_load(scales[i / Rows]), sum[i]);
  }
}

// c += the groups of one piece. Rows: 16, two planes of 16 outputs each; or fewer, stacked, of 32 outputs. Lines
// [line, line + lines) of every group of the next piece are fetched.
template <Format F, int Rows>
PYLLM_APART void group_product(const UnpackedPiece& p, const uint8_t* a, size_t a_block, float* c, int line, int lines,
                               GroupScratch& s) {
  constexpr int kTiles = Rows == 16 ? 1 : 2, kSums = kTiles * Rows;
  constexpr int kA = int(a_step_bytes(F)), kBytes = group_of(F) * 16;
  const int8_t* b = s.b;
  const uint8_t* ahead = codes_at<F>(p.ahead) + 256 * line;
  const float(*scales)[16] = s.scales;
  F16 sum[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sum[i] = p.first ? f_zero() : f_load(c + i / Rows * 256 + i % Rows * 16);
  // Even groups in tiles 4 and 5, odd ones in 6 and 7; `left` groups are to be started.
  for (int left = p.groups; left > -2; left -= 2) {
    const bool begun = left < p.groups;
    if (left > 0) PYLLM_GROUP_TILES(4, 5);
    if (begun && left >= 0) {
      _tile_stored(6, s.raw[1], 64);
      _tile_stored(7, s.raw[1] + 256, 64);
    }
    if (begun) add_group<Rows, kTiles>(sum, s.raw[0], scales), scales += kTiles;
    if (left > 1) PYLLM_GROUP_TILES(6, 7);
    if (left > 0) {
      _tile_stored(4, s.raw[0], 64);
      _tile_stored(5, s.raw[0] + 256, 64);
    }
    if (begun && left >= 0) add_group<Rows, kTiles>(sum, s.raw[1], scales), scales += kTiles;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) f_store(c + i / Rows * 256 + i % Rows * 16, sum[i]);
}
#undef PYLLM_GROUP_TILES

// 16 (Rows 16) or 32 outputs, from `tile` of a panel on, of all blocks of a chunk over groups [begin, end).
// `next`: the weights that come after.
template <Format F, int Rows>
void sum_outputs(const LinearArgs& a, int block0, int blocks, GroupWeights w, int begin, int end, GroupWeights next,
                 float* c, GroupScratch& s) {
  constexpr int kTiles = Rows == 16 ? 1 : 2, kPlanes = 3 - kTiles, kBytes = group_of(F) * 16;
  const size_t a_block = block_bytes(F, a.k);
  const int products = blocks / kPlanes, all = group_of(F) / 8, lines = (all + products - 1) / products;
  w.group += size_t(begin) * group_bytes(F);
  for (int g = begin, groups; g < end; g += groups) {
    groups = next_part(end - g, kPieceBytes / (kTiles * kBytes));
    const GroupWeights after = {w.group + size_t(groups) * group_bytes(F), w.tile};
    const UnpackedPiece piece = {g + groups < end ? after : next, groups, g == 0};
    unpack_groups<F, kTiles>(w, piece.ahead, groups, s);
    w = after;
    const uint8_t* x = static_cast<const uint8_t*>(a.x) + size_t(block0) * a_block + size_t(g) * kBytes;
    for (int i = 0; i < products; ++i, x += kPlanes * a_block) {
      const int line = i * lines < all ? i * lines : all, some = all - line < lines ? all - line : lines;
      group_product<F, Rows>(piece, x, a_block, c + i * kStripSums, line, some, s);
    }
    finish_stores();
  }
}

inline GroupWeights group_weights(const LinearArgs& a, int strip, int half, int group) {
  const uint8_t* panel = a.weights + size_t(strip / 2) * panel_bytes(a.format, a.k);
  return {panel + size_t(group) * group_bytes(a.format), strip % 2 * 2 + half};
}

// Groups [begin, end) of k of strips [first, last) for blocks [block0, block0 + blocks).
struct GroupSlice {
  int block0, blocks, first, last, begin, end;
};

template <Format F, int Rows>
void sum_slice(const LinearArgs& a, const GroupSlice& v, float* sums, GroupScratch& s) {
  const int groups = int(packed_k(F, a.k) / group_of(F)), row0 = v.block0 / planes_of(F) * 16;
  const int products = Rows == 16 ? v.blocks / 2 : 1, most = 16 * products,
            rows = a.m - row0 < most ? a.m - row0 : most;
  const bool sliced = v.end - v.begin < groups;
  for (int strip = v.first; strip < v.last; ++strip) {
    float* c = sums + size_t(sliced ? strip - v.first : 0) * products * kStripSums;
    const GroupWeights next = strip + 1 < v.last ? group_weights(a, strip + 1, 0, v.begin)
                                                 : group_weights(a, v.first, 0, v.end < groups ? v.end : 0);
    const GroupWeights left = group_weights(a, strip, 0, 0);
    if constexpr (Rows == 16) {
      const GroupWeights right = group_weights(a, strip, 1, 0);
      sum_outputs<F, Rows>(a, v.block0, v.blocks, left, v.begin, v.end, group_weights(a, strip, 1, v.begin), c, s);
      sum_outputs<F, Rows>(a, v.block0, v.blocks, right, v.begin, v.end, next, c + 256, s);
    } else {
      sum_outputs<F, Rows>(a, v.block0, v.blocks, left, v.begin, v.end, next, c, s);
    }
    Waiting done = {c, int64_t(strip) * 32, row0, rows, rows};
    if (v.end == groups) finish_some<F>(a, done, rows);
  }
}

// Blocks of A from `block` on that make a chunk, and the groups of k in its longest slice.
inline int chunk_blocks(Format f, int m, int block) {
  const int left = block_count(f, m) - block;
  return left == 1 ? 1 : 2 * next_part(left / 2, kGroupBlocks / 2);
}
inline int slice_groups(Format f, int blocks) { return kChunkBytes / (blocks * group_of(f) * 16); }

inline size_t groups_scratch(const LinearArgs& a, int panels) {
  const int blocks = chunk_blocks(a.format, a.m, 0), strips = 2 * panels < kGroupStrips ? 2 * panels : kGroupStrips;
  const bool sliced = packed_k(a.format, a.k) / group_of(a.format) > slice_groups(a.format, blocks);
  return sizeof(GroupScratch) + size_t(sliced ? strips : 1) * size_t((blocks + 1) / 2) * kStripSums * sizeof(float);
}

template <Format F, int Rows>
void groups_linear(const LinearArgs& a, int p0, int p1, void* scratch) {
  GroupScratch& s = *static_cast<GroupScratch*>(scratch);
  float* sums = reinterpret_cast<float*>(&s + 1);
  const int groups = int(packed_k(F, a.k) / group_of(F));
  std::memset(s.raw, 0, sizeof s.raw);  // also the rows that tiles of fewer than 16 do not write are added up
  GroupSlice v = {};
  for (; v.block0 < block_count(F, a.m); v.block0 += v.blocks) {
    v.blocks = chunk_blocks(F, a.m, v.block0);
    for (v.first = 2 * p0; v.first < 2 * p1; v.first = v.last) {
      v.last = v.first + kGroupStrips < 2 * p1 ? v.first + kGroupStrips : 2 * p1;
      for (v.begin = 0; v.begin < groups; v.begin = v.end) {
        v.end = v.begin + next_part(groups - v.begin, slice_groups(F, v.blocks));
        sum_slice<F, Rows>(a, v, sums, s);
      }
    }
  }
}

template <Format F>
void groups_linear(const LinearArgs& a, int p0, int p1, void* scratch) {
  static_assert(kStackedRows == 8 && tile_rows_from(F) == 4);
  const int rows = is_stacked(F, a.m) ? 2 * a.m : a.m < 16 ? a.m : 16;
  configure_tiles(rows, rows, tile_row_bytes(F));
  switch (a.m) {
    case 4:
      return groups_linear<F, 4>(a, p0, p1, scratch);
    case 5:
      return groups_linear<F, 5>(a, p0, p1, scratch);
    case 6:
      return groups_linear<F, 6>(a, p0, p1, scratch);
    case 7:
      return groups_linear<F, 7>(a, p0, p1, scratch);
    case 8:
      return groups_linear<F, 8>(a, p0, p1, scratch);
    default:
      return groups_linear<F, 16>(a, p0, p1, scratch);
  }
}

}  // namespace
}  // namespace pyllm
