// How fast this machine reads memory: the ceiling of decoding, measured where and when it is compared with.
#pragma once
#include <cstddef>

namespace pyllm {

// Bytes a second at which `threads` workers together read `bytes` of memory on huge pages, each its contiguous part:
// the median of nine passes after a warm-up. Throws Error(out_of_memory) or Error(device).
double read_bandwidth(size_t bytes, int threads);

}  // namespace pyllm
