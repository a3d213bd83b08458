// The table of kernels for any architecture: the fallback, and what the other tables are compared with.
// clang-format off: the vector type comes first
#include "cpu/vec_scalar.h"
// clang-format on
#include "cpu/table.h"

PYLLM_TABLE(scalar, )
