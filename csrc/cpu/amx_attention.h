// attend() with AMX tiles for bf16 and more than four query vectors; the bits are those of attention.h. Included by
// isa_amx.cpp only.
#pragma once
#include "cpu/attention.h"
#include "cpu/tiles.h"

namespace pyllm {
namespace {

constexpr int kTileVectors = 5;  // from so many vectors on tiles are faster

// Fetches a tile into L2, unless there is none to fetch.
PYLLM_INLINE void prefetch_tile(const uint8_t* tile) {
  if (!tile) return;
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) f_prefetch_l2(tile + 64 * r);
}
// sum tile C (a literal) += queries at tile 0 . a tile of K, loaded through tile B.
#define PYLLM_SCORE_TILE(C, B, tile, ahead) \
  do {                                      \
    _tile_loadd(B, tile, 64);               \
    _tile_dpbf16ps(C, 0, B);                \
    prefetch_tile(ahead);                   \
  } while (0)

// Scores against one block: two token halves.
inline void score_tiles_1(const uint16_t* q, int64_t ep, const uint8_t* keys, float* scores, int64_t row) {
  const int64_t half = ep / 32 * 1024;
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t d = 0; d < ep; d += 32, keys += 1024) {
    _tile_loadd(0, q + d, ep * 2);
    PYLLM_SCORE_TILE(4, 2, keys, nullptr);
    PYLLM_SCORE_TILE(5, 3, keys + half, nullptr);
  }
  _tile_stored(4, scores, row * 4);
  _tile_stored(5, scores + 16, row * 4);
}
// Scores against two blocks: four independent sums hide the latency of the tile product. next: nullptr or the two
// blocks that come after.
inline void score_tiles_2(const uint16_t* q, int64_t ep, const uint8_t* const* keys, const uint8_t* const* next,
                          float* scores, int64_t row) {
  const int64_t half = ep / 32 * 1024;
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t d = 0, at = 0; d < ep; d += 32, at += 1024) {
    _tile_loadd(0, q + d, ep * 2);
    PYLLM_SCORE_TILE(4, 2, keys[0] + at, next ? next[0] + at : nullptr);
    PYLLM_SCORE_TILE(5, 3, keys[0] + half + at, next ? next[0] + half + at : nullptr);
    PYLLM_SCORE_TILE(6, 2, keys[1] + at, next ? next[1] + at : nullptr);
    PYLLM_SCORE_TILE(7, 3, keys[1] + half + at, next ? next[1] + half + at : nullptr);
  }
  _tile_stored(4, scores, row * 4);
  _tile_stored(5, scores + 16, row * 4);
  _tile_stored(6, scores + 32, row * 4);
  _tile_stored(7, scores + 48, row * 4);
}
#undef PYLLM_SCORE_TILE

inline void score_blocks_by_tiles(const AttendArgs& a, const AttendScratch& s, BlockRange blocks) {
  const int64_t ep = padded_head(a.head_dim);
  const uint16_t* q = reinterpret_cast<const uint16_t*>(s.queries);
  const bool fetch = reads_from_memory(a);
  int64_t b = blocks.begin;
  for (; b + 2 <= blocks.end; b += 2) {
    const uint8_t* keys[2] = {key_block(a, b), key_block(a, b + 1)};
    const uint8_t* next[2] = {};
    const bool more = b + 4 <= blocks.end;
    if (more) next[0] = key_block(a, b + 2), next[1] = key_block(a, b + 3);
    score_tiles_2(q, ep, keys, fetch && more ? next : nullptr, s.scores + (b - blocks.begin) * kBlockTokens, s.row);
  }
  if (b < blocks.end) score_tiles_1(q, ep, key_block(a, b), s.scores + (b - blocks.begin) * kBlockTokens, s.row);
}

// sum tile C (a literal) += weights at tile 0 . the tile of V for 16 dims, loaded through tile B.
#define PYLLM_VALUE_TILE(C, B, i)                 \
  do {                                            \
    _tile_loadd(B, values + (i)*1024, 64);        \
    _tile_dpbf16ps(C, 0, B);                      \
    prefetch_tile(next ? next + (i)*1024 : next); \
  } while (0)

// Outputs of dims [d, d + 32) or, with Four, [d, d + 64), over all visible blocks.
template <bool Four>
inline void value_tiles(const AttendArgs& a, const AttendScratch& s, BlockRange blocks, int64_t d) {
  const int64_t ep = padded_head(a.head_dim);
  const bool fetch = reads_from_memory(a);
  const uint16_t* weights = reinterpret_cast<const uint16_t*>(s.scores);
  float* outputs = s.outputs + d;
  _tile_zero(4);
  _tile_zero(5);
  if (Four) _tile_zero(6);
  if (Four) _tile_zero(7);
  for (int64_t b = blocks.begin; b < blocks.end; ++b, weights += kBlockTokens) {
    const uint8_t* values = value_block(a, b) + d / 16 * 1024;
    const uint8_t* next = fetch && b + 1 < blocks.end ? value_block(a, b + 1) + d / 16 * 1024 : nullptr;
    _tile_loadd(0, weights, s.row * 4);
    PYLLM_VALUE_TILE(4, 2, 0);
    PYLLM_VALUE_TILE(5, 3, 1);
    if (Four) PYLLM_VALUE_TILE(6, 2, 2);
    if (Four) PYLLM_VALUE_TILE(7, 3, 3);
  }
  _tile_stored(4, outputs, ep * 4);
  _tile_stored(5, outputs + 16, ep * 4);
  if (Four) _tile_stored(6, outputs + 32, ep * 4);
  if (Four) _tile_stored(7, outputs + 48, ep * 4);
}
#undef PYLLM_VALUE_TILE

// Queries as rows of bf16, zero padded to Ep.
inline void start_tile_rows(const AttendArgs& a, const AttendScratch& s) {
  const int64_t ep = padded_head(a.head_dim);
  uint16_t* q = reinterpret_cast<uint16_t*>(s.queries);
  for (int i = 0; i < a.vectors; ++i, q += ep)
    for (int64_t d = 0; d < ep; d += 16) {
      const int64_t left = a.head_dim - d;
      f_bf16_store(q + d, left <= 0 ? f_zero() : load_piece(a.q[i] + d, left < 16 ? int(left) : 16));
    }
}

inline void attend_by_tiles(const AttendArgs& a, void* scratch) {
  const AttendScratch s = split_scratch(scratch, a.head_dim, a.num_keys);
  const BlockRange blocks = visible_blocks(a);
  const int64_t ep = padded_head(a.head_dim);
  float inverse[kAttendRows];
  start_tile_rows(a, s);
  configure_tiles(a.vectors, a.vectors);
  score_blocks_by_tiles(a, s, blocks);
  soften_vectors<Weights::packed>(a, s, blocks, inverse);
  finish_stores();
  int64_t d = 0;
  for (; d + 64 <= ep; d += 64) value_tiles<true>(a, s, blocks, d);
  if (d < ep) value_tiles<false>(a, s, blocks, d);
  _tile_release();
  finish_vectors(a, s, inverse);
}

inline void amx_attend(const AttendArgs& a, void* scratch) {
  if (a.format == KvFormat::bf16 && a.vectors >= kTileVectors) return attend_by_tiles(a, scratch);
  attend(a, scratch);
}

}  // namespace
}  // namespace pyllm
