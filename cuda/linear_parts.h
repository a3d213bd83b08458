// The pieces of linear_skinny(): one launcher a kind of weights. linear_skinny.cu has checked what they get.
#pragma once
#include "launch.h"

namespace pyllm {
namespace cuda {

constexpr int kNormRows = 4;  // most rows that a matmul normalises itself: every block does it for all of them
// Most shared memory that normalised rows may take: two blocks fit an A100.
constexpr size_t kNormBytes = 72 * 1024;

namespace skinny {
void run_f32(const LinearArgs& a, int multiprocessors, Stream stream);
void run_bf16(const LinearArgs& a, int multiprocessors, Stream stream);
void run_f16(const LinearArgs& a, int multiprocessors, Stream stream);
void run_i8(const LinearArgs& a, int multiprocessors, Stream stream);
void run_i4(const LinearArgs& a, int multiprocessors, Stream stream);
}  // namespace skinny

}  // namespace cuda
}  // namespace pyllm
