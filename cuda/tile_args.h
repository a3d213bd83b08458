// What the tile kernels are told, for one matrix and for several: made by linear_tiles() and linear_batch().
#pragma once
#include "launch.h"

namespace pyllm {
namespace cuda {

struct TileArgs {
  Matrix w;                       // with batch: its sizes
  const Matrix* batch = nullptr;  // device array [count]
  int count = 1;
  View x, residual, y;
  int m = 0;        // rows, at most
  int typical = 0;  // rows that one matrix is likely to have: chooses the tile, no result depends on it
  int64_t x_begin = 0, x_step = 0, y_step = 0;
  Activation activation = Activation::none;
  float scale = 1.0f, softcap = 0.0f;
  const int32_t* list = nullptr;
  int64_t list_stride = 0;
  const int32_t *counts = nullptr, *offsets = nullptr;
  bool compact_x = false, compact_y = false;
  bool aligned_x = true;  // every row of x begins on 16 bytes
  bool aligned_y = true;  // four outputs of y begin on 8 (16) bytes
};

TileArgs tile_args(const LinearArgs& a);

// Each for its formats of w: launches the tiles that suit a.m. type: of the products (f32: x as two bf16 halves).
void tiles_f32(const TileArgs& a, Stream stream);
void tiles_half(const TileArgs& a, Type type, Stream stream);
void tiles_i8(const TileArgs& a, Type type, Stream stream);
void tiles_i4(const TileArgs& a, Type type, Stream stream);
void tiles(const TileArgs& a, Type type, Stream stream);
// wgmma, in builds for sm_90a (PYLLM_HAVE_HOPPER) and on such devices: one matrix of `type`, x of `type`.
void tiles_hopper(const TileArgs& a, Type type, Stream stream);

}  // namespace cuda
}  // namespace pyllm
