// The contract between the CUDA executor and the kernels: device layouts, argument structs, launchers. Plain C++ for
// g++ and nvcc. Every pointer in these structs is a device address unless it says "host". A launcher only enqueues work
// on the stream: it allocates nothing, waits for nothing and may be captured into a graph.
//
// Letters as in csrc/kernels.h: T rows, R rows that want an output, S sequences, H/K query/kv heads, E head width, M
// rows, N outputs and K inputs of a matmul.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace pyllm {
namespace cuda {

using Stream = void*;  // cudaStream_t

enum class Type : int { f32 = 0, bf16 = 1, f16 = 2 };
static constexpr int64_t size_of(Type t) { return t == Type::f32 ? 4 : 2; }

// Rows of elements: ld elements apart, a multiple of 64; data on 256 bytes. What lies beyond a buffer's columns is
// undefined: kernels must not let it reach a result. data nullptr: there is none.
struct View {
  void* data = nullptr;
  int64_t ld = 0;
  Type type = Type::f32;
};

// One packed matrix [N, K], rows of outputs (pyllm/devices/cuda_packing.py makes it). Rows are padded to a multiple of
// 16 and K to ld, with weights of zero.
//   f32, bf16, f16   elements [N16][ld], ld = round_up(K, 64)
//   i8               int8 [N16][ld], ld = round_up(K, 64); scales float [N16]
//   i4               [N16][ld / 2] bytes, ld = round_up(K, 128); scales half [N16][ld / g];
//                    zeros uint8 [N16][ld / g] or nullptr (8). A weight is scale * (code - zero).
// 128 codes of i4 are 64 bytes: pieces t = 0..3 of 16 bytes; in a piece words j = 0..3 of 32 bits; in a word
// nibbles p = 0..7 (bits 4p ..), which hold the codes of k0 + 32 j + 8 t + 2 (p % 4) + p / 4. So a piece is what
// one lane of mma.m16n8k16 multiplies, and every word lies within one group of 32.
// gated: rows alternate by 8: packed row 16 i + r is the gate of output 8 i + r (r < 8), or its up (8 i + r - 8); gate
// and up of an output are so in one lane of an mma. N counts both.
struct Matrix {
  Format format = Format::f32;
  const void* codes = nullptr;
  const void* scales = nullptr;
  const uint8_t* zeros = nullptr;
  const float* bias = nullptr;  // [N16], in packed order
  int64_t n = 0, k = 0, ld = 0;
  bool gated = false;
  int64_t outputs() const { return gated ? n / 2 : n; }
};

enum class NormKind : int { none = 0, rms = 1, layer = 2 };
struct NormWeights {
  NormKind kind = NormKind::none;
  const float* weight = nullptr;
  const float* bias = nullptr;  // layer norm only, or nullptr
  float eps = 0;
};

// y = residual + scale * cap(activation(norm(x) @ W^T + bias)), [M, outputs]; see pyllm.program.program.Linear.
// type: what x is rounded to for the products, which are summed in float32 by mma: bf16 or f16. f32: true float32 FMA
// over float weights; over i8 and i4 x goes in as two bf16 halves (16 bits, exact enough for integers' scales).
// The K order of an output's sum does not depend on M within one implementation: a row has the same bits whatever the
// rows beside it. norm: of x's rows first (float32 in; rounded as a stored norm would be).
struct LinearArgs {
  Matrix w;
  Type type = Type::bf16;
  View x;  // [M, K] f32 or `type`
  int m = 0;
  NormWeights norm;
  Activation activation = Activation::none;
  float scale = 1.0f, softcap = 0.0f;
  View residual;  // [M, outputs] f32
  View y;         // [M, outputs] any type
};
static constexpr int kSkinnyRows = 64;
bool takes_norm(const LinearArgs& a);          // host: whether linear() may be given this one with its norm
size_t linear_workspace(const LinearArgs& a);  // host: bytes of scratch that linear() needs
void linear(const LinearArgs& a, void* workspace, Stream stream);  // chooses one of:
void linear_skinny(const LinearArgs& a, Stream stream);            // M <= kSkinnyRows
void linear_tiles(const LinearArgs& a, Stream stream);             // any M: own tensor-core tiles
bool lt_takes(const LinearArgs& a);                                // host: cuBLASLt is there and knows the types
size_t lt_workspace(const LinearArgs& a);
void linear_lt(const LinearArgs& a, void* workspace, Stream stream);
// Host: where libcublasLt is (a path or soname), before the first linear(). Returns whether it could be loaded.
bool load_cublaslt(const char* path);

// Several matrices of one shape in one launch: number z reads columns x_begin + z * x_step of its rows and writes
// columns z * y_step. rows: of number z the rows are list[z * list_stride + i], i < counts[z], for x and for y alike
// unless compact_x / compact_y say that x / y has them one after the other at row offset[z] + i. list nullptr: rows 0
// .. M - 1.
struct LinearBatch {
  const Matrix* w = nullptr;  // device array [count]; shape: any one of them, for sizes
  Matrix shape;               // host copy of one
  int count = 0;
  Type type = Type::bf16;
  View x, y;
  int m = 0;  // most rows of one
  int64_t x_begin = 0, x_step = 0, y_step = 0;
  Activation activation = Activation::none;
  const int32_t* list = nullptr;
  int64_t list_stride = 0;
  const int32_t *counts = nullptr, *offsets = nullptr;
  bool compact_x = false, compact_y = false;
};
void linear_batch(const LinearBatch& a, Stream stream);

// The step in device memory (pyllm/program/batch.py). In graphs T, S and R are a bucket's: rows past the real ones have
// sequence -1; nothing is stored for them, and their outputs are whatever, but finite for finite weights.
struct StepView {
  const int32_t *ids = nullptr, *positions = nullptr, *types = nullptr;  // [T]; types nullptr: all 0
  const int32_t* sequence = nullptr;                                     // [T]
  const int32_t *starts = nullptr, *context = nullptr;                   // [S + 1], [S]
  const int32_t* logit_rows = nullptr;                                   // [R]
  uint8_t* const* blocks = nullptr;                                      // [S][table_width] base addresses
  int64_t table_width = 0;
  uint8_t* const* cross_blocks = nullptr;  // [S][cross_width]
  int64_t cross_width = 0;
  const int32_t* cross_context = nullptr;  // [S]
  int rows = 0, sequences = 0, logits = 0;
  int most_rows = 0;                       // of one sequence, at most
  int64_t longest = 0, longest_cross = 0;  // keys, at most (in graphs: of the bucket)
};

// rows.cu
struct EmbedArgs {
  View out;  // [T, cols]
  int64_t cols = 0;
  Matrix table, positions, types;  // codes nullptr: none
  int64_t position_offset = 0;
  float scale = 1.0f;
  bool by_position = false;
};
void embed(const EmbedArgs& a, const StepView& step, Stream stream);
// out f32 [T, 2 n]: n cosines, n sines of float32(position * inv_freq), times scaling (pyllm.program.reference.rotary).
void rotary(const View& out, const float* inv_freq, int n, float scaling, const StepView& step, Stream stream);
struct NormArgs {
  View x, out, residual;  // x f32 or narrow; residual f32, added after
  NormWeights norm;
  int rows = 0;
  int64_t n = 0;
};
void norm(const NormArgs& a, Stream stream);
struct HeadNormArgs {
  View x, out;  // [rows, cols]; columns outside the slices are copied
  bool rms = true;
  const void* slices = nullptr;  // device array of HeadSlice
  int num_slices = 0, rows = 0;
  int64_t cols = 0;
  float eps = 0;
};
struct HeadSlice {
  int64_t begin, width, count;
  const float *weight, *bias;  // bias nullptr: none
  int64_t step;                // floats of weight (bias) from one group to the next: 0 or width
};
void head_norm(const HeadNormArgs& a, Stream stream);
void select(const View& x, const View& out, int64_t cols, const StepView& step, Stream stream);
// Dense float32 [rows, cols] of any view: captures, outputs.
void widen(const View& x, int rows, int64_t cols, float* out, Stream stream);

// Keys and values: blocks of 32 tokens as csrc/kernels.h sizes them (kv_block_bytes, KvShape::offset), but token by
// token: K [32][Ep], then V [32][Ep], Ep = padded_head(E), columns E .. Ep zero. i8: int8 codes, then [32] float
// scales, for K and for V each; code = rint(x * 127 / amax), value = code * amax / 127.
struct KvView {
  KvFormat format = KvFormat::f32;
  int heads = 0;
  int64_t head_dim = 0;
  int64_t layer_offset = 0, head_stride = 0;  // bytes from a block's base to (layer, kv head 0), and from head to head
};
// kv.cu: rotates q and k in place in the qkv buffer (rope.data nullptr: not), then stores k and v. qkv is f32.
struct AppendArgs {
  View qkv;
  int num_heads = 0;
  View rope;  // f32 [T, rotary_dim]: cosines, then sines
  int64_t rotary_dim = 0;
  bool interleaved = false;
  KvView kv;
};
void append(const AppendArgs& a, const StepView& step, Stream stream);
// Stores kv [T, 2 K E] (all key heads, all value heads) in the cross cache, at the rows' positions.
void store_cross(const View& kv, const KvView& cache, const StepView& step, Stream stream);

// attention_*.cu
struct AttendBias {              // added to scores, by d = key - query position: csrc/program.h ScoreBias
  const float* table = nullptr;  // [H, span]: table[h][clamp(d - first, 0, span - 1)]
  int64_t first = 0, span = 0;
  const float* slopes = nullptr;  // [H]
  View c2p, p2c;                  // f32 [T, H * span], encoders only
  const int32_t *c2p_index = nullptr, *p2c_index = nullptr;
  int64_t indices = 0;
};
struct AttendArgs {
  View q;    // f32 [T, .. H * E ..]: query heads begin at column 0
  View out;  // [T, H * E] any type
  int num_heads = 0;
  float scale = 1.0f, softcap = 0.0f;
  bool causal = true;
  bool cross = false;  // keys are those of the source: step.cross_blocks, cross_context; no causality, bias or window
  int64_t window = 0;
  AttendBias bias;
  KvView kv;
  Type type = Type::f32;            // q, and p, are rounded to it before products (f32: not); sums are float32
  void* workspace = nullptr;        // attend_workspace() bytes
  float* const* weights = nullptr;  // [S]: where the weights of each sequence go, [H, rows, keys]; nullptr: not wanted
};
static constexpr int kChunkKeys = 256;  // keys of one piece of decode attention, from position 0 on: fixed, so results
                                        // do not depend on how many pieces run at once
size_t attend_workspace(const AttendArgs& a, const StepView& step);  // host; grows with step's sizes
// bf16 and f16 models over 16-bit or int8 keys run on tensor cores: sequences of up to 8 rows in pieces along the keys,
// those of more rows as FlashAttention does; a step may hold both. The kernels tell them apart by a sequence's own
// rows, so these alone decide which of both a row comes from (they agree up to rounding). The rest runs as float32 FMA.
// step.most_rows and step.longest only size the launches: larger ones give the same bits.
void attend(const AttendArgs& a, const StepView& step, Stream stream);

// experts.cu: which rows each expert takes. weights f32 [T, n]; see pyllm.program.program.Experts.
struct RouteArgs {
  View router;  // f32 [T, num_experts (+ 1 shared)]
  int rows = 0, num_experts = 0, top_k = 0;
  bool normalize = false, shared = false;
  int32_t *list = nullptr, *counts = nullptr,
          *offsets = nullptr;  // [experts (+ 1)][rows], [experts (+ 1)] (prefix sums)
  int32_t* place = nullptr;    // [T, top_k (+ 1)]: compact row of each of a row's experts, ascending by expert
  float* weights = nullptr;    // [T, top_k (+ 1)] in the same order
};
void route(const RouteArgs& a, Stream stream);
// out[t] = (residual[t] +) sum over i of weights[t, i] * y[place[t, i]], in order.
void combine(const RouteArgs& a, const View& y, const View& residual, const View& out, int64_t cols, Stream stream);

// sample.cu: one token a row, as csrc/search draws it (pyllm/decode: greedy, sample). -1: the row holds NaN or nothing
// to draw from.
struct Choice {
  double temperature = 1.0;  // 0: the largest logit, the lowest id among equals
  double top_p = 1.0, min_p = 0.0;
  uint64_t seed = 0;
  int32_t top_k = 0;
  uint32_t seed_index = 0, sequence = 0, step = 0;  // Philox4x32-10 counters as csrc/search/draw.h has them
};
// What the host knows of all rows' choices, so that kernels which none of them needs are left out: no top-k, top-p or
// min-p; top-p only where there is a top-k below n; or nothing.
enum class Cuts : int { none = 0, top_k = 1, any = 2 };
static constexpr int64_t kMostChoices = int64_t(1) << 21;  // columns: sums of weights are 64-bit integers
size_t choose_workspace(int rows, int64_t n);
void choose(const View& logits, int rows, int64_t n, const Choice* choices, int32_t* tokens, void* workspace,
            Stream stream, Cuts cuts = Cuts::any);
// logits f32 [rows, n], in place: transformers' repetition penalty over the row's history [lengths[r]] (begin
// offsets[r] in ids), then frequency and presence penalties (counts of the history).
struct Penalties {
  const int32_t *ids = nullptr, *offsets = nullptr, *lengths = nullptr;
  const float *repetition = nullptr, *frequency = nullptr, *presence = nullptr;  // [rows]; nullptr: none
};
void penalise(const View& logits, int rows, int64_t n, const Penalties& p, Stream stream);
// logits f32 [rows, n], in place. Of row r first, where fills[r] isn't 0, every number becomes -inf (NaN stays, for the
// choice to see); then entries offsets[r] .. + lengths[r]: to column ids[i] >= 0 values[i] is added, column ~ids[i] is
// set to it, after what is added. Columns past n are left out; one that is added to, or set to different values, must
// not be named twice. any_fills: whether fills is looked at.
struct Edits {
  const int32_t *ids = nullptr, *offsets = nullptr, *lengths = nullptr, *fills = nullptr;  // [entries], [rows] ...
  const float* values = nullptr;                                                           // [entries]
  bool any_fills = true;
};
void edit(const View& logits, int rows, int64_t n, const Edits& e, Stream stream);
// ids[t] = tokens[t], positions, context and the choices' steps one further: the next step of a steady decode, whose
// rows and sequences are one to one. Idle rows, of sequence -1, stay as they are.
void advance(const int32_t* tokens, int rows, const int32_t* sequence, int32_t* ids, int32_t* positions,
             int32_t* context, Choice* choices, Stream stream);

// beam.cu: of each row the log-sum-exp and the `count` best (value, id), best first, ties to the lower id; out_values
// [rows, count] are logits, or with `normalise` logits - lse as csrc/search takes it away. Where n is less than count,
// ids of -1 follow. Rows with NaN or +inf: ids of -1 and a NaN as lse.
static constexpr int kMostBest = 1024;
size_t top_workspace(int rows, int64_t n, int count);
void top(const View& logits, int rows, int64_t n, int count, bool normalise, float* out_values, int32_t* out_ids,
         float* out_lse, void* workspace, Stream stream);
// logits f32 [rows, n], in place, of rows with wanted[r] != 0: x - log-sum-exp, to the bits that top's `normalise`
// gives. Rows with NaN or +inf become NaN where wanted[r] is 1 and stay as they are where it is 2. workspace:
// log_softmax_workspace() bytes.
size_t log_softmax_workspace(int rows, int64_t n);
void log_softmax(const View& logits, int rows, int64_t n, const int32_t* wanted, void* workspace, Stream stream);

}  // namespace cuda
}  // namespace pyllm
