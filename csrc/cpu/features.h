// What this CPU and operating system can run. Asked once by dispatch.cpp; always false outside x86-64.
#pragma once

namespace pyllm {

bool cpu_has_avx2();         // with FMA and F16C
bool cpu_has_avx2_vnni();    // with AVX-VNNI besides
bool cpu_has_avx512();       // F, BW, VL, DQ
bool cpu_has_avx512_vnni();  // with VNNI besides
bool cpu_has_avx512_bf16();  // with VNNI and BF16
bool cpu_has_amx();  // with VNNI and BF16, and AMX tile, bf16 and int8; the first call asks the operating system
                     // for the tile state, for the whole process

}  // namespace pyllm
