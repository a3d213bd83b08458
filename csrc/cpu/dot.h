// The integer vectors that go with the float vectors of the including file.
#pragma once
#if defined(__AVX512F__)
#include "cpu/dot_avx512.h"
#elif defined(__AVX2__)
#include "cpu/dot_avx2.h"
#else
#include "cpu/dot_scalar.h"
#endif
