// The AMX matmul of f32_bf16x3: x . w = xh . wl + xh . wh + xl . wh, where h is a number rounded to bf16 and l its rest
// rounded to bf16; per 32 k the three products are added to the sums in this order. Weights are split, a piece of 24 KB
// that stays in L1, before the rows go past it. Included by amx_strips.h.
#pragma once
#include "cpu/amx_forms.h"

namespace pyllm {
namespace {

constexpr int kSplitSteps = 6;             // of a piece
constexpr size_t kSplitRowBytes = 32 * 4;  // of one k of a strip, kPanel * 4 apart
constexpr size_t kSplitStepBytes = 32 * kPanel * 4;

struct alignas(64) SplitPiece {
  uint8_t b[kSplitSteps][4 * kTile];  // of each step low tiles, then high ones
};

PYLLM_INLINE F16 rest_of_bf16(const F16& x) { return f_sub(x, f_round_bf16(x)); }

// Steps of 32 k of a strip, of which `depth` exist.
PYLLM_APART void split_weights(const float* w, int steps, int64_t depth, SplitPiece& piece) {
  for (int k = 0; k < 32 * steps; k += 2, w += 2 * kPanel)
    for (int t = 0; t < 2; ++t) {
      uint8_t* to = piece.b[k / 32] + size_t(t) * kTile + k % 32 * 32;
      const F16 even = k < depth ? f_load(w + 16 * t) : f_zero();
      const F16 odd = k + 1 < depth ? f_load(w + kPanel + 16 * t) : f_zero();
      f_bf16_interleave_store(to, rest_of_bf16(even), rest_of_bf16(odd));
      f_bf16_interleave_store(to + 2 * kTile, even, odd);
    }
  finish_stores();
}

// c (2 x 2 tiles) += A (Blocks blocks, a_block bytes apart) * B over one piece. Lines [line, line + lines) of the 64 of
// every step of the next piece are fetched.
template <int Blocks>
PYLLM_APART void split_product(const LinearArgs& args, const SplitPiece& piece, int steps, bool first,
                               const uint8_t* ahead, const uint8_t* a, size_t a_block, float* c, int line, int lines,
                               Waiting& waiting) {
  const uint8_t* b = piece.b[0];
  if (first) {
    _tile_zero(4);
    _tile_zero(5);
    if (Blocks == 2) _tile_zero(6);
    if (Blocks == 2) _tile_zero(7);
  } else {
    _tile_loadd(4, c, 64);
    _tile_loadd(5, c + 256, 64);
    if (Blocks == 2) _tile_loadd(6, c + 512, 64);
    if (Blocks == 2) _tile_loadd(7, c + 768, 64);
  }
  for (int s = 0; s < steps; ++s, a += 2 * kTile, b += 4 * kTile, ahead += kSplitStepBytes) {
    _tile_stream_loadd(0, a, 64);
    if (Blocks == 2) _tile_stream_loadd(1, a + a_block, 64);
    for (int half = 0; half < 2; ++half) {  // high rows by low weights, by high weights
      _tile_loadd(2, b + half * 2 * kTile, 64);
      _tile_dpbf16ps(4, 0, 2);
      if (Blocks == 2) _tile_dpbf16ps(6, 1, 2);
      _tile_loadd(3, b + half * 2 * kTile + kTile, 64);
      _tile_dpbf16ps(5, 0, 3);
      if (Blocks == 2) _tile_dpbf16ps(7, 1, 3);
    }
    _tile_stream_loadd(0, a + kTile, 64);
    _tile_dpbf16ps(4, 0, 2);
    _tile_dpbf16ps(5, 0, 3);
    if (Blocks == 2) _tile_stream_loadd(1, a + a_block + kTile, 64);
    if (Blocks == 2) _tile_dpbf16ps(6, 1, 2);
    for (int i = line; i < line + lines; ++i) f_prefetch_l2(ahead + i / 2 * (kPanel * 4) + i % 2 * 64);
    if (Blocks == 2) _tile_dpbf16ps(7, 1, 3);
    if (waiting.done < waiting.count) finish_some<Format::f32_bf16x3>(args, waiting, waiting.rate);
  }
  _tile_stored(4, c, 64);
  _tile_stored(5, c + 256, 64);
  if (Blocks == 2) _tile_stored(6, c + 512, 64);
  if (Blocks == 2) _tile_stored(7, c + 768, 64);
}

// Sums of one strip over steps [begin, end), in pieces. w: its weights from `begin` on; next: those that come after.
inline void sum_split_strip(const LinearArgs& a, const Chunk& chunk, const uint8_t* w, int begin, int end,
                            const uint8_t* next, float* c, SplitPiece& piece, Waiting& waiting) {
  constexpr Format F = Format::f32_bf16x3;
  const size_t a_block = block_bytes(F, a.k);
  const int pairs = chunk.pairs(), lines = (64 + pairs - 1) / pairs;
  for (int s = begin, steps; s < end; s += steps, w += steps * kSplitStepBytes) {
    steps = next_part(end - s, kSplitSteps);
    split_weights(reinterpret_cast<const float*>(w), steps, a.k - 32 * int64_t(s), piece);
    const uint8_t* ahead = s + steps < end ? w + steps * kSplitStepBytes : next;
    const uint8_t* x = static_cast<const uint8_t*>(a.x) + chunk.block0 * a_block + s * a_step_bytes(F);
    for (int i = 0; i < pairs; ++i, x += 2 * a_block) {
      const int line = i * lines < 64 - lines ? i * lines : 64 - lines;
      const auto product = 2 * i + 1 < chunk.blocks ? split_product<2> : split_product<1>;
      product(a, piece, steps, s == 0, ahead, x, a_block, c + i * kSumFloats, line, lines, waiting);
    }
    finish_stores();
  }
}

}  // namespace
}  // namespace pyllm
