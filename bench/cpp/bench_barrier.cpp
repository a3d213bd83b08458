// What coordination costs: a barrier among spinning workers, an empty job, and an empty job for workers that sleep.
// The pool is checked first: every worker runs every job once, and nobody passes a barrier early.
#include <benchmark/benchmark.h>

#include <chrono>
#include <string>
#include <thread>

#include "ceilings.h"
#include "machine.h"
#include "threads.h"

namespace pyllm {
namespace bench {
namespace {

constexpr int kBarriers = 1000;

bool pool_is_right(int threads) {
  std::atomic<int> arrived{0}, early{0};
  Pool::instance().run(threads, [&](Team& team) {
    for (int i = 1; i <= 100; i++) {
      arrived++;
      team.barrier();
      early += arrived < i * threads;
      team.barrier();
    }
  });
  return arrived == 100 * threads && early == 0;
}

void barrier(benchmark::State& state) {
  const int threads = int(state.range(0));
  if (!pool_is_right(threads)) return state.SkipWithError("wrong result: a barrier was passed early");
  for (auto _ : state) {
    const double start = now();
    Pool::instance().run(threads, [](Team& team) {
      for (int i = 0; i < kBarriers; i++) team.barrier();
    });
    state.SetIterationTime((now() - start) / kBarriers);
  }
}

void job(benchmark::State& state) {
  const int threads = int(state.range(0));
  if (!pool_is_right(threads)) return state.SkipWithError("wrong result: a barrier was passed early");
  for (auto _ : state) {
    const double start = now();
    Pool::instance().run(threads, [](Team&) {});
    state.SetIterationTime(now() - start);
  }
}

void job_after_sleep(benchmark::State& state) {
  const int threads = int(state.range(0));
  if (!pool_is_right(threads)) return state.SkipWithError("wrong result: a barrier was passed early");
  for (auto _ : state) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const double start = now();
    Pool::instance().run(threads, [](Team&) {});
    state.SetIterationTime(now() - start);
  }
}

}  // namespace
}  // namespace bench
}  // namespace pyllm

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  using Function = void (*)(benchmark::State&);
  struct Case {
    const char* name;
    Function function;
    int iterations;
  };
  for (const Case& c : {Case{"barrier", pyllm::bench::barrier, 100}, Case{"job", pyllm::bench::job, 2000},
                        Case{"job_after_sleep", pyllm::bench::job_after_sleep, 100}})
    for (int threads = 2; threads <= pyllm::processors().affinity; threads *= 2)
      benchmark::RegisterBenchmark(c.name, c.function)
          ->Arg(threads)
          ->ArgName("threads")
          ->UseManualTime()
          ->Iterations(c.iterations);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
