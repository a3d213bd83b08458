#include "threads.h"

#include <chrono>
#include <new>
#include <system_error>
#include <thread>

#include "errors.h"
#include "machine.h"
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace pyllm {
namespace {

#if defined(__x86_64__) || defined(_M_X64)
void cpu_pause() { _mm_pause(); }
uint64_t float_mode() { return _mm_getcsr(); }
void set_float_mode(uint64_t mode) { _mm_setcsr(uint32_t(mode)); }
constexpr uint64_t kFlush = 0x8040;  // MXCSR: FTZ and DAZ
#elif defined(__aarch64__) && !defined(_MSC_VER)
void cpu_pause() { __asm__ volatile("yield"); }
uint64_t float_mode() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode)); }
constexpr uint64_t kFlush = 1u << 24;  // FPCR.FZ: inputs and outputs
#else
void cpu_pause() {}
uint64_t float_mode() { return 0; }
void set_float_mode(uint64_t) {}
constexpr uint64_t kFlush = 0;
#endif

// Longer than balanced waits and than Python's 20 to 50 us between two decode steps; a wake-up costs about 10 us.
constexpr auto kSpin = std::chrono::microseconds(60);

// Signals belong to the threads Python knows: a new thread inherits the mask it is created under.
class BlockSignals {
 public:
#if defined(_WIN32)
  BlockSignals() {}
#else
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

 private:
  sigset_t saved_;
#endif
};

}  // namespace

FlushDenormals::FlushDenormals() : saved_(float_mode()) { set_float_mode(saved_ | kFlush); }
FlushDenormals::~FlushDenormals() { set_float_mode(saved_); }

// Sequentially consistent on both sides: either raise() sees the sleeper, or the sleeper sees the new value.
void Signal::raise() {
  value_.fetch_add(1);
  if (sleepers_.load() == 0) return;
#if defined(__linux__)
  syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, kMaxThreads, nullptr, nullptr, 0);
#else
  std::lock_guard<std::mutex> lock(mutex_);
  raised_.notify_all();
#endif
}

void Signal::wait(uint32_t seen) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; i++) {
      if (value() != seen) return;
      cpu_pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  sleepers_.fetch_add(1);
#if defined(__linux__)
  while (value_.load() == seen) syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
  std::unique_lock<std::mutex> lock(mutex_);
  raised_.wait(lock, [&] { return value_.load() != seen; });
#endif
  sleepers_.fetch_sub(1);
}

void Barrier::wait(int size) {
  const uint32_t seen = passed_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.raise();
  } else {
    passed_.wait(seen);
  }
}

struct alignas(64) Pool::Worker {
  int index = 0;
  Signal job;
};

Pool& Pool::instance() {
  static Pool* const pool = new Pool;  // never destroyed: its threads may outlive static destruction
  return *pool;
}

Pool::Pool() {
#if !defined(_WIN32)
  // The turn is held across the fork, so the child never sees half a job; its threads are gone, and so are the workers.
  pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                 [] {
                   Pool& pool = instance();
                   pool.workers_.clear();
                   new (&pool.barrier_) Barrier;  // a worker may have been about to let go of a lock
                   new (&pool.finished_) Signal;
                   pool.mutex_.unlock();
                 });
#endif
}

void Pool::grow(int threads) {
  while (workers() + 1 < threads) {
    auto worker = std::make_unique<Worker>();
    worker->index = workers() + 1;
    workers_.reserve(workers_.size() + 1);
    BlockSignals masked;
    try {
      std::thread([this, me = worker.get()] { loop(*me); }).detach();
    } catch (const std::system_error&) {
      throw Error(ErrorKind::device, text("[num_threads] the system refused thread ", worker->index + 1, " of ",
                                          threads, "; ask for fewer threads or raise the process limit"));
    }
    workers_.push_back(std::move(worker));
  }
}

void Pool::loop(Worker& me) {
  const FlushDenormals flush;
  for (uint32_t seen = 0;;) {
    me.job.wait(seen);
    seen++;
    Team team(me.index, size_, barrier_);
    (*job_)(team);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) finished_.raise();
  }
}

void Pool::execute(int threads, const Job& job) {
  if (threads < 1 || threads > kMaxThreads)
    throw Error(ErrorKind::option, text("[num_threads] must be from 1 to ", kMaxThreads, ", got ", threads,
                                        "; leave it out for the default"));
  grow(threads);
  const FlushDenormals flush;
  job_ = &job;
  size_ = threads;
  running_.store(threads - 1, std::memory_order_relaxed);
  const uint32_t finished = finished_.value();
  for (int i = 0; i + 1 < threads; i++) workers_[size_t(i)]->job.raise();
  Team team(0, threads, barrier_);
  job(team);
  if (threads > 1) finished_.wait(finished);
}

}  // namespace pyllm
