// Limits of the process: cgroup files as different systems have them, environment variables, memory.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "arena.h"
#include "errors.h"
#include "machine.h"

namespace pyllm {
namespace {

class Folder {
 public:
  Folder() : path_(std::filesystem::temp_directory_path() / ("pyllm-cgroup-" + std::to_string(std::rand()))) {}
  ~Folder() { std::filesystem::remove_all(path_); }
  void write(const std::string& file, const std::string& content) {
    std::filesystem::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file) << content;
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

TEST(Cgroup, NoLimit) {
  Folder root;
  EXPECT_EQ(cgroup_quota("", root.path()), 0.0);
  root.write("cpu.max", "max 100000\n");
  root.write("cpu/cpu.cfs_quota_us", "-1\n");
  root.write("cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_quota("4:cpu,cpuacct:/\n0::/\n", root.path()), 0.0);
}

TEST(Cgroup, Version2TakesTheTightestParent) {
  Folder root;
  root.write("user/cpu.max", "150000 100000\n");
  root.write("user/session/cpu.max", "400000 100000\n");
  EXPECT_NEAR(cgroup_quota("0::/user/session\n", root.path()), 1.5, 1e-9);
  EXPECT_NEAR(cgroup_quota("0::/elsewhere\n", root.path()), 0.0, 1e-9);
}

TEST(Cgroup, Version2InsideAContainer) {  // the path is the host's, the files are at the mount's root
  Folder root;
  root.write("cpu.max", "50000 100000\n");
  EXPECT_NEAR(cgroup_quota("0::/docker/0123456789\n", root.path()), 0.5, 1e-9);
}

TEST(Cgroup, Version1) {
  Folder root;
  root.write("cpu,cpuacct/jobs/cpu.cfs_quota_us", "300000\n");
  root.write("cpu,cpuacct/jobs/cpu.cfs_period_us", "100000\n");
  EXPECT_NEAR(cgroup_quota("7:memory:/jobs\n4:cpu,cpuacct:/jobs\n", root.path()), 3.0, 1e-9);
  EXPECT_NEAR(cgroup_quota("7:memory:/jobs\n", root.path()), 0.0, 1e-9);
}

#if !defined(_WIN32)
class Threads : public testing::Test {
 public:
  void SetUp() override { TearDown(); }
  void TearDown() override {
    unsetenv("PYLLM_NUM_THREADS");
    unsetenv("OMP_NUM_THREADS");
  }
};

TEST_F(Threads, DefaultIsWhatTheProcessMayUse) {
  const Processors found = processors();
  EXPECT_GE(default_threads(), 1);
  EXPECT_LE(default_threads(), found.affinity);
  EXPECT_LE(found.cores, found.affinity);
  EXPECT_LE(found.affinity, found.online);
}

TEST_F(Threads, EnvironmentDecides) {
  setenv("OMP_NUM_THREADS", "3,1", 1);
  EXPECT_EQ(default_threads(), 3);
  setenv("PYLLM_NUM_THREADS", "5", 1);
  EXPECT_EQ(default_threads(), 5);
  setenv("PYLLM_NUM_THREADS", "", 1);
  EXPECT_EQ(default_threads(), 3);
}

TEST_F(Threads, MalformedIsAnError) {
  for (const char* value : {"0", "-2", "two", "2x", "1e3", "99999999999999999999", "2000"}) {
    setenv("PYLLM_NUM_THREADS", value, 1);
    try {
      default_threads();
      ADD_FAILURE() << value << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::option);
      EXPECT_NE(std::strstr(error.what(), value), nullptr) << error.what();
    }
  }
}
#endif

TEST(Arena, IsAlignedAndZero) {
  for (size_t bytes : {size_t(1), size_t(100000), size_t(5) << 20}) {
    const Arena arena(bytes, "test");
    EXPECT_GE(arena.size(), bytes);
    EXPECT_EQ(uintptr_t(arena.data()) % (bytes >= size_t(2) << 20 ? size_t(2) << 20 : 4096), 0u);
    for (size_t i = 0; i < bytes; i += 997) EXPECT_EQ(arena.data()[i], 0);
    std::memset(arena.data(), 1, arena.size());
    EXPECT_LE(arena.huge_bytes(), arena.size());
  }
  EXPECT_EQ(Arena(0, "test").data(), nullptr);
}

TEST(Arena, RefusalIsTypedAndNamed) {
  for (size_t bytes : {SIZE_MAX, SIZE_MAX / 2, size_t(1) << 60}) {
    try {
      const Arena arena(bytes, "weights");
      ADD_FAILURE() << bytes << " bytes were granted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::out_of_memory);
      EXPECT_NE(std::strstr(error.what(), "[weights]"), nullptr);
    }
  }
}

TEST(Arena, Moves) {
  Arena a(4096, "test");
  uint8_t* data = a.data();
  Arena b(std::move(a));
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(a.data(), nullptr);
  b = Arena(8192, "test");
  EXPECT_EQ(b.size(), 8192u);
}

}  // namespace
}  // namespace pyllm
