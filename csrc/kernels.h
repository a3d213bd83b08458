// The contract between the executor and the instruction sets: packed layouts, argument structs and one table of
// function pointers per ISA. Holds no code that runs. Included by ISA files, so everything here has internal linkage.
//
// Letters: T rows (tokens of this step), S sequences, D model width, H query heads, K kv heads (k also: inputs of a
// matmul), E head width, F feed-forward width, V vocabulary, N outputs of a matmul, M rows of a matmul.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pyllm {

static constexpr int kPanel = 64;        // outputs in one packed panel: four AMX tiles of 16
static constexpr int kBlockTokens = 32;  // tokens in one KV block
static constexpr int kAttendRows = 16;   // query vectors one attend() call takes at most: one AMX tile

// What a matmul's weights are stored as, and with it the arithmetic of its products (linear()).
enum class Format : int {
  f32 = 0,
  bf16 = 1,
  f16 = 2,      // float16 weights, float32 activations and sums: as f32, whose weights happen to be float16
  i8 = 3,       // int8 weights with one scale an output, 16-bit activations as two int8 planes
  i8_fast = 4,  // the same weights, 8-bit activations
  i4_g32 = 5,   // int4 weights with one scale an output and group of 32 inputs, 16-bit activations
  i4_g128 = 6,  // the same by groups of 128
  i4z_g32 = 7,  // int4 weights with a zero point a group besides (AWQ, GPTQ)
  i4z_g128 = 8,
  f32_bf16x3 = 9,  // float32 weights, products by three of bf16 where there are tiles for them: 16 to 17 bits of each
                   // factor. The other tables take it for f32
};
enum class KvFormat : int { f32 = 0, bf16 = 1, f16 = 2, i8 = 3 };
enum class SourceType : int { f32 = 0, bf16 = 1, f16 = 2 };
enum class Activation : int { none = 0, relu = 1, gelu = 2, gelu_tanh = 3, quick_gelu = 4, silu = 5, tanh = 6 };

static constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

static constexpr bool is_i8(Format f) { return f == Format::i8 || f == Format::i8_fast; }
static constexpr bool is_i4(Format f) { return f >= Format::i4_g32 && f <= Format::i4z_g128; }
static constexpr bool is_f32(Format f) { return f == Format::f32 || f == Format::f32_bf16x3; }
static constexpr bool has_zeros(Format f) { return f == Format::i4z_g32 || f == Format::i4z_g128; }
// Inputs that share a scale; 0: all of them, or none does.
static constexpr int group_of(Format f) {
  return f == Format::i4_g32 || f == Format::i4z_g32 ? 32 : f == Format::i4_g128 || f == Format::i4z_g128 ? 128 : 0;
}

// Packed weights of a matmul y[M, N] = x[M, K] . W[N, K]^T: panels of 64 outputs, panels one after the other.
//   f32  [N/64][K][64]                             line = 16 outputs x 1 k; f32_bf16x3 likewise
//   f16  [N/64][K][64]                             halves
//   bf16 [N/64][K/32][4 tiles][16 rows][16 n][2 k] line = 16 outputs x a pair of k; a tile (1 KB) is an AMX B tile
//   i8   [N/64]{ [K/64][4 tiles][16 rows][16 n][4 k] codes + 128 as u8; then [64] float scales }
//                                                  line = 16 outputs x 4 k; a tile is an AMX B tile
//   i4   [N/64][K/g]{ [64] float16 scales; with zero points: [64] u8 zeros; [g/8][4 tiles][16 n] u32 }
//                                                  line = 16 outputs x 8 k: nibble p (bits 4p ..) is the code of k0 + p
// An i4 weight is scale * (code - zero), code 0..15, zero 8 where there are none stored; i8: scale * code, -127..127.
// N is padded to 64 and K to 32 (bf16), 64 (i8) or the group (i4), with weights of zero (i4: codes of 8, or the zero
// point). Base addresses are 64-byte aligned. Codes of -128 (i8) and zero points of 16 occur in files and are kept.
static constexpr int64_t packed_k(Format f, int64_t k) {
  return f == Format::bf16 ? round_up(k, 32) : is_i8(f) ? round_up(k, 64) : is_i4(f) ? round_up(k, group_of(f)) : k;
}
// One group of an i4 panel.
static constexpr size_t group_bytes(Format f) { return size_t(128 + (has_zeros(f) ? 64 : 0) + group_of(f) * 32); }
static constexpr size_t panel_bytes(Format f, int64_t k) {
  if (is_i4(f)) return size_t(packed_k(f, k) / group_of(f)) * group_bytes(f);
  if (is_i8(f)) return size_t(packed_k(f, k)) * kPanel + kPanel * sizeof(float);
  return size_t(packed_k(f, k)) * kPanel * (is_f32(f) ? 4 : 2);
}
static constexpr size_t matrix_bytes(Format f, int64_t n, int64_t k) {
  return panel_bytes(f, k) * size_t(round_up(n, kPanel) / kPanel);
}

// Weights that are quantised already, of one output: code k is codes[k] (i8: int8; i4: 0..15), its group's scale
// scales[k / source_group * scale_stride]; zeros likewise (nullptr: 8). source_group is a multiple of the format's
// group, or all of k.
struct CodeRow {
  const uint8_t* codes;  // nullptr: a row of zeros
  const float* scales;
  const uint8_t* zeros;
  int64_t source_group;
};

// One KV block holds 32 tokens of one (layer, kv head); E is padded to 32 (Ep) with zeros. K first, then V.
//   f32  K [Ep][32 tokens]                                        V [32 tokens][Ep]
//   f16  as f32, in halves
//   bf16 K [2 token halves][Ep/32][16 d pairs][16 tokens][2 d]    V [Ep/16][16 token pairs][16 dims][2 tokens]
//   i8   K [2 token halves][Ep/4][16 tokens][4 d], then [32] float scales
//        V [Ep/16][8 token quads][16 dims][4 tokens], then [32] float scales; codes + 128 as u8, one scale a token
// The bf16 and i8 forms are AMX B tiles of Q.K^T and P.V. Never-written tokens are zero bytes.
static constexpr int64_t padded_head(int64_t e) { return round_up(e, 32); }
static constexpr size_t kv_half_bytes(KvFormat f, int64_t e) {
  const size_t elements = size_t(padded_head(e)) * kBlockTokens;
  return f == KvFormat::f32 ? elements * 4 : f == KvFormat::i8 ? elements + kBlockTokens * sizeof(float) : elements * 2;
}
static constexpr size_t kv_block_bytes(KvFormat f, int64_t e) { return 2 * kv_half_bytes(f, e); }

// Products x . W^T, one arithmetic for each format whatever the number of rows:
//   f32, f16  one FMA chain over k ascending
//   f32_bf16x3 on tiles: with h a number rounded to bf16 and l its rest rounded to bf16, per 32 k the sums of xh wl, of
//             xh wh and of xl wh are added in this order, each in TDPBF16PS order; elsewhere as f32. Infinities give
//             infinities or NaN
//   bf16      x rounded to bf16; scalar, avx2, avx512, amx: TDPBF16PS order, per 32 k a chain over even k from zero,
//   one
//             over odd k, then sum += even + odd; avx512_bf16: VDPBF16PS order, one chain, of each pair the odd k first
//   i8, i4    each row of x as integers: q = rint(x * (top / amax)), s_x = amax / top, amax the row's largest
//   magnitude,
//             top = 32639 (i8_fast: 127); zeros where amax is 0; a row that holds an infinity or NaN gives NaN.
//             Integer sums are exact. q = 256 * high + low, both in int8: high = (q + 128) >> 8.
//   i8        float(sum q code) with sum = fma(float(sum high code), 256, float(sum low code)), times (s_x * scale)
//   i4        acc = fma(float(sum over the group q (code - zero)), scale, acc) over groups ascending, times s_x
// y = residual + scale * cap(act(x . W^T + bias)), cap(v) = softcap * tanh(v / softcap) where softcap > 0. Row buffers
// keep columns past their width zero up to the padded width; kernels write whole panels, so y rows have room for
// round_up(N, 64) columns (round_up(N, 64) / 2 when gated).
// gated: outputs interleave 16 gate and 16 up rows; y has half the columns: act(gate) * up.
struct LinearArgs {
  Format format;
  Activation activation;
  bool gated;
  int m;                   // rows
  int64_t n, k;            // outputs, inputs (unpadded)
  const uint8_t* weights;  // packed
  const void* x;           // what prepare() wrote; row-major floats where that needs no bytes (f32, f16)
  int64_t x_ld;            // f32, f16 only: floats between rows
  const float* bias;       // [round_up(n, 64)] in packed order, or nullptr
  const float* residual;   // [m, ...] added last, may be y itself, or nullptr
  int64_t residual_ld;
  float* y;
  int64_t y_ld;
  float scale = 1.0f, softcap = 0.0f;
};

// Attention of up to kAttendRows query vectors against one kv head of one sequence. Vector i is query head i % group of
// token i / group; token t sits at absolute position first_position + t and sees keys [max(0, pos - window + 1), pos]
// (window 0: no lower limit), or, causal false, those at a distance below window (0: all `num_keys` keys). One
// arithmetic whatever the number of vectors:
//   f32  scores: FMA chain over d ascending; p = exp(s - max); out: FMA chain over tokens ascending, times 1 / sum(p)
//   bf16 q and p rounded to bf16, both products in TDPBF16PS order (p.V per 32-token block from position 0); sum(p) of
//        the unrounded p over 16 lanes (lane = token % 16, ascending), then a fixed tree. avx512_bf16: VDPBF16PS order
//   f16  as f32 over keys and values rounded to float16
//   i8   q as 16-bit integers as in linear() over its E values; q . k = float(integer sum) * (s_q * s_k), the sums over
//        512 dims at a time, added as floats; p.V per block from position 0: w = p * s_v as 16-bit integers over the
//        block's 32 tokens, out = fma(float(integer sum), s_w, out), blocks ascending. (One rounding of an exact sum:
//        what fma(float(high sum), 256, float(low sum)) is too.) Keys and values are rounded to
//        q = rint(x * (127 / amax)), s = amax / 127, over the E values of a token. Where amax is below 1e-33 all are
//        zero; where it is infinite or NaN, what sees the token is NaN
// s = scale * (q . k), then softcap * tanh(s / softcap) when softcap > 0, then + bias.
struct AttendArgs {
  KvFormat format;
  bool causal;
  int vectors;             // query vectors in this call, 1 .. kAttendRows
  int group;               // query heads that share this kv head
  int first_head;          // head (within the group) of vector 0; vector i: head (first_head + i) % group
  int64_t head_dim;        // E
  int64_t first_position;  // of vector 0's token
  int64_t num_keys;        // keys in the cache for this sequence (position of the newest + 1)
  int64_t window;
  float scale, softcap;
  const float* const* q;               // [vectors] pointers to E floats each
  float* const* out;                   // [vectors] pointers to E floats each
  const uint8_t* const* blocks;        // [ceil(num_keys / 32)] base of each block
  size_t block_offset;                 // of this (layer, kv head) inside a block: K there, V kv_half_bytes later
  const float* const* bias = nullptr;  // [vectors] pointers to num_keys floats each, or nullptr
  size_t next_offset = 0;  // block_offset of what this thread attends to next, to be fetched ahead; 0: not known
  // [vectors] pointers to num_keys floats each, or nullptr: p / sum(p), not rounded, for the keys a vector sees. What
  // is written besides lies in the same blocks of 16 keys, and is 0.
  float* const* weights = nullptr;
};

struct Kernels {
  const char* name;  // "scalar", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx"

  // --- matmul. Bytes of the prepared form of m rows of k columns (0: linear() takes the floats).
  size_t (*prepared_bytes)(Format f, int m, int64_t k);
  // Writes rows [row0, row1) of the prepared form from floats x[m, k] (row0 a multiple of 16; row1 that or m).
  void (*prepare)(Format f, const float* x, int64_t x_ld, int m, int64_t k, int row0, int row1, void* out);
  // Bytes of scratch one thread needs in linear(), 64-byte aligned.
  size_t (*linear_scratch)(const LinearArgs& a, int panels);
  // Columns of panels [p0, p1) for all m rows.
  void (*linear)(const LinearArgs& a, int p0, int p1, void* scratch);
  // Packs one panel: rows[j] points to the first of k source elements of output j (nullptr: zeros), col_stride[j]
  // apart.
  // i8 and i4 are quantised on the way: scales are chosen by the error they leave (quantise.h), the zero point is 8. A
  // scale that is infinite or NaN says that a source element is, or that float16 cannot hold the scale.
  void (*pack_panel)(Format f, SourceType type, const void* const* rows, const int64_t* col_stride, int64_t k,
                     uint8_t* out);
  // Packs one panel of i8 or i4 from 64 rows of codes; scales of i4 are rounded to float16.
  void (*pack_codes)(Format f, const CodeRow* rows, int64_t k, uint8_t* out);

  // --- rows; n floats, y padded with zeros up to n_padded
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t n_padded,
                     float* y);  // bias may be nullptr
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, int64_t n_padded, float* y);
  void (*activate)(Activation a, int64_t n, float* x);                              // in place
  void (*gate)(Activation a, int64_t n, const float* g, const float* u, float* y);  // y = act(g) * u
  void (*softmax)(int64_t n, float* x);                                             // in place
  // The maximum and sum(exp((x - maximum) * scale)), which is n for scale 0; NaN where an x is none.
  void (*summarise)(const float* x, int64_t n, float scale, float* max_and_sum);
  // Rotates the first rotary_dim floats of one head in place. cos_sin: [rotary_dim/2] cos, then [rotary_dim/2] sin.
  // interleaved false: pairs (i, i + rotary_dim/2), as Hugging Face; true: pairs (2i, 2i + 1).
  void (*rope)(const float* cos_sin, int64_t rotary_dim, bool interleaved, float* x);

  // --- attention
  void (*kv_append)(KvFormat f, int64_t head_dim, int token, const float* k, const float* v, uint8_t* block);
  size_t (*attend_scratch)(KvFormat f, int64_t head_dim, int64_t num_keys);  // bytes one thread needs
  void (*attend)(const AttendArgs& a, void* scratch);
};

// Filled tables; nullptr where the compiler or target lacks the instruction set (dispatch.cpp).
extern const Kernels kernels_scalar;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx2_vnni;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_vnni;
extern const Kernels kernels_avx512_bf16;
extern const Kernels kernels_amx;

const Kernels& kernels();  // the best table here, or the one PYLLM_ISA names (throws if it can't)
const Kernels* kernels_by_name(const char* name);  // nullptr when not built or not supported here

}  // namespace pyllm
