// The AMX tile registers as the kernels use them: 0 and 1 hold A (rows x 64 bytes), 2 and 3 hold B (16 x 64 bytes), 4
// to 7 sums (4 and 5 with the rows of tile 0, 6 and 7 with those of tile 1). Included by isa_amx.cpp only.
//
// Whoever uses tiles configures them first and releases them after: no kernel relies on what another one left.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace pyllm {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t column_bytes[16];
  uint8_t rows[16];
};

// gcc's tile loads do not tell the compiler which memory they read: stores before them must be kept and finished.
inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

// a_bytes: of a row of tiles 0 and 1; tiles 2 and 3 have a row for every four of them.
inline void configure_tiles(int rows_0, int rows_1, int a_bytes = 64) {
  TileConfig c = {};
  c.palette = 1;
  for (int i = 0; i < 8; ++i) {
    c.column_bytes[i] = uint16_t(i < 2 ? a_bytes : 64);
    c.rows[i] = uint8_t(a_bytes / 4);
  }
  c.rows[0] = c.rows[4] = c.rows[5] = uint8_t(rows_0);
  c.rows[1] = c.rows[6] = c.rows[7] = uint8_t(rows_1);
  finish_stores();
  _tile_loadconfig(&c);
}

}  // namespace
}  // namespace pyllm
