#include "machine.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "errors.h"
#if defined(__linux__)
#include <sched.h>
#endif

namespace pyllm {
namespace {

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream out;
  if (file) out << file.rdbuf();
  return out.str();
}

// Folders of the hierarchy that lists `controller` ("" is v2), from this process's own up to the mount point. Inside a
// container the path may not exist below the mount; reading a missing file is harmless.
std::vector<std::string> cgroup_folders(const std::string& cgroup, const std::string& root,
                                        const std::string& controller) {
  std::vector<std::string> folders;
  std::istringstream lines(cgroup);
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    if (controller.empty() ? names != ",," : names.find("," + controller + ",") == std::string::npos) continue;
    std::string path = line.substr(second + 1);
    for (; path.size() > 1; path.erase(path.rfind('/'))) folders.push_back(root + path);
    folders.push_back(root);
  }
  return folders;
}

// The process's own folder first, then its parents, for each place the hierarchy of `controller` may be mounted at.
std::vector<std::string> cgroup_v1_folders(const std::string& cgroup, const std::string& root,
                                           const std::string& controller, std::initializer_list<const char*> mounts) {
  std::vector<std::string> folders;
  for (const char* mount : mounts)
    for (const std::string& folder : cgroup_folders(cgroup, root + "/" + mount, controller)) folders.push_back(folder);
  return folders;
}

#if defined(__linux__)
// Logical processors in the affinity mask; more than CPU_SETSIZE of them need a larger mask than sched_getaffinity's
// own.
std::vector<int> affinity_list() {
  for (int size = 1024; size <= 65536; size *= 4) {
    cpu_set_t* set = CPU_ALLOC(size);
    const size_t bytes = CPU_ALLOC_SIZE(size);
    std::vector<int> list;
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; known && cpu < size; cpu++)
      if (CPU_ISSET_S(cpu, bytes, set)) list.push_back(cpu);
    CPU_FREE(set);
    if (known) return list;
  }
  return {};
}

// Value of a "name: 123 kB" line, in bytes; SIZE_MAX when it is not there.
size_t kilobytes_of(const std::string& content, const std::string& name) {
  const size_t at = content.find(name);
  if (at == std::string::npos) return SIZE_MAX;
  return std::strtoull(content.c_str() + at + name.size(), nullptr, 10) * 1024;
}

// limit - (usage - page cache), for the tightest of the groups above this process.
size_t cgroup_memory_left(const std::string& cgroup, const std::string& root) {
  size_t left = SIZE_MAX;
  const auto consider = [&](const std::string& folder, const char* limit_file, const char* usage_file,
                            const char* cache_key) {
    const std::string limit_text = read_text(folder + "/" + limit_file);
    if (limit_text.empty() || limit_text[0] == 'm') return;  // "max"
    const unsigned long long limit = std::strtoull(limit_text.c_str(), nullptr, 10);
    if (limit > (1ull << 60)) return;  // v1 writes "no limit" as a huge number
    const unsigned long long usage = std::strtoull(read_text(folder + "/" + usage_file).c_str(), nullptr, 10);
    const std::string stat = read_text(folder + "/memory.stat");
    const size_t at = stat.find(cache_key);
    const unsigned long long cache =
        at == std::string::npos ? 0 : std::strtoull(stat.c_str() + at + std::string(cache_key).size(), nullptr, 10);
    const unsigned long long held = usage > cache ? usage - cache : 0;
    left = std::min(left, size_t(limit > held ? limit - held : 0));
  };
  for (const std::string& folder : cgroup_folders(cgroup, root, ""))
    consider(folder, "memory.max", "memory.current", "file ");
  for (const std::string& folder : cgroup_v1_folders(cgroup, root, "memory", {"memory"}))
    consider(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache ");
  return left;
}
#endif

// A thread count from an environment variable, 0 when unset or empty. OMP_NUM_THREADS may be a list, one per nesting
// level.
int threads_from(const char* name, bool list) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return 0;
  char* end = nullptr;
  errno = 0;
  const long count = std::strtol(value, &end, 10);
  while (*end == ' ') end++;
  const bool ended = *end == '\0' || (list && *end == ',');
  if (errno != 0 || end == value || !ended || count < 1 || count > kMaxThreads)
    throw Error(ErrorKind::option, text("[", name, "] must be a number of threads from 1 to ", kMaxThreads, ", got '",
                                        value, "'; correct or unset the variable"));
  return int(count);
}

}  // namespace

double cgroup_quota(const std::string& cgroup, const std::string& root) {
  double quota = 0;
  const auto tighten = [&](double processors) {
    if (processors > 0) quota = quota > 0 ? std::min(quota, processors) : processors;
  };
  for (const std::string& folder : cgroup_folders(cgroup, root, "")) {  // v2: "max 100000" or "150000 100000"
    std::istringstream line(read_text(folder + "/cpu.max"));
    double budget = 0, period = 0;
    if (line >> budget >> period && period > 0) tighten(budget / period);
  }
  for (const std::string& folder : cgroup_v1_folders(cgroup, root, "cpu", {"cpu", "cpu,cpuacct"})) {
    const double budget = std::atof(read_text(folder + "/cpu.cfs_quota_us").c_str());  // -1: no limit
    const double period = std::atof(read_text(folder + "/cpu.cfs_period_us").c_str());
    if (budget > 0 && period > 0) tighten(budget / period);
  }
  return quota;
}

Processors processors() {
  Processors found{std::max(1, int(std::thread::hardware_concurrency())), 0, 0, 0};
#if defined(__linux__)
  std::set<std::string> siblings;
  const std::vector<int> cpus = affinity_list();
  for (int cpu : cpus) {
    const std::string topology = text("/sys/devices/system/cpu/cpu", cpu, "/topology/thread_siblings_list");
    const std::string list = read_text(topology);
    siblings.insert(list.empty() ? std::to_string(cpu) : list);
  }
  found.affinity = int(cpus.size());
  found.cores = int(siblings.size());
  found.quota = cgroup_quota(read_text("/proc/self/cgroup"), "/sys/fs/cgroup");
  found.online = std::max(found.online, found.affinity);
#endif
  if (found.affinity == 0) found.affinity = found.online;
  if (found.cores == 0) found.cores = found.affinity;
  return found;
}

int default_threads() {
  if (const int count = threads_from("PYLLM_NUM_THREADS", false)) return count;
  if (const int count = threads_from("OMP_NUM_THREADS", true)) return count;
  const Processors found = processors();
  int count = found.cores;
  if (found.quota > 0) count = std::min(count, std::max(1, int(std::floor(found.quota + 0.5))));
  return std::min(std::max(count, 1), kMaxThreads);
}

size_t available_memory() {
#if defined(__linux__)
  return std::min(kilobytes_of(read_text("/proc/meminfo"), "MemAvailable:"),
                  cgroup_memory_left(read_text("/proc/self/cgroup"), "/sys/fs/cgroup"));
#else
  return SIZE_MAX;
#endif
}

size_t huge_page_bytes(const void* p, size_t bytes) {
  size_t huge = 0;
#if defined(__linux__)
  const uintptr_t begin = uintptr_t(p), end = begin + bytes;
  std::ifstream file("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    unsigned long long from = 0, to = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &from, &to) == 2) inside = from < end && to > begin;
    else if (inside && line.compare(0, 14, "AnonHugePages:") == 0)
      huge += size_t(std::strtoull(line.c_str() + 14, nullptr, 10)) * 1024;
  }
#else
  (void)p;
#endif
  return std::min(huge, bytes);
}

}  // namespace pyllm
