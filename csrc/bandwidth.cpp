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

constexpr size_t kStep = 256;  // bytes a turn of the loop reads

uint64_t sum(const uint8_t* p, size_t bytes) {
  uint64_t lane[kStep / sizeof(uint64_t)] = {}, word[kStep / sizeof(uint64_t)];
  for (size_t i = 0; i + kStep <= bytes; i += kStep) {
    std::memcpy(word, p + i, kStep);
    for (size_t j = 0; j < kStep / sizeof(uint64_t); ++j) lane[j] += word[j];
  }
  uint64_t all = 0;
  for (const uint64_t one : lane) all += one;
  return all;
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
