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

enum class Format : int { f32 = 0, bf16 = 1 };
enum class SourceType : int { f32 = 0, bf16 = 1, f16 = 2 };
enum class Activation : int { none = 0, relu = 1, gelu = 2, gelu_tanh = 3, quick_gelu = 4, silu = 5, tanh = 6 };

static constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Packed weights of a matmul y[M, N] = x[M, K] . W[N, K]^T: panels of 64 outputs, panels one after the other.
//   f32  [N/64][K][64]                            line = 16 outputs x 1 k
//   bf16 [N/64][K/32][4 tiles][16 rows][16 n][2 k] line = 16 outputs x a pair of k; a tile (1 KB) is an AMX B tile
// N is padded to 64 and, for bf16, K to 32, with zeros. Base addresses are 64-byte aligned.
static constexpr int64_t packed_k(Format f, int64_t k) { return f == Format::bf16 ? round_up(k, 32) : k; }
static constexpr size_t panel_bytes(Format f, int64_t k) {
  return size_t(packed_k(f, k)) * kPanel * (f == Format::bf16 ? 2 : 4);
}
static constexpr size_t matrix_bytes(Format f, int64_t n, int64_t k) {
  return panel_bytes(f, k) * size_t(round_up(n, kPanel) / kPanel);
}

// One KV block holds 32 tokens of one (layer, kv head); E is padded to 32 (Ep) with zeros. K first, then V.
//   f32  K [Ep][32 tokens]                                        V [32 tokens][Ep]
//   bf16 K [2 token halves][Ep/32][16 d pairs][16 tokens][2 d]    V [Ep/16][16 token pairs][16 dims][2 tokens]
// The bf16 forms are AMX B tiles of Q.K^T and P.V. Never-written tokens are zero bytes.
static constexpr int64_t padded_head(int64_t e) { return round_up(e, 32); }
static constexpr size_t kv_half_bytes(Format f, int64_t e) {
  return size_t(padded_head(e)) * kBlockTokens * (f == Format::bf16 ? 2 : 4);
}
static constexpr size_t kv_block_bytes(Format f, int64_t e) { return 2 * kv_half_bytes(f, e); }

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
  const void* x;           // f32: row-major floats; bf16: what prepare() wrote
  int64_t x_ld;            // f32 only: floats between rows
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
//        the unrounded p over 16 lanes (lane = token % 16, ascending), then a fixed tree.
// s = scale * (q . k), then softcap * tanh(s / softcap) when softcap > 0, then + bias.
struct AttendArgs {
  Format format;
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
  // [vectors] pointers to num_keys floats each, or nullptr: p / sum(p), not rounded, for the keys a vector sees. What
  // is written besides lies in the same blocks of 16 keys, and is 0.
  float* const* weights = nullptr;
};

struct Kernels {
  const char* name;  // "scalar", "avx2", "avx512", "amx"

  // --- matmul. Bytes of the prepared form of m rows of k columns (bf16; f32 needs none: 0).
  size_t (*prepared_bytes)(Format f, int m, int64_t k);
  // Writes rows [row0, row1) of the prepared form from floats x[m, k] (row0 a multiple of 16; row1 that or m).
  void (*prepare)(Format f, const float* x, int64_t x_ld, int m, int64_t k, int row0, int row1, void* out);
  // Bytes of scratch one thread needs in linear(), 64-byte aligned.
  size_t (*linear_scratch)(const LinearArgs& a, int panels);
  // Columns of panels [p0, p1) for all m rows.
  void (*linear)(const LinearArgs& a, int p0, int p1, void* scratch);
  // Packs one panel: rows[j] points to the first of k source elements of output j (nullptr: zeros), col_stride[j]
  // apart.
  void (*pack_panel)(Format f, SourceType type, const void* const* rows, const int64_t* col_stride, int64_t k,
                     uint8_t* out);

  // --- rows; n floats, y padded with zeros up to n_padded
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t n_padded,
                     float* y);  // bias may be nullptr
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, int64_t n_padded, float* y);
  void (*activate)(Activation a, int64_t n, float* x);                              // in place
  void (*gate)(Activation a, int64_t n, const float* g, const float* u, float* y);  // y = act(g) * u
  void (*softmax)(int64_t n, float* x);                                             // in place
  // Rotates the first rotary_dim floats of one head in place. cos_sin: [rotary_dim/2] cos, then [rotary_dim/2] sin.
  // interleaved false: pairs (i, i + rotary_dim/2), as Hugging Face; true: pairs (2i, 2i + 1).
  void (*rope)(const float* cos_sin, int64_t rotary_dim, bool interleaved, float* x);

  // --- attention
  void (*kv_append)(Format f, int64_t head_dim, int token, const float* k, const float* v, uint8_t* block);
  size_t (*attend_scratch)(Format f, int64_t head_dim, int64_t num_keys);  // bytes one thread needs
  void (*attend)(const AttendArgs& a, void* scratch);
};

// Filled tables; nullptr where the compiler or target lacks the instruction set (dispatch.cpp).
extern const Kernels kernels_scalar;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_amx;

const Kernels& kernels();  // the best table here, or the one PYLLM_ISA names (throws if it can't)
const Kernels* kernels_by_name(const char* name);  // nullptr when not built or not supported here

}  // namespace pyllm
