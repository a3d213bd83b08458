// The AMX matmuls of bf16 and int8, whose packed weights are B tiles already, and of f32_bf16x3, whose weights are
// split on the way. Included by isa_amx.cpp only.
//
// Where all activations fit one block of rows, weights stream from memory past it, a panel at a time. Above, 2 x 2
// tiles of sums: two blocks of rows (bf16, i8_fast) or the two planes of one (i8), by 32 outputs. A chunk of 16 blocks
// of A stays in L2 and streams from there (TILELOADDT1, so that it does not push B out of L1), a piece of 8 steps of B
// stays in L1, the next piece is fetched into L2 meanwhile. The vector work on finished sums is done a row at a time
// between the tile products of the following outputs.
#pragma once
#include "cpu/amx_forms.h"
#include "cpu/amx_split.h"

namespace pyllm {
namespace {

constexpr int kPieceSteps = 8;            // steps of a piece: 16 KB of B
constexpr int kSliceBytes = 1 << 20;      // of a chunk of A, or of a slice of it along k: stays in L2
constexpr int kGroup = 32;                // strips of 32 outputs whose sums wait while k is sliced: 1 MB
constexpr size_t kStepBytes = 4 * kTile;  // of a packed panel

// Sums C += A . B, tile numbers as literals.
#define PYLLM_TILE_PRODUCT(C, A, B)                           \
  do {                                                        \
    if constexpr (F == Format::bf16) _tile_dpbf16ps(C, A, B); \
    else _tile_dpbsud(C, A, B);                               \
  } while (0)

PYLLM_INLINE void fetch_tile(const uint8_t* p) {
#pragma GCC unroll 16
  for (size_t i = 0; i < kTile; i += 64) f_prefetch_l2(p + i);
}

// All k of one panel and one block of rows into c[4 tiles][16][16].
template <Format F>
PYLLM_APART void panel_product(const LinearArgs& a, const uint8_t* w, int steps, float* c, Waiting& waiting) {
  const uint8_t* x = static_cast<const uint8_t*>(a.x);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int s = 0; s < steps; ++s, x += kTile, w += kStepBytes) {
    _tile_loadd(0, x, 64);
    _tile_loadd(2, w, 64);
    PYLLM_TILE_PRODUCT(4, 0, 2);
    fetch_tile(w + kAhead);
    _tile_loadd(3, w + kTile, 64);
    PYLLM_TILE_PRODUCT(5, 0, 3);
    fetch_tile(w + kAhead + kTile);
    _tile_loadd(2, w + 2 * kTile, 64);
    PYLLM_TILE_PRODUCT(6, 0, 2);
    fetch_tile(w + kAhead + 2 * kTile);
    _tile_loadd(3, w + 3 * kTile, 64);
    PYLLM_TILE_PRODUCT(7, 0, 3);
    fetch_tile(w + kAhead + 3 * kTile);
    if (waiting.done < waiting.count) finish_some<F>(a, waiting, waiting.rate);
  }
  _tile_stored(4, c, 64);
  _tile_stored(5, c + 256, 64);
  _tile_stored(6, c + 512, 64);
  _tile_stored(7, c + 768, 64);
}

template <Format F>
void row_block_panels(const LinearArgs& a, int p0, int p1, float* sums) {
  const int steps = step_count(F, a.k), rows = is_stacked(F, a.m) ? 2 * a.m : a.m;
  configure_tiles(rows, rows);
  Waiting waiting;
  for (int p = p0; p < p1; ++p) {
    float* c = sums + p % 2 * kSumFloats;
    panel_product<F>(a, a.weights + size_t(p) * panel_bytes(F, a.k), steps, c, waiting);
    finish_some<F>(a, waiting, waiting.count);
    waiting = {c, int64_t(p) * kPanel, 0, a.m, 2 * a.m, 0, (2 * a.m + steps - 1) / steps};
  }
  finish_some<F>(a, waiting, waiting.count);
}

// What the products of one strip and one piece of k share.
struct TilePiece {
  const uint8_t* b;      // steps of kStepBytes, two tiles used of each
  const uint8_t* ahead;  // the piece after it
  int steps;
  bool first;  // begins at k = 0
};

// c (2 x 2 tiles) += A (Blocks blocks, a_block bytes apart) * B over one piece. Lines [line, line + lines) of every
// step of the next piece are fetched.
template <Format F, int Blocks>
PYLLM_APART void tile_product(const LinearArgs& args, const TilePiece& p, const uint8_t* a, size_t a_block, float* c,
                              int line, int lines, Waiting& waiting) {
  const uint8_t *b = p.b, *ahead = p.ahead + 64 * line;
  if (p.first) {
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
  } else {
    _tile_loadd(4, c, 64);
    _tile_loadd(5, c + 256, 64);
    if (Blocks == 2) _tile_loadd(6, c + 512, 64);
    if (Blocks == 2) _tile_loadd(7, c + 768, 64);
  }
  for (int s = 0; s < p.steps; ++s, a += kTile, b += kStepBytes, ahead += kStepBytes) {
    _tile_loadd(2, b, 64);
    _tile_stream_loadd(0, a, 64);
    PYLLM_TILE_PRODUCT(4, 0, 2);
    _tile_loadd(3, b + kTile, 64);
    PYLLM_TILE_PRODUCT(5, 0, 3);
    if (Blocks == 2) _tile_stream_loadd(1, a + a_block, 64);
    if (Blocks == 2) PYLLM_TILE_PRODUCT(6, 1, 2);
    for (int i = 0; i < lines; ++i) f_prefetch_l2(ahead + 64 * i);
    if (Blocks == 2) PYLLM_TILE_PRODUCT(7, 1, 3);
    if (waiting.done < waiting.count) finish_some<F>(args, waiting, waiting.rate);
  }
  _tile_stored(4, c, 64);
  _tile_stored(5, c + 256, 64);
  if (Blocks == 2) _tile_stored(6, c + 512, 64);
  if (Blocks == 2) _tile_stored(7, c + 768, 64);
}
#undef PYLLM_TILE_PRODUCT

template <Format F>
const uint8_t* strip_weights(const LinearArgs& a, int strip, int step) {
  const uint8_t* panel = a.weights + size_t(strip / 2) * panel_bytes(F, a.k);
  if constexpr (F == Format::f32_bf16x3) return panel + size_t(step) * kSplitStepBytes + strip % 2 * kSplitRowBytes;
  return panel + size_t(step) * kStepBytes + strip % 2 * (2 * kTile);
}

inline int slice_steps(Format f, const Chunk& chunk) { return kSliceBytes / (chunk.blocks * int(a_step_bytes(f))); }

// Sums of one strip over steps [begin, end), in pieces. `next`: the weights that come after.
template <Format F>
void sum_strip(const LinearArgs& a, const Chunk& chunk, int strip, int begin, int end, const uint8_t* next, float* c,
               Waiting& waiting) {
  const size_t a_block = block_bytes(F, a.k);
  const int pairs = chunk.pairs(), lines = (32 + pairs - 1) / pairs;
  for (int s = begin, steps; s < end; s += steps) {
    steps = next_part(end - s, kPieceSteps);
    const uint8_t* b = strip_weights<F>(a, strip, s);
    const TilePiece piece = {b, s + steps < end ? b + steps * kStepBytes : next, steps, s == 0};
    const uint8_t* x = static_cast<const uint8_t*>(a.x) + chunk.block0 * a_block + s * kTile;
    for (int i = 0; i < pairs; ++i, x += 2 * a_block) {
      const int line = i * lines < 32 - lines ? i * lines : 32 - lines;
      if (2 * i + 1 < chunk.blocks) tile_product<F, 2>(a, piece, x, a_block, c + i * kSumFloats, line, lines, waiting);
      else tile_product<F, 1>(a, piece, x, a_block, c + i * kSumFloats, line, lines, waiting);
    }
  }
}

// Strips [first, last) of one chunk. Where k is long it is cut into slices, and the sums of all strips wait between.
template <Format F>
void sum_chunk(const LinearArgs& a, const Chunk& chunk, int first, int last, float* sums, SplitPiece* b,
               Waiting& waiting) {
  const int steps = step_count(F, a.k), pairs = chunk.pairs(), row0 = chunk.block0 / planes_of(F) * 16;
  const int most = chunk.blocks / planes_of(F) * 16, rows = a.m - row0 < most ? a.m - row0 : most;
  const int slice = slice_steps(F, chunk);
  if (steps > slice) finish_some<F>(a, waiting, waiting.count);  // its buffer is among those to be written
  for (int begin = 0, end; begin < steps; begin = end) {
    end = begin + next_part(steps - begin, slice);
    for (int strip = first; strip < last; ++strip) {
      const int buffer = steps > slice ? strip - first : strip % 2;
      float* c = sums + size_t(buffer) * pairs * kSumFloats;
      const bool more = strip + 1 < last;
      const uint8_t* next = strip_weights<F>(a, more ? strip + 1 : first, more ? begin : end < steps ? end : 0);
      if constexpr (F == Format::f32_bf16x3)
        sum_split_strip(a, chunk, strip_weights<F>(a, strip, begin), begin, end, next, c, *b, waiting);
      else sum_strip<F>(a, chunk, strip, begin, end, next, c, waiting);
      if (end < steps) continue;
      finish_some<F>(a, waiting, waiting.count);
      const int products = pairs * (end - begin);
      waiting = {c, int64_t(strip) * 32, row0, rows, rows, 0, (rows + products - 1) / products};
    }
  }
}

inline size_t strips_scratch(const LinearArgs& a, int panels) {
  const size_t split = a.format == Format::f32_bf16x3 ? sizeof(SplitPiece) : 0;
  const Chunk chunk = next_chunk(a.format, a.m, 0);
  const int strips = 2 * panels < kGroup ? 2 * panels : kGroup;
  const int buffers = step_count(a.format, a.k) > slice_steps(a.format, chunk) ? strips : 2;
  return split + size_t(buffers) * chunk.pairs() * kSumFloats * sizeof(float);
}

template <Format F>
void strips_linear(const LinearArgs& a, int p0, int p1, void* scratch) {
  SplitPiece* b = static_cast<SplitPiece*>(scratch);
  float* sums = reinterpret_cast<float*>(F == Format::f32_bf16x3 ? b + 1 : b);
  if (block_count(F, a.m) == 1 && F != Format::f32_bf16x3) return row_block_panels<F>(a, p0, p1, sums);
  configure_tiles(a.m < 16 ? a.m : 16, a.m < 16 ? a.m : a.m < 32 && planes_of(F) == 1 ? a.m - 16 : 16);
  Waiting waiting;
  Chunk chunk;
  for (int block = 0; block < block_count(F, a.m); block += chunk.blocks) {
    chunk = next_chunk(F, a.m, block);
    for (int strip = 2 * p0; strip < 2 * p1; strip += kGroup)
      sum_chunk<F>(a, chunk, strip, strip + kGroup < 2 * p1 ? strip + kGroup : 2 * p1, sums, b, waiting);
  }
  finish_some<F>(a, waiting, waiting.count);
}

}  // namespace
}  // namespace pyllm
