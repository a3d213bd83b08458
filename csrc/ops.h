// Single operations on plain row-major float32 arrays, through the same kernels as the executor. For tests and for
// exploring; they allocate and copy as they please. Shapes are the caller's to check (bindings/ops.cpp).
#pragma once
#include <cstdint>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "pack.h"

namespace pyllm {

// How an operation runs: on which kernels, by how many workers.
struct Runtime {
  const Kernels& kernels;
  int threads;
};

class PackedMatrix {
 public:
  // bias: one pointer per part, or empty. Throws Error(array) for values that the format cannot hold.
  PackedMatrix(MatrixShape shape, const std::vector<Source>& parts, const std::vector<const float*>& bias,
               Runtime runtime);
  // Also for codes of wrong shapes.
  PackedMatrix(MatrixShape shape, const std::vector<CodeSource>& parts, const std::vector<const float*>& bias,
               Runtime runtime);

  const MatrixShape& shape() const { return shape_; }
  const uint8_t* data() const { return data_.data(); }
  const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }

 private:
  template <class Parts>
  void fill(const Parts& parts, const std::vector<const float*>& bias, Runtime runtime);

  MatrixShape shape_;
  Arena data_;
  std::vector<float> bias_;  // in packed order
};

// What follows the product in a matmul: residual + scale * cap(activation(y)); residual may be nullptr.
struct Epilogue {
  Activation activation;
  const float* residual;
  float scale, softcap;
};
// y[m, w.shape().outputs()] from x[m, k].
void matmul(const PackedMatrix& w, const float* x, int64_t m, const Epilogue& epilogue, float* y, Runtime runtime);

struct AttentionShape {
  KvFormat format;
  int64_t queries, keys;  // the queries are the last of the keys' positions
  int heads, kv_heads;
  int64_t head_dim;
  bool causal;
  float scale, softcap;
  int64_t window;
};
// out[queries, heads, head_dim] from q of that shape and k, v[keys, kv_heads, head_dim]; bias[heads, queries, keys] or
// nullptr.
void attention(const AttentionShape& shape, const float* q, const float* k, const float* v, const float* bias,
               float* out, Runtime runtime);

// y[rows, n]; bias may be nullptr.
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t n, float* y,
                Runtime runtime);
void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t n, float* y, Runtime runtime);
void activate(Activation activation, int64_t rows, int64_t n, float* x, Runtime runtime);  // in place
void gate(Activation activation, const float* g, const float* u, int64_t rows, int64_t n, float* y, Runtime runtime);
void softmax(int64_t rows, int64_t n, float* x, Runtime runtime);  // in place
// x[rows, heads, head_dim] in place; cos_sin[rows, rotary_dim]: cosines, then sines.
void rope(const float* cos_sin, int64_t rotary_dim, bool interleaved, int64_t rows, int64_t heads, int64_t head_dim,
          float* x, Runtime runtime);
// y[rows, k] = scale * table row ids[row].
void embedding(const PackedMatrix& table, const int32_t* ids, int64_t rows, float scale, float* y, Runtime runtime);

}  // namespace pyllm
