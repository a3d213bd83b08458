// linear(): which of the matmuls does it.
#include "errors.h"
#include "linear_parts.h"

namespace pyllm {
namespace cuda {

bool takes_norm(const LinearArgs& a) {
  if (a.norm.kind == NormKind::none || a.m > kNormRows || a.x.type != Type::f32) return false;
  // Row by row: the columns, and up to 16 words that keep rows on different banks.
  const size_t row = (size_t(a.w.ld) + 32) * (a.type == Type::f32 ? 4 : 2);
  return size_t(a.m) * row <= kNormBytes;
}

size_t linear_workspace(const LinearArgs& a) { return a.m > kSkinnyRows && lt_takes(a) ? lt_workspace(a) : 0; }

void linear(const LinearArgs& a, void* workspace, Stream stream) {
  if (a.m < 1) return;
  if (a.m <= kSkinnyRows) return linear_skinny(a, stream);
  if (a.norm.kind != NormKind::none)
    throw Error(ErrorKind::device, "[cuda] a matmul takes a norm where takes_norm() says so");
  if (lt_takes(a)) linear_lt(a, workspace, stream);
  else linear_tiles(a, stream);
}

}  // namespace cuda
}  // namespace pyllm
