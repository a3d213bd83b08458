// What the machine offers this process: processors (affinity, cgroup quota, environment) and memory. No threads here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace pyllm {

static constexpr int kMaxThreads = 1024;

struct Processors {
  int online;    // logical processors of the machine
  int affinity;  // logical processors this process may run on
  int cores;     // physical cores among those
  double quota;  // cgroup CPU quota in processors; 0: none
};
Processors processors();

// The number of threads used when a caller names none: PYLLM_NUM_THREADS, else the first number of OMP_NUM_THREADS,
// else the physical cores of the affinity mask, at most the cgroup's quota. Throws Error(option) on a malformed
// variable.
int default_threads();

// CPU quota of the cgroup (v1 or v2) this process is in, in processors, 0 when there is none. `cgroup` is the text of
// /proc/self/cgroup, `root` where the hierarchies are mounted (/sys/fs/cgroup).
double cgroup_quota(const std::string& cgroup, const std::string& root);

// Bytes this process can still allocate without swapping: what the kernel calls available, at most what the cgroup
// leaves. SIZE_MAX where this cannot be told.
size_t available_memory();

// Bytes of [p, p + bytes) that transparent huge pages back now; 0 where this cannot be told.
size_t huge_page_bytes(const void* p, size_t bytes);

}  // namespace pyllm
