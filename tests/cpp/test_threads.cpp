// The pool: everyone runs once, barriers hold, callers take turns, denormals, fork, more threads than processors.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <limits>
#include <thread>
#include <vector>

#include "errors.h"
#include "machine.h"
#include "threads.h"
#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace pyllm {
namespace {

TEST(Pool, EveryWorkerRunsOnce) {
  for (int size : {1, 2, 3, 8, 2, 1, 5}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(size));
    Pool::instance().run(size, [&](Team& team) {
      EXPECT_EQ(team.size, size);
      runs[size_t(team.index)]++;
    });
    for (auto& count : runs) EXPECT_EQ(count.load(), 1);
  }
}

TEST(Pool, PartsCoverEverythingOnce) {
  for (int64_t n : {0, 1, 2, 7, 100})
    for (int size : {1, 2, 3, 8}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
      Pool::instance().run(size, [&](Team& team) {
        const Team::Range mine = team.part(n);
        for (int64_t i = mine.begin; i < mine.end; i++) seen[size_t(i)]++;
      });
      for (auto& count : seen) EXPECT_EQ(count.load(), 1);
    }
}

TEST(Pool, BarriersSeparatePhases) {
  const int size = 4, phases = 200;  // more threads than this machine may have processors
  std::vector<std::atomic<int>> done(phases);
  std::atomic<int> wrong{0};
  Pool::instance().run(size, [&](Team& team) {
    for (int phase = 0; phase < phases; phase++) {
      done[size_t(phase)]++;
      team.barrier();
      if (done[size_t(phase)] != size) wrong++;
    }
  });
  EXPECT_EQ(wrong.load(), 0);
}

TEST(Pool, ParkedWorkersWake) {
  for (int i = 0; i < 20; i++) {
    std::atomic<int> runs{0};
    Pool::instance().run(3, [&](Team&) { runs++; });
    EXPECT_EQ(runs.load(), 3);
    std::this_thread::sleep_for(std::chrono::microseconds(i * 40));  // around the time until they park
  }
}

TEST(Pool, CallersTakeTurns) {
  std::atomic<int> inside{0}, overlaps{0}, runs{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; caller++)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 50; i++)
        Pool::instance().run(1 + (caller + i) % 3, [&](Team& team) {
          if (team.index == 0 && inside.fetch_add(1) != 0) overlaps++;
          runs++;
          team.barrier();
          if (team.index == 0) inside--;
        });
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(overlaps.load(), 0);
  EXPECT_GT(runs.load(), 200);
}

TEST(Pool, DenormalsAreZeroInsideOnly) {
  volatile float smallest = std::numeric_limits<float>::min();
  std::atomic<int> flushed{0};
  Pool::instance().run(3, [&](Team&) {
    volatile float half = smallest * 0.5f;
    flushed += half == 0.0f;
  });
#if defined(__x86_64__) || defined(__aarch64__)
  EXPECT_EQ(flushed.load(), 3);
#endif
  volatile float half = smallest * 0.5f;
  EXPECT_GT(half, 0.0f);
}

TEST(Pool, RefusesAbsurdSizes) {
  EXPECT_THROW(Pool::instance().run(0, [](Team&) {}), Error);
  EXPECT_THROW(Pool::instance().run(kMaxThreads + 1, [](Team&) {}), Error);
}

#if !defined(_WIN32)
TEST(Pool, SurvivesFork) {
  std::atomic<bool> stop{false};
  std::thread busy([&] {  // forks happen in the middle of its jobs
    while (!stop) Pool::instance().run(2, [](Team& team) { team.barrier(); });
  });
  for (int i = 0; i < 5; i++) {
    const pid_t child = fork();
    if (child == 0) {
      std::atomic<int> runs{0};
      Pool::instance().run(3, [&](Team& team) {
        runs++;
        team.barrier();
      });
      _exit(runs == 3 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  stop = true;
  busy.join();
}
#endif

}  // namespace
}  // namespace pyllm
