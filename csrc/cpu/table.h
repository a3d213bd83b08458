// Fills a table of kernels from the algorithms, on the vector type that the including isa_*.cpp chose before.
#pragma once
#include "cpu/attention.h"
#include "cpu/linear.h"
#include "cpu/pack_panel.h"
#include "cpu/rows.h"
#include "kernels.h"

// `prefix`: of the functions that AMX replaces, empty elsewhere.
#define PYLLM_TABLE(isa, prefix)  \
  namespace pyllm {               \
  const Kernels kernels_##isa = { \
      #isa,                       \
      prefix##prepared_bytes,     \
      prefix##prepare_rows,       \
      prefix##linear_scratch,     \
      prefix##linear_panels,      \
      pack_panel_rows,            \
      pack_codes_rows,            \
      layer_norm,                 \
      rms_norm,                   \
      activate,                   \
      gate,                       \
      softmax,                    \
      summarise,                  \
      rope,                       \
      kv_append,                  \
      attend_scratch,             \
      prefix##attend,             \
  };                              \
  }  // namespace pyllm
