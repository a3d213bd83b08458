// The one thread pool of the process. The caller of run() is worker 0; workers spin for a moment after a job and then
// park. Concurrent callers take turns. Survives fork(): a child starts its own threads at its first job.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace pyllm {

// Denormals are zero, on input and output, while one of these lives: part of the bf16 arithmetic. Restores on exit.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  uint64_t saved_;
};

// A number that one thread raises and others wait for. They spin for a moment and then sleep: spinning on would steal
// the processor from the thread that is waited for, and yielding would hand it to whoever else is running.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void raise();              // by one
  void wait(uint32_t seen);  // until value() != seen

 private:
  std::atomic<uint32_t> value_{0}, sleepers_{0};
#if !defined(__linux__)
  std::mutex mutex_;
  std::condition_variable raised_;
#endif
};

// What all workers of one job meet at; can be used again at once.
class Barrier {
 public:
  void wait(int size);

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) Signal passed_;
};

// One worker's view of a job.
class Team {
 public:
  Team(int index, int size, Barrier& barrier) : index(index), size(size), barrier_(barrier) {}
  const int index;  // 0 .. size - 1
  const int size;
  void barrier() {
    if (size > 1) barrier_.wait(size);
  }
  // The contiguous part [begin, end) of n items that is this worker's.
  struct Range {
    int64_t begin, end;
  };
  Range part(int64_t n) const { return {n * index / size, n * (index + 1) / size}; }

 private:
  Barrier& barrier_;
};

using Job = std::function<void(Team&)>;

class Pool {
 public:
  static Pool& instance();

  // Holding a Turn is holding the pool: no other job runs, and no fork happens, until it goes.
  class Turn {
   public:
    explicit Turn(Pool& pool) : pool_(pool), lock_(pool.mutex_) {}
    void run(int threads, const Job& job) { pool_.execute(threads, job); }

   private:
    Pool& pool_;
    std::unique_lock<std::mutex> lock_;
  };

  // Runs job on `threads` workers (1 .. kMaxThreads) and returns when all are done. The job must not throw or call
  // back into the pool. Throws Error(device) when the system refuses a thread.
  void run(int threads, const Job& job) { Turn(*this).run(threads, job); }

  // Threads that exist now, besides callers.
  int workers() const { return int(workers_.size()); }

 private:
  struct Worker;
  Pool();
  void execute(int threads, const Job& job);
  void grow(int threads);
  void loop(Worker& me);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;  // worker i + 1
  Barrier barrier_;
  const Job* job_ = nullptr;
  int size_ = 0;
  alignas(64) std::atomic<int> running_{0};
  alignas(64) Signal finished_;
};

}  // namespace pyllm
