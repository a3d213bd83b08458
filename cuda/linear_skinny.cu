// linear_skinny(): checks what it is given and calls the launcher for its weights.
#include "errors.h"
#include "linear_parts.h"
#include "runtime.h"

namespace pyllm {
namespace cuda {
namespace {

// What is wrong with the arguments, or nullptr: mistakes of the executor.
const char* problem(const LinearArgs& a) {
  if (a.m > kSkinnyRows) return "has at most 64 rows";
  if (a.x.type != Type::f32 && a.x.type != a.type) return "takes x in float32 or in the type of its products";
  if (a.norm.kind != NormKind::none && !takes_norm(a)) return "takes a norm where takes_norm() says so";
  if (is_f32(a.w.format)) return a.type == Type::f32 ? nullptr : "multiplies float32 weights in float32";
  if (a.w.format == Format::bf16) return a.type == Type::bf16 ? nullptr : "multiplies bfloat16 weights in bfloat16";
  if (a.w.format == Format::f16) return a.type == Type::f16 ? nullptr : "multiplies float16 weights in float16";
  return nullptr;
}

}  // namespace

void linear_skinny(const LinearArgs& a, Stream stream) {
  if (a.m < 1 || a.w.n < 1) return;
  if (const char* wrong = problem(a)) throw Error(ErrorKind::device, text("[cuda] a matmul ", wrong));
  const int count = multiprocessors();
  if (is_f32(a.w.format)) skinny::run_f32(a, count, stream);
  else if (a.w.format == Format::bf16) skinny::run_bf16(a, count, stream);
  else if (a.w.format == Format::f16) skinny::run_f16(a, count, stream);
  else if (is_i8(a.w.format)) skinny::run_i8(a, count, stream);
  else skinny::run_i4(a, count, stream);
}

}  // namespace cuda
}  // namespace pyllm
