// Scheduling of fibers (fibers.h), and their context switch: 14 instructions on x86-64, ucontext elsewhere.
#include "fibers.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "errors.h"
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace pyllm {
namespace emu {

dim3 thread_index, block_index, block_size, grid_size;
unsigned thread_number = 0;
unsigned char* dynamic_shared = nullptr;

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;  // its frames are larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr unsigned kMostThreads = 1024;
constexpr uint64_t kCanary = 0x5afe57ac4c0ffee5u;

enum class Wait { none, block, warp, done, failed };

struct Copy {
  void* to;
  const void* from;
  unsigned bytes, valid;
};

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 index;
  unsigned number = 0, mask = 0;
  Wait wait = Wait::none;
  void* mine = nullptr;
  Collective operation = nullptr;
  std::vector<Copy> copies;    // not yet done
  std::vector<size_t> groups;  // how many of them each committed group has, oldest first
  size_t open = 0;             // those of no group yet
};

struct Warp {
  unsigned waiting = 0, left = 0;  // lanes
};

struct Scheduler {
  std::mutex mutex;
#if defined(__x86_64__)
  void* main = nullptr;
#else
  ucontext_t main;
#endif
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept: stacks are reused
  std::vector<Warp> warps;
  std::vector<unsigned> order;
  size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  std::string error;
  unsigned seed = 0, state = 0;
  uint64_t switches = 0;
  Scheduler() {
    if (const char* text = std::getenv("PYLLM_EMU_SEED")) seed = unsigned(std::strtoul(text, nullptr, 10));
    state = seed;
  }
};
Scheduler& scheduler() {
  static Scheduler s;
  return s;
}
unsigned draw(Scheduler& s) {
  s.state = s.state * 1664525u + 1013904223u;
  return s.state >> 8;
}
void shuffle(Scheduler& s, std::vector<unsigned>& list) {
  for (size_t i = list.size(); i-- > 1;) std::swap(list[i], list[draw(s) % (i + 1)]);
}

}  // namespace

#if defined(__x86_64__)
extern "C" void pyllm_emu_switch(void** save, void* to);
__asm__(R"(
.text
.globl pyllm_emu_switch
.hidden pyllm_emu_switch
.type pyllm_emu_switch,@function
pyllm_emu_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
.size pyllm_emu_switch,.-pyllm_emu_switch
)");
#endif

namespace {

void to_main() {
  Scheduler& s = scheduler();
#if defined(__x86_64__)
  pyllm_emu_switch(&s.current->stack_pointer, s.main);
#else
  swapcontext(&s.current->context, &s.main);
#endif
}

void to_fiber(Scheduler& s, Fiber& fiber) {
  s.current = &fiber;
  thread_index = fiber.index;
  thread_number = fiber.number;
  s.switches++;
#if defined(__x86_64__)
  pyllm_emu_switch(&s.main, fiber.stack_pointer);
#else
  swapcontext(&s.main, &fiber.context);
#endif
  s.current = nullptr;
}

void entry() {
  (*scheduler().body)();
  scheduler().current->wait = Wait::done;
  to_main();
  std::abort();  // a finished fiber is never resumed
}

void prepare(Scheduler& s, Fiber& fiber, unsigned number) {
  fiber.number = number;
  fiber.index =
      dim3(number % block_size.x, number / block_size.x % block_size.y, number / (block_size.x * block_size.y));
  fiber.wait = Wait::none;
  fiber.copies.clear();
  fiber.groups.clear();
  fiber.open = 0;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStackBytes);  // of frames that were left without returning
#endif
  std::memcpy(fiber.stack.get(), &kCanary, sizeof kCanary);
#if defined(__x86_64__)
  (void)s;
  const uintptr_t top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) & ~uintptr_t(15);
  void** p = reinterpret_cast<void**>(top) - 1;  // entry() sees the alignment that a call leaves
  *--p = reinterpret_cast<void*>(&entry);
  for (int i = 0; i < 6; i++) *--p = nullptr;
  fiber.stack_pointer = p;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &s.main;
  makecontext(&fiber.context, entry, 0);
#endif
}

// Does the operation of the lanes of `mask` when all of them are there.
void complete(Scheduler& s, unsigned warp_number, unsigned mask) {
  Warp& warp = s.warps[warp_number];
  if (((warp.waiting | warp.left) & mask) != mask) return;
  void* lanes[32] = {};
  Collective operation = nullptr;
  bool first = true;
  for (unsigned l = 0; l < 32; l++) {
    if (!(warp.waiting & mask & 1u << l)) continue;
    Fiber& fiber = *s.fibers[warp_number * 32 + l];
    if (fiber.mask != mask) fail("lanes of one warp operation passed different masks");
    if (!first && fiber.operation != operation) fail("lanes of one warp are at different warp operations");
    first = false;
    operation = fiber.operation;
    lanes[l] = fiber.mine;
  }
  if (operation) operation(lanes, mask);
  for (unsigned l = 0; l < 32; l++)
    if (warp.waiting & mask & 1u << l) s.fibers[warp_number * 32 + l]->wait = Wait::none;
  warp.waiting &= ~mask;
}

// A lane has left: those that waited for it alone may go on.
void leave(Scheduler& s, unsigned number) {
  const unsigned warp_number = number / 32;
  s.warps[warp_number].left |= 1u << number % 32;
  for (unsigned l = 0; l < 32; l++)
    if (s.warps[warp_number].waiting & 1u << l) complete(s, warp_number, s.fibers[warp_number * 32 + l]->mask);
}

void check(Scheduler& s, const Fiber& fiber) {
  if (!s.error.empty()) fail(nullptr);
  if (std::memcmp(fiber.stack.get(), &kCanary, sizeof kCanary) != 0) fail("a thread's stack overflowed");
}

void run_block(Scheduler& s) {
  const unsigned count = block_size.x * block_size.y * block_size.z;
  s.warps.assign((count + 31) / 32, Warp{});
  if (count % 32) s.warps.back().left = ~0u << count % 32;
  std::memset(dynamic_shared, 0xff, s.shared_bytes);  // NaNs: reading before writing shows
  s.order.resize(count);
  for (unsigned i = 0; i < count; i++) {
    prepare(s, *s.fibers[i], i);
    s.order[i] = i;
  }
  for (unsigned done = 0; done < count;) {
    if (s.seed) shuffle(s, s.order);
    bool ran = false;
    for (unsigned i : s.order) {
      Fiber& fiber = *s.fibers[i];
      if (fiber.wait != Wait::none) continue;
      to_fiber(s, fiber);
      check(s, fiber);
      ran = true;
      if (fiber.wait == Wait::done) {
        done++;
        leave(s, i);
      }
    }
    if (ran) continue;
    for (unsigned i = 0; i < count; i++)
      if (s.fibers[i]->wait == Wait::warp) fail("deadlock: threads wait for lanes of their warp that do not come");
    for (unsigned i = 0; i < count; i++)
      if (s.fibers[i]->wait == Wait::block) s.fibers[i]->wait = Wait::none;
  }
}

}  // namespace

namespace {
thread_local Record* thread_record = nullptr;
}

void record_to(Record* record) { thread_record = record; }
Record* record_of_thread() { return thread_record; }

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  if (thread_record) {
    thread_record->push_back([=] { launch(grid, block, shared_bytes, body); });
    return;
  }
  Scheduler& s = scheduler();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.error.clear();
  s.current = nullptr;
  grid_size = grid;
  block_size = block;
  block_index = dim3(0, 0, 0);
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64) fail("a block must have 1 to 1024 threads, z at most 64");
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    fail("a grid must have 1 to 2^31 - 1, 65535 and 65535 blocks");
  if (shared_bytes > kSharedBytes) fail("more dynamic shared memory than an A100 gives to a block");
  while (s.fibers.size() < threads) s.fibers.push_back(std::make_unique<Fiber>());
  s.body = &body;
  void* shared = nullptr;  // of its own for each launch, so that the address sanitizer knows its end
  if (posix_memalign(&shared, 128, std::max<size_t>(shared_bytes, 1)) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, decltype(&std::free)> owner(shared, &std::free);
  dynamic_shared = static_cast<unsigned char*>(shared);
  s.shared_bytes = shared_bytes;
  std::vector<unsigned> blocks_in_order(blocks);
  for (size_t i = 0; i < blocks; i++) blocks_in_order[i] = unsigned(i);
  if (s.seed) shuffle(s, blocks_in_order);
  for (unsigned b : blocks_in_order) {
    block_index = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
    run_block(s);
  }
}

void sync_block() {
  scheduler().current->wait = Wait::block;
  to_main();
}

void sync_warp(unsigned mask, void* mine, Collective operation) {
  Scheduler& s = scheduler();
  Fiber& fiber = *s.current;
  if (!(mask >> lane() & 1)) fail("a lane is not in the mask that it passed");
  fiber.mask = mask;
  fiber.mine = mine;
  fiber.operation = operation;
  fiber.wait = Wait::warp;
  s.warps[fiber.number / 32].waiting |= 1u << lane();
  complete(s, fiber.number / 32, mask);
  if (fiber.wait == Wait::warp) to_main();
}

void fail(const char* why) {
  Scheduler& s = scheduler();
  if (why)
    s.error = text("[emulator] ", why, " (block ", block_index.x, ",", block_index.y, ",", block_index.z, ", thread ",
                   thread_number, ")");
  if (s.current) {  // an exception can't leave a fiber
    s.current->wait = Wait::failed;
    to_main();
    std::abort();
  }
  throw Error(ErrorKind::device, s.error);
}

void copy_async(void* to, const void* from, unsigned bytes, unsigned valid) {
  Scheduler& s = scheduler();
  if (reinterpret_cast<uintptr_t>(to) % bytes || (valid && reinterpret_cast<uintptr_t>(from) % bytes))
    fail("cp.async needs addresses that are multiples of its size");
  s.current->copies.push_back({to, from, bytes, valid});
  s.current->open++;
  if (s.seed && draw(s) % 2) {  // it may come this early
    if (valid) std::memcpy(to, from, valid);
    std::memset(static_cast<char*>(to) + valid, 0, bytes - valid);
  }
}

void copy_commit() {
  Fiber& fiber = *scheduler().current;
  fiber.groups.push_back(fiber.open);
  fiber.open = 0;
}

void copy_wait(unsigned groups_left) {
  Fiber& fiber = *scheduler().current;
  while (fiber.groups.size() > groups_left) {
    const size_t count = fiber.groups.front();
    for (size_t i = 0; i < count; i++) {
      const Copy& c = fiber.copies[i];
      if (c.valid) std::memcpy(c.to, c.from, c.valid);
      std::memset(static_cast<char*>(c.to) + c.valid, 0, c.bytes - c.valid);
    }
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + long(count));
    fiber.groups.erase(fiber.groups.begin());
  }
}

void set_seed(unsigned seed) {
  Scheduler& s = scheduler();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.seed = s.state = seed;
}

uint64_t switches() { return scheduler().switches; }

}  // namespace emu
}  // namespace pyllm
