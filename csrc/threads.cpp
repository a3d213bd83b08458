#include "threads.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
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

// A pause takes 10 to 150 cycles, so this is 1 to 20 us: as long as most balanced waits. After that the processor may
// be needed by the very thread that is waited for.
constexpr int kSpinsBeforeYield = 300;
// How long an idle worker stays awake: Python needs 20 to 50 us between two decode steps.
constexpr auto kAwakeBeforePark = std::chrono::microseconds(100);

template <class Done>
void spin_until(const Done& done) {
  for (int spins = 0; !done(); spins++) {
    if (spins < kSpinsBeforeYield) cpu_pause();
    else std::this_thread::yield();
  }
}

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

void Barrier::wait(int size) {
  const uint32_t sense = sense_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    sense_.store(sense + 1, std::memory_order_release);
  } else {
    spin_until([&] { return sense_.load(std::memory_order_acquire) != sense; });
  }
}

// One worker's mailbox. `ticket` changes when there is a job for it; `parked` says that it sleeps on the ticket.
struct alignas(64) Pool::Worker {
  int index = 0;
  std::atomic<uint32_t> ticket{0};
  std::atomic<bool> parked{false};
#if !defined(__linux__)
  std::mutex mutex;
  std::condition_variable awake;
#endif

  // Sequentially consistent on both sides: either post() sees `parked`, or the sleeper sees the new ticket.
  void post() {
    ticket.fetch_add(1);
    if (!parked.load()) return;
#if defined(__linux__)
    syscall(SYS_futex, &ticket, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
#else
    std::lock_guard<std::mutex> lock(mutex);
    awake.notify_one();
#endif
  }

  void wait(uint32_t seen) {
    const auto until = std::chrono::steady_clock::now() + kAwakeBeforePark;
    for (int spins = 0; spins < kSpinsBeforeYield; spins++) {
      if (ticket.load(std::memory_order_acquire) != seen) return;
      cpu_pause();
    }
    do {
      if (ticket.load(std::memory_order_acquire) != seen) return;
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < until);
    parked.store(true);
#if defined(__linux__)
    while (ticket.load() == seen) syscall(SYS_futex, &ticket, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
    std::unique_lock<std::mutex> lock(mutex);
    awake.wait(lock, [&] { return ticket.load() != seen; });
#endif
    parked.store(false);
  }
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
    me.wait(seen);
    seen++;
    Team team(me.index, size_, barrier_);
    (*job_)(team);
    running_.fetch_sub(1, std::memory_order_acq_rel);
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
  for (int i = 0; i + 1 < threads; i++) workers_[size_t(i)]->post();
  Team team(0, threads, barrier_);
  job(team);
  spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

}  // namespace pyllm
