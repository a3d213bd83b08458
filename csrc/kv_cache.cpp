#include "kv_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "errors.h"

namespace pyllm {
namespace {

// Slabs double up to the largest, so a short text takes little and a long one few mappings.
constexpr size_t kFirstSlab = size_t(4) << 20, kLargestSlab = size_t(256) << 20;

class HostMemory : public BlockMemory {
 public:
  uint8_t* allocate(size_t bytes) override {
    slabs_.emplace_back(bytes, "key/value cache");
    return slabs_.back().data();
  }
  bool fresh_is_zero() const override { return true; }
  void zero(uint8_t* at, size_t bytes) override { std::memset(at, 0, bytes); }
  void copy(uint8_t* to, const uint8_t* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  size_t huge_bytes() const override {
    size_t huge = 0;
    for (const Arena& slab : slabs_) huge += slab.huge_bytes();
    return huge;
  }

 private:
  std::vector<Arena> slabs_;
};

}  // namespace

KvCache::KvCache(const KvShape& shape, size_t max_bytes, std::unique_ptr<BlockMemory> memory)
    : shape_(shape), max_bytes_(max_bytes), memory_(memory ? std::move(memory) : std::make_unique<HostMemory>()) {}

int KvCache::allocate() {
  std::lock_guard<std::mutex> lock(mutex_);
  const int block = take();
  Block& taken = blocks_[size_t(block)];
  if (taken.used_before || !memory_->fresh_is_zero()) memory_->zero(taken.base, shape_.block_bytes());
  taken.used_before = true;
  return block;
}

int KvCache::copy(int block) {
  std::lock_guard<std::mutex> lock(mutex_);
  in_use(block, "copy");
  const int copied = take();
  Block& taken = blocks_[size_t(copied)];
  memory_->copy(taken.base, blocks_[size_t(block)].base, shape_.block_bytes());
  taken.used_before = true;
  return copied;
}

void KvCache::share(int block) {
  std::lock_guard<std::mutex> lock(mutex_);
  in_use(block, "share").references++;
}

void KvCache::release(int block) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (--in_use(block, "release").references == 0) free_.push_back(block);
}

int KvCache::references(int block) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return view(block).references;
}

int KvCache::blocks_in_use() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return int(blocks_.size() - free_.size());
}

size_t KvCache::bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

size_t KvCache::huge_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return memory_->huge_bytes();
}

void KvCache::views(const int32_t* blocks, int64_t count, View* out) const {
  std::lock_guard<std::mutex> lock(mutex_);
  for (int64_t i = 0; i < count; i++) out[i] = view(blocks[i]);
}

KvCache::View KvCache::view(int block) const {
  if (block < 0 || size_t(block) >= blocks_.size() || blocks_[size_t(block)].references == 0) return {nullptr, 0};
  return {blocks_[size_t(block)].base, blocks_[size_t(block)].references};
}

std::shared_ptr<Arena> KvCache::output(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!output_ || output_->size() < bytes) output_ = std::make_shared<Arena>(std::max<size_t>(bytes, 1), "output");
  return output_;
}

KvCache::Block& KvCache::in_use(int block, const char* where) {
  if (view(block).base == nullptr)
    throw Error(ErrorKind::array, text("[cache ", where, "] the block must be in use, got block ", block, " with ",
                                       blocks_.size() - free_.size(), " in use; allocate or share it first"));
  return blocks_[size_t(block)];
}

int KvCache::take() {
  if (free_.empty()) grow();
  const int block = free_.back();
  free_.pop_back();
  blocks_[size_t(block)].references = 1;
  return block;
}

void KvCache::grow() {
  const size_t each = shape_.block_bytes();
  const size_t wanted = std::min(kLargestSlab, kFirstSlab << std::min<size_t>(slabs_, 6));
  size_t count = std::max<size_t>(1, wanted / each);
  if (max_bytes_ != 0) {
    count = std::min(count, max_bytes_ / each - std::min(max_bytes_ / each, blocks_.size()));
    if (count == 0)
      throw Error(ErrorKind::out_of_memory,
                  text("[cache] keys and values may take ", max_bytes_, " bytes, and all ", blocks_.size(),
                       " blocks of ", each, " bytes are in use; raise the limit, or run fewer or shorter sequences"));
  }
  uint8_t* slab = nullptr;
  for (;; count = (count + 1) / 2) {  // a smaller slab may still be granted
    try {
      slab = memory_->allocate(count * each);
      break;
    } catch (const Error&) {
      if (count == 1) throw;
    }
  }
  blocks_.reserve(blocks_.size() + count);
  free_.reserve(blocks_.size() + count);
  slabs_++;
  bytes_ += count * each;
  for (size_t i = count; i-- > 0;) free_.push_back(int(blocks_.size() + i));  // lowest id on top
  for (size_t i = 0; i < count; i++) blocks_.push_back({slab + i * each, 0, false});
}

}  // namespace pyllm
