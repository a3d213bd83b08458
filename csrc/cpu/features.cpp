// CPU features by cpuid and xgetbv: what the processor has and the operating system saves on a context switch.
#include "cpu/features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyllm {
namespace {

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
};
Leaf cpuid(unsigned leaf, unsigned sub = 0) {
  Leaf r;
  if (!__get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d)) return Leaf{};
  return r;
}
bool bit(unsigned value, int i) { return (value >> i) & 1u; }

constexpr unsigned long long kSavesYmm = 0x6, kSavesZmm = 0xe6, kSavesTiles = 0x60000;
bool os_saves(unsigned long long mask) {
  if (!bit(cpuid(1).c, 27)) return false;  // OSXSAVE: xgetbv may be used
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (((static_cast<unsigned long long>(high) << 32) | low) & mask) == mask;
}

// Linux hands out the 8 KB of tile state on request only; without it the first tile instruction is SIGILL.
bool ask_for_tiles() {
#if defined(__linux__)
  const long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool cpu_has_avx2() {
  const Leaf l1 = cpuid(1), l7 = cpuid(7);
  return os_saves(kSavesYmm) && bit(l1.c, 12) && bit(l1.c, 28) && bit(l1.c, 29) && bit(l7.b, 5);
}
bool cpu_has_avx2_vnni() { return cpu_has_avx2() && bit(cpuid(7, 1).a, 4); }
bool cpu_has_avx512() {
  const unsigned b = cpuid(7).b;
  return cpu_has_avx2() && os_saves(kSavesZmm) && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
}
bool cpu_has_avx512_vnni() { return cpu_has_avx512() && bit(cpuid(7).c, 11); }
bool cpu_has_avx512_bf16() { return cpu_has_avx512_vnni() && bit(cpuid(7, 1).a, 5); }
bool cpu_has_amx() {
  const unsigned d = cpuid(7).d;
  if (!cpu_has_avx512_bf16() || !os_saves(kSavesTiles) || !bit(d, 22) || !bit(d, 24) || !bit(d, 25)) return false;
  static const bool granted = ask_for_tiles();
  return granted;
}

}  // namespace pyllm
#else
namespace pyllm {

bool cpu_has_avx2() { return false; }
bool cpu_has_avx2_vnni() { return false; }
bool cpu_has_avx512() { return false; }
bool cpu_has_avx512_vnni() { return false; }
bool cpu_has_avx512_bf16() { return false; }
bool cpu_has_amx() { return false; }

}  // namespace pyllm
#endif
