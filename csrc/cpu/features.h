// What this CPU and operating system can run. Asked once by dispatch.cpp; always false outside x86-64.
#pragma once

namespace pyllm {

bool cpu_has_avx2();    // with FMA and F16C
bool cpu_has_avx512();  // F, BW, VL, DQ
bool cpu_has_amx();  // AVX-512 with BF16, and AMX tile and bf16; the first call asks the kernel for the tile state, for
                     // the whole process

}  // namespace pyllm
