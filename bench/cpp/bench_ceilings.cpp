// What this machine can do at best, as JSON lines: read bandwidth by footprint and peaks of the multiply-add
// instructions, one and two (or all) threads. bench/vs_peers.py quotes its figures as shares of these.
#include <cstdio>
#include <vector>

#include "arena.h"
#include "ceilings.h"
#include "cpu/features.h"
#include "kernels.h"
#include "machine.h"

using namespace pyllm;

namespace {

void line(const char* what, int threads, double value, const char* unit) {
  std::printf("{\"ceiling\": \"%s\", \"threads\": %d, \"value\": %.2f, \"unit\": \"%s\"}\n", what, threads, value,
              unit);
  std::fflush(stdout);
}

}  // namespace

int main() {
  const std::string isa = kernels().name;
  const Arena data(size_t(2000) << 20, "ceilings");
  std::memset(data.data(), 1, data.size());  // or every page would be the system's one page of zeros
  std::vector<int> counts = {1};
  if (default_threads() > 1) counts.push_back(default_threads());
  for (int threads : counts) {
    line("float32", threads, bench::peak_gflops(isa, threads), "GFLOP/s");
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16"))
      line("bfloat16", threads, bench::peak(threads, bench::pairs_avx512), "GFLOP/s");
    if (__builtin_cpu_supports("avx512vnni")) line("int8", threads, bench::peak(threads, bench::quads_avx512), "GOP/s");
    if (cpu_has_amx()) line("bfloat16 tiles", threads, bench::tile_peak_gflops(threads), "GFLOP/s");
#endif
    for (size_t megabytes : {8, 32, 64, 100, 150, 250, 500, 1000, 2000}) {
      std::string name = "read " + std::to_string(megabytes) + " MB";
      line(name.c_str(), threads, bench::read_gbs(isa, threads, data.data(), megabytes << 20), "GB/s");
    }
  }
}
