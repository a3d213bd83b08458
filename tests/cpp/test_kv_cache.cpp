// Blocks: references, zeroes, copies, growth and its limit.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "errors.h"
#include "kv_cache.h"

namespace pyllm {
namespace {

const KvShape kShape = {KvFormat::bf16, 3, 2, 20};

KvCache::View view(const KvCache& cache, int block) {
  KvCache::View out;
  cache.views(&block, 1, &out);
  return out;
}

bool all_zero(const KvCache& cache, int block) {
  const uint8_t* base = view(cache, block).base;
  return std::all_of(base, base + cache.shape().block_bytes(), [](uint8_t b) { return b == 0; });
}

TEST(KvCache, ShapeIsLayersByHeads) {
  EXPECT_EQ(kShape.block_bytes(), 3 * 2 * kv_block_bytes(KvFormat::bf16, 20));
  EXPECT_EQ(kShape.offset(2, 1) + kv_block_bytes(KvFormat::bf16, 20), kShape.block_bytes());
}

TEST(KvCache, CountsReferences) {
  KvCache cache(kShape, 0);
  const int a = cache.allocate(), b = cache.allocate();
  EXPECT_NE(a, b);
  EXPECT_EQ(cache.blocks_in_use(), 2);
  cache.share(a);
  EXPECT_EQ(cache.references(a), 2);
  cache.release(a);
  cache.release(a);
  EXPECT_EQ(cache.references(a), 0);
  EXPECT_EQ(cache.blocks_in_use(), 1);
  EXPECT_EQ(view(cache, a).base, nullptr);
}

TEST(KvCache, BlocksAreZeroAlsoWhenUsedAgain) {
  KvCache cache(kShape, 0);
  const int a = cache.allocate();
  EXPECT_TRUE(all_zero(cache, a));
  std::memset(view(cache, a).base, 0xff, kShape.block_bytes());
  cache.release(a);
  const int again = cache.allocate();
  EXPECT_EQ(again, a);
  EXPECT_TRUE(all_zero(cache, again));
}

// Memory that is not zero at first, as a device's.
class UsedMemory : public BlockMemory {
 public:
  uint8_t* allocate(size_t bytes) override {
    slabs_.emplace_back(bytes, uint8_t(0xff));
    return slabs_.back().data();
  }
  bool fresh_is_zero() const override { return false; }
  void zero(uint8_t* at, size_t bytes) override { std::memset(at, 0, bytes); }
  void copy(uint8_t* to, const uint8_t* from, size_t bytes) override { std::memcpy(to, from, bytes); }

 private:
  std::vector<std::vector<uint8_t>> slabs_;
};

TEST(KvCache, BlocksOfOtherMemoryAreZeroAndCopied) {
  KvCache cache(kShape, 0, std::make_unique<UsedMemory>());
  const int a = cache.allocate();
  EXPECT_TRUE(all_zero(cache, a));
  std::memset(view(cache, a).base, 7, kShape.block_bytes());
  const int b = cache.copy(a);
  EXPECT_EQ(std::memcmp(view(cache, a).base, view(cache, b).base, kShape.block_bytes()), 0);
  EXPECT_EQ(cache.huge_bytes(), 0u);
}

TEST(KvCache, CopiesContent) {
  KvCache cache(kShape, 0);
  const int a = cache.allocate();
  std::memset(view(cache, a).base, 7, kShape.block_bytes());
  const int b = cache.copy(a);
  EXPECT_EQ(std::memcmp(view(cache, a).base, view(cache, b).base, kShape.block_bytes()), 0);
  EXPECT_EQ(cache.references(a), 1);
  EXPECT_EQ(cache.references(b), 1);
}

TEST(KvCache, RefusesBlocksNotInUse) {
  KvCache cache(kShape, 0);
  const int a = cache.allocate();
  cache.release(a);
  for (int block : {a, -1, 1 << 30}) {
    EXPECT_THROW(cache.share(block), Error);
    EXPECT_THROW(cache.release(block), Error);
    EXPECT_THROW(cache.copy(block), Error);
    EXPECT_EQ(cache.references(block), 0);
  }
}

TEST(KvCache, GrowsWithoutMovingAndStopsAtItsLimit) {
  const size_t limit = size_t(20) << 20;
  KvCache cache(kShape, limit);
  const int first = cache.allocate();
  uint8_t* base = view(cache, first).base;
  base[0] = 42;
  const int most = int(limit / kShape.block_bytes());
  for (int i = 1; i < most; i++) cache.allocate();
  EXPECT_EQ(view(cache, first).base, base);
  EXPECT_EQ(base[0], 42);
  try {
    cache.allocate();
    ADD_FAILURE() << "the limit was passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::out_of_memory);
  }
  EXPECT_THROW(cache.copy(first), Error);
  cache.release(first);
  EXPECT_EQ(cache.allocate(), first);  // still usable
}

TEST(KvCache, ThreadsShareIt) {
  KvCache cache(kShape, 0);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; i++) {
        const int a = cache.allocate();
        view(cache, a).base[0] = uint8_t(t + 1);
        const int b = cache.copy(a);
        wrong += view(cache, b).base[0] != t + 1;
        cache.release(a);
        cache.release(b);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_EQ(cache.blocks_in_use(), 0);
}

}  // namespace
}  // namespace pyllm
