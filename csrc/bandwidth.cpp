// A plain reader: eight independent sums, so that loads and not additions bound it.
#include "bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arena.h"
#include "threads.h"

namespace pyllm {
namespace {

using Words = uint64_t __attribute__((vector_size(16), may_alias));  // one SSE register; gcc and clang

constexpr size_t kStep = 8 * sizeof(Words);  // bytes a turn of the loop reads: two lines
constexpr size_t kAhead = 4096;              // bytes the prefetch into L2 runs ahead, as in the matmul kernels

// Eight sums by name: as an array gcc 12 keeps them in memory.
uint64_t sum(const uint8_t* begin, size_t bytes) {
  const Words* w = reinterpret_cast<const Words*>(begin);
  Words a = {}, b = {}, c = {}, d = {}, e = {}, f = {}, g = {}, h = {};
  for (const Words* end = w + bytes / sizeof(Words); w != end; w += 8) {
    __builtin_prefetch(reinterpret_cast<const char*>(w) + kAhead, 0, 2);  // past the end: harmless
    __builtin_prefetch(reinterpret_cast<const char*>(w) + kAhead + 64, 0, 2);
    a += w[0], b += w[1], c += w[2], d += w[3];
    e += w[4], f += w[5], g += w[6], h += w[7];
  }
  a += b + c + d + e + f + g + h;
  return a[0] + a[1];
}

}  // namespace

double read_bandwidth(size_t bytes, int threads) {
  const Arena memory(bytes, "a measurement of memory speed");
  std::vector<uint64_t> sums(size_t(threads) * 8);  // a line each
  Pool& pool = Pool::instance();
  const int64_t steps = int64_t(bytes / kStep);
  pool.run(threads, [&](Team& team) {
    const Team::Range mine = team.part(steps);
    std::memset(memory.data() + size_t(mine.begin) * kStep, 1, size_t(mine.end - mine.begin) * kStep);
  });
  std::vector<double> seconds;
  for (int pass = 0; pass < 11; ++pass) {
    const auto began = std::chrono::steady_clock::now();
    pool.run(threads, [&](Team& team) {
      const Team::Range mine = team.part(steps);
      sums[size_t(team.index) * 8] +=
          sum(memory.data() + size_t(mine.begin) * kStep, size_t(mine.end - mine.begin) * kStep);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    if (pass >= 2) seconds.push_back(took.count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + 4, seconds.end());
  return double(steps) * double(kStep) / seconds[4];
}

}  // namespace pyllm
