// Paged storage of keys and values: blocks of 32 tokens over all layers and kv heads, reference-counted, in slabs that
// never move. Knows nothing of sequences.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "arena.h"
#include "kernels.h"

namespace pyllm {

struct KvShape {
  KvFormat format = KvFormat::f32;
  int layers = 0, heads = 0;
  int64_t head_dim = 0;

  size_t block_bytes() const { return size_t(layers) * size_t(heads) * kv_block_bytes(format, head_dim); }
  size_t offset(int layer, int head) const {  // of one (layer, kv head) in a block
    return (size_t(layer) * size_t(heads) + size_t(head)) * kv_block_bytes(format, head_dim);
  }
  bool operator==(const KvShape& o) const {
    return format == o.format && layers == o.layers && heads == o.heads && head_dim == o.head_dim;
  }
};

// Where blocks lie: this machine's memory, or a device's. Addresses are the device's own; only it can use them.
class BlockMemory {
 public:
  virtual ~BlockMemory() = default;
  virtual uint8_t* allocate(size_t bytes) = 0;  // kept as long as this object; throws Error(out_of_memory)
  virtual bool fresh_is_zero() const = 0;       // whether what allocate() gives is
  // In the order of calls, and before what steps do to the memory afterwards.
  virtual void zero(uint8_t* at, size_t bytes) = 0;
  virtual void copy(uint8_t* to, const uint8_t* from, size_t bytes) = 0;
  virtual size_t huge_bytes() const { return 0; }  // of what was allocated, backed by huge pages now
};

// Thread-safe. Methods that name a block throw Error(array) when it is not in use.
class KvCache {
 public:
  // max_bytes 0: as much as the system gives. memory nullptr: this machine's.
  KvCache(const KvShape& shape, size_t max_bytes, std::unique_ptr<BlockMemory> memory = nullptr);

  int allocate();           // one reference, all bytes zero; throws Error(out_of_memory)
  int copy(int block);      // allocate() with the content of another
  void share(int block);    // one reference more
  void release(int block);  // one less; free at zero
  int references(int block) const;

  const KvShape& shape() const { return shape_; }
  int blocks_in_use() const;
  size_t bytes() const;       // reserved from the system
  size_t huge_bytes() const;  // of those, backed by huge pages now

  // Base of a block and its reference count, or {nullptr, 0} when it is not in use.
  struct View {
    uint8_t* base;
    int references;
  };
  void views(const int32_t* blocks, int64_t count, View* out) const;

  // Where a step of this cache writes its output: kept here, one per cache, so that generations on one model do not
  // overwrite each other's. Replaced when too small; whoever still holds the old one keeps it.
  std::shared_ptr<Arena> output(size_t bytes);

 private:
  struct Block {
    uint8_t* base;
    int references;
    bool used_before;  // fresh memory may be zero already
  };
  View view(int block) const;
  Block& in_use(int block, const char* where);
  int take();
  void grow();

  const KvShape shape_;
  const size_t max_bytes_;
  mutable std::mutex mutex_;
  const std::unique_ptr<BlockMemory> memory_;
  size_t slabs_ = 0;
  std::vector<Block> blocks_;
  std::vector<int> free_;
  size_t bytes_ = 0;
  std::shared_ptr<Arena> output_;
};

}  // namespace pyllm
