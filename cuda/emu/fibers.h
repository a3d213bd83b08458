// The emulator's scheduler: the threads of a block are fibers on one OS thread, blocks run one after another. A fiber
// runs until it reaches a barrier or an operation of its whole warp, then the next one runs. Launches of several OS
// threads wait for each other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace pyllm {
namespace emu {

// Of one block: what an A100 gives (an H100 has 227 KB), so that what runs here runs on both.
constexpr size_t kSharedBytes = 163 * 1024;
constexpr unsigned kFullMask = 0xffffffffu;

// One operation of the lanes of a warp, run by the lane that comes last: lanes[l] is what lane l passed, or null when l
// has left the kernel or is not in the mask.
using Collective = void (*)(void* const (&lanes)[32], unsigned mask);

// What the running fiber sees of itself.
extern dim3 thread_index, block_index, block_size, grid_size;
extern unsigned thread_number;  // linear, in its block
extern unsigned char* dynamic_shared;

inline unsigned lane() { return thread_number & 31u; }

// Runs `body` once for each thread. Throws Error(device) for a launch out of limits, and for what fail() reports.
void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);
// Launches of this thread go to a record instead of being run, as those of a captured stream do; nullptr: they run
// again.
using Record = std::vector<std::function<void()>>;
void record_to(Record* record);
Record* record_of_thread();
void sync_block();
// Waits for all lanes of `mask`, which all pass this mask and this operation; then it has been done.
void sync_warp(unsigned mask, void* mine, Collective operation);
// Ends the launch with Error(device): a mistake in the kernel.
[[noreturn]] void fail(const char* why);

// cp.async: the bytes move when a wait covers them, at the latest; with a seed, some do at once.
void copy_async(void* to, const void* from, unsigned bytes, unsigned valid);
void copy_commit();
void copy_wait(unsigned groups_left);

// 0: threads and blocks in order. Else an order drawn from it, another at each pass. At first: PYLLM_EMU_SEED, or 0.
void set_seed(unsigned seed);
uint64_t switches();  // of all launches so far

}  // namespace emu
}  // namespace pyllm
