// linear_tiles(): one matrix and any number of rows; linear_batch(): several matrices of one shape in one launch.
#include "launch.h"
#include "tile_args.h"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kExpertsOfRow = 4;  // about what mixtures choose: 2 of 8, 4 of 60, 8 of 128

// Rows of x begin on 16 bytes: base, leading dimension and the columns that numbers begin at allow it.
bool aligned(const View& v, int64_t begin, int64_t step) {
  const int64_t whole = 16 / size_of(v.type);
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.ld % whole == 0 && begin % whole == 0 && step % whole == 0;
}

}  // namespace

void tiles(const TileArgs& a, Type type, Stream stream) {
  if (a.m <= 0) return;
  const Format f = a.w.format;
  if (is_f32(f)) tiles_f32(a, stream);
  else if (is_i8(f)) tiles_i8(a, type, stream);
  else if (is_i4(f)) tiles_i4(a, type, stream);
  else tiles_half(a, type, stream);
}

TileArgs tile_args(const LinearArgs& a) {
  TileArgs t;
  t.w = a.w;
  t.x = a.x, t.residual = a.residual, t.y = a.y;
  t.m = t.typical = a.m;
  t.activation = a.activation;
  t.scale = a.scale, t.softcap = a.softcap;
  t.aligned_x = aligned(a.x, 0, 0);
  t.aligned_y = aligned(a.y, 0, 0);
  return t;
}

void linear_tiles(const LinearArgs& a, Stream stream) { tiles(tile_args(a), a.type, stream); }

void linear_batch(const LinearBatch& a, Stream stream) {
  if (a.m <= 0 || a.count <= 0) return;
  TileArgs t;
  t.w = a.shape;
  t.batch = a.w;
  t.count = a.count;
  t.x = a.x, t.y = a.y;
  t.m = a.m;
  t.typical = a.list ? int(int64_t(a.m) * kExpertsOfRow / a.count) : a.m;
  t.x_begin = a.x_begin, t.x_step = a.x_step, t.y_step = a.y_step;
  t.activation = a.activation;
  t.list = a.list, t.list_stride = a.list_stride;
  t.counts = a.counts, t.offsets = a.offsets;
  t.compact_x = a.compact_x, t.compact_y = a.compact_y;
  t.aligned_x = aligned(a.x, a.x_begin, a.x_step);
  t.aligned_y = aligned(a.y, 0, a.y_step);
  tiles(t, a.type, stream);
}

}  // namespace cuda
}  // namespace pyllm
