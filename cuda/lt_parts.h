// What surrounds a product by cuBLASLt (gemm_lt.cpp): its operands in the product's type before, the epilogue after.
#pragma once
#include "launch.h"

namespace pyllm {
namespace cuda {

// x [rows, cols] float32 -> out of a narrow type.
void narrow_rows(const View& x, int rows, int64_t cols, const View& out, Stream stream);
// Integer weights as bf16 or f16 [n, w.ld]. int8: the codes, exactly, without their scales; int4: scale * (code -
// zero), rounded: off by at most 2^-9 (bf16) or 2^-12 (f16) of itself.
void widen_weights(const Matrix& w, Type type, void* out, Stream stream);
// Rows row0 .. row0 + rows of a.y from sums [rows][sums_ld] of packed outputs: scale of int8, bias, activation, gate,
// cap, scale, residual.
void finish_rows(const LinearArgs& a, const float* sums, int64_t sums_ld, int row0, int rows, Stream stream);

}  // namespace cuda
}  // namespace pyllm
