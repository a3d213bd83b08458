// Matmul entries of the AMX table: bfloat16 from five rows on in tiles, the rest as in linear.h. The results are the
// same bits: TDPBF16PS is the arithmetic that linear.h follows.
//
// Prepared activations are A tiles [ceil(m / 16)][k / 32][16 rows][32] with zero rows at the end; packed weights are B
// tiles already. Up to 16 rows, weights stream from memory past one A tile. Above, 2 x 2 tiles of sums: a chunk of up
// to 256 rows of A stays in L2 and streams from there (TILELOADDT1, so that it does not push B out of L1), a piece of
// 256 k by 32 outputs of B stays in L1, the next piece is fetched into L2 meanwhile. The vector work on finished sums
// (bias, activation, residual) is done a row at a time between the tile products of the following outputs.
#pragma once
#include "cpu/linear.h"
#include "cpu/tiles.h"

namespace pyllm {
namespace {

constexpr int kTileRowsFrom = 5;          // fewer rows: the kernels of linear.h read the weights as fast
constexpr int kChunkPairs = 8;            // pairs of row blocks (32 rows) in a chunk
constexpr int kPieceSteps = 8;            // steps of 32 k in a piece: 16 KB of B
constexpr int kSliceSteps = 64;           // steps of a chunk of A that stay in L2: 1 MB
constexpr int kGroup = 32;                // strips of 32 outputs whose sums wait while k is sliced: 1 MB
constexpr size_t kTile = 1024;            // bytes
constexpr size_t kStepBytes = 4 * kTile;  // of a packed panel
constexpr int kSumFloats = 4 * 16 * 16;   // of one pair of row blocks and one strip: 2 x 2 tiles

bool in_tiles(Format f, int m) { return f == Format::bf16 && m >= kTileRowsFrom; }
int tile_steps(int64_t k) { return int(packed_k(Format::bf16, k) / 32); }

size_t amx_prepared_bytes(Format f, int m, int64_t k) {
  if (!in_tiles(f, m)) return prepared_bytes(f, m, k);
  return size_t(round_up(m, 16)) * size_t(packed_k(f, k)) * 2;
}

// One row of 32 k of an A tile; n of the floats exist.
void prepare_tile_row(const float* from, int64_t n, uint8_t* to) {
  for (int i = 0; i < 32; i += 16, from += 16, to += 32, n -= 16)
    f_bf16_store(to, n >= 16 ? f_load(from) : n > 0 ? f_load_n(from, int(n)) : f_zero());
}

void amx_prepare_rows(Format f, const float* x, int64_t x_ld, int m, int64_t k, int row0, int row1, void* out) {
  if (!in_tiles(f, m)) return prepare_rows(f, x, x_ld, m, k, row0, row1, out);
  const int steps = tile_steps(k), end = row1 == m ? int(round_up(m, 16)) : row1;
  for (int r = row0; r < end; ++r) {
    uint8_t* to = static_cast<uint8_t*>(out) + size_t(r / 16) * steps * kTile + r % 16 * 64;
    for (int s = 0; s < steps; ++s, to += kTile) prepare_tile_row(x + r * x_ld + 32 * s, r < m ? k - 32 * s : 0, to);
  }
}

PYLLM_INLINE void fetch_tile(const uint8_t* p) {
#pragma GCC unroll 16
  for (size_t i = 0; i < kTile; i += 64) f_prefetch_l2(p + i);
}

// Up to 16 rows: all k of one panel at a time.
void tile_row_panels(const LinearArgs& a, int p0, int p1, float* c) {
  const int steps = tile_steps(a.k);
  configure_tiles(a.m, a.m);
  for (int p = p0; p < p1; ++p) {
    const uint8_t *x = static_cast<const uint8_t*>(a.x), *w = a.weights + size_t(p) * steps * kStepBytes;
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int s = 0; s < steps; ++s, x += kTile, w += kStepBytes) {
      _tile_loadd(0, x, 64);
      _tile_loadd(2, w, 64);
      _tile_dpbf16ps(4, 0, 2);
      fetch_tile(w + kAhead);
      _tile_loadd(3, w + kTile, 64);
      _tile_dpbf16ps(5, 0, 3);
      fetch_tile(w + kAhead + kTile);
      _tile_loadd(2, w + 2 * kTile, 64);
      _tile_dpbf16ps(6, 0, 2);
      fetch_tile(w + kAhead + 2 * kTile);
      _tile_loadd(3, w + 3 * kTile, 64);
      _tile_dpbf16ps(7, 0, 3);
      fetch_tile(w + kAhead + 3 * kTile);
    }
    _tile_stored(4, c, 256);  // row-major [16][64]
    _tile_stored(5, c + 16, 256);
    _tile_stored(6, c + 32, 256);
    _tile_stored(7, c + 48, 256);
    finish_rows(a, p, 0, a.m, c);
  }
}

// Rows of a strip whose sums are complete and wait to be finished.
struct Waiting {
  const float* c = nullptr;  // [pairs][2 row blocks][2 tiles][16][16]
  int64_t column = 0;        // of the strip, in packed order
  int row0 = 0, rows = 0, done = 0;
  int rate = 0;  // rows a step, so that they are done when the next strip is
};

PYLLM_APART void finish_some(const LinearArgs& a, Waiting& w, int rows) {
  for (const int end = w.rows - w.done < rows ? w.rows : w.done + rows; w.done < end; ++w.done) {
    const float* c = w.c + w.done / 16 * 512 + w.done % 16 * 16;
    finish_columns(a, w.row0 + w.done, w.column, f_load(c), f_load(c + 256));
    const float* y = a.y + int64_t(w.row0 + w.done + 8) * a.y_ld + (a.gated ? w.column / 2 : w.column);
    __asm__ volatile("prefetchw %0" : : "m"(*y));
    if (!a.gated) __asm__ volatile("prefetchw %0" : : "m"(y[16]));
  }
}

// What the products of one strip and one piece of k share.
struct TilePiece {
  const uint8_t* b;      // steps of kStepBytes, two tiles used of each
  const uint8_t* ahead;  // the piece after it
  int steps;
  bool first;  // begins at k = 0
};

// c (2 x 2 tiles) += A (Blocks row blocks, a_block bytes apart) * B over one piece. Lines [line, line + lines) of every
// step of the next piece are fetched.
template <int Blocks>
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
    _tile_dpbf16ps(4, 0, 2);
    _tile_loadd(3, b + kTile, 64);
    _tile_dpbf16ps(5, 0, 3);
    if (Blocks == 2) _tile_stream_loadd(1, a + a_block, 64);
    if (Blocks == 2) _tile_dpbf16ps(6, 1, 2);
    for (int i = 0; i < lines; ++i) f_prefetch_l2(ahead + 64 * i);
    if (Blocks == 2) _tile_dpbf16ps(7, 1, 3);
    if (waiting.done < waiting.rows) finish_some(args, waiting, waiting.rate);
  }
  _tile_stored(4, c, 64);
  _tile_stored(5, c + 256, 64);
  if (Blocks == 2) _tile_stored(6, c + 512, 64);
  if (Blocks == 2) _tile_stored(7, c + 768, 64);
}

// A strip is 32 outputs: half of the tiles of a panel.
const uint8_t* strip_weights(const LinearArgs& a, int strip, int step) {
  const size_t panel = size_t(strip / 2) * panel_bytes(Format::bf16, a.k);
  return a.weights + panel + size_t(step) * kStepBytes + strip % 2 * (2 * kTile);
}

// A chunk of rows: blocks of 16 from row block `block0` on.
struct Chunk {
  int block0, blocks;
  int pairs() const { return (blocks + 1) / 2; }
};

// Sums of one strip over steps [begin, end), in pieces. `next`: the weights that come after.
void sum_strip(const LinearArgs& a, const Chunk& chunk, int strip, int begin, int end, const uint8_t* next, float* c,
               Waiting& waiting) {
  const size_t a_block = size_t(tile_steps(a.k)) * kTile;
  const int pairs = chunk.pairs(), lines = (32 + pairs - 1) / pairs;
  for (int s = begin, steps; s < end; s += steps) {
    steps = next_part(end - s, kPieceSteps);
    const uint8_t* b = strip_weights(a, strip, s);
    const TilePiece piece = {b, s + steps < end ? b + steps * kStepBytes : next, steps, s == 0};
    const uint8_t* x = static_cast<const uint8_t*>(a.x) + chunk.block0 * a_block + s * kTile;
    for (int i = 0; i < pairs; ++i, x += 2 * a_block) {
      const int line = i * lines < 32 - lines ? i * lines : 32 - lines;
      if (2 * i + 1 < chunk.blocks) tile_product<2>(a, piece, x, a_block, c + i * kSumFloats, line, lines, waiting);
      else tile_product<1>(a, piece, x, a_block, c + i * kSumFloats, line, lines, waiting);
    }
  }
}

// Strips [first, last) of one chunk. Where k is long it is cut into slices, and the sums of all strips wait between.
void sum_chunk(const LinearArgs& a, const Chunk& chunk, int first, int last, float* sums, Waiting& waiting) {
  const int steps = tile_steps(a.k), pairs = chunk.pairs(), row0 = chunk.block0 * 16;
  const int rows = a.m - row0 < chunk.blocks * 16 ? a.m - row0 : chunk.blocks * 16;
  if (steps > kSliceSteps) finish_some(a, waiting, waiting.rows);  // its buffer is among those to be written
  for (int begin = 0, end; begin < steps; begin = end) {
    end = begin + next_part(steps - begin, kSliceSteps);
    for (int strip = first; strip < last; ++strip) {
      const int buffer = steps > kSliceSteps ? strip - first : strip % 2;
      float* c = sums + size_t(buffer) * pairs * kSumFloats;
      const bool more = strip + 1 < last;
      const uint8_t* next = strip_weights(a, more ? strip + 1 : first, more ? begin : end < steps ? end : 0);
      sum_strip(a, chunk, strip, begin, end, next, c, waiting);
      if (end < steps) continue;
      finish_some(a, waiting, waiting.rows);
      const int products = pairs * (end - begin);
      waiting = {c, int64_t(strip) * 32, row0, rows, 0, (rows + products - 1) / products};
    }
  }
}

size_t amx_linear_scratch(const LinearArgs& a, int panels) {
  if (!in_tiles(a.format, a.m)) return linear_scratch(a, panels);
  const int pairs = next_part((a.m + 31) / 32, kChunkPairs);
  const int strips = 2 * panels < kGroup ? 2 * panels : kGroup;
  const int buffers = tile_steps(a.k) > kSliceSteps ? strips : 2;
  return size_t(buffers) * pairs * kSumFloats * sizeof(float);
}

void amx_linear_panels(const LinearArgs& a, int p0, int p1, void* scratch) {
  if (!in_tiles(a.format, a.m)) return linear_panels(a, p0, p1, scratch);
  float* sums = static_cast<float*>(scratch);
  finish_stores();
  if (a.m <= 16) {
    tile_row_panels(a, p0, p1, sums);
  } else {
    configure_tiles(16, a.m < 32 ? a.m - 16 : 16);
    Waiting waiting;
    const int blocks = (a.m + 15) / 16;
    for (int block = 0; block < blocks;) {
      const int most = 2 * next_part((blocks - block + 1) / 2, kChunkPairs);
      const Chunk chunk = {block, blocks - block < most ? blocks - block : most};
      for (int strip = 2 * p0; strip < 2 * p1; strip += kGroup)
        sum_chunk(a, chunk, strip, strip + kGroup < 2 * p1 ? strip + kGroup : 2 * p1, sums, waiting);
      block += chunk.blocks;
    }
    finish_some(a, waiting, waiting.rows);
  }
  _tile_release();
}

}  // namespace
}  // namespace pyllm
