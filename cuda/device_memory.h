// Device memory of an executor and its caches: who is asked for it, the stream it is used on, and blocks of keys and
// values in it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>

#include "kv_cache.h"
#include "runtime.h"

namespace pyllm {
namespace cuda {

// A stream, and whose turn it is to enqueue on it: a capture must not see another thread's work. Device index and
// stream stay what they are.
struct Lane {
  int device = 0;
  Stream stream = nullptr;
  std::mutex mutex;
};

// Asks the owner of device memory for so many bytes, on 256 bytes; work enqueued on the lane before it is freed is done
// before it is used again. Throws Error(out_of_memory).
using Allocate = std::function<uint8_t*(size_t bytes)>;

class DeviceBlocks : public BlockMemory {
 public:
  DeviceBlocks(std::shared_ptr<Lane> lane, Allocate allocate)
      : lane_(std::move(lane)), allocate_(std::move(allocate)) {}
  uint8_t* allocate(size_t bytes) override { return allocate_(bytes); }
  bool fresh_is_zero() const override { return false; }
  void zero(uint8_t* at, size_t bytes) override {
    std::lock_guard<std::mutex> turn(lane_->mutex);
    DeviceGuard guard(lane_->device);
    fill(at, 0, bytes, lane_->stream);
  }
  void copy(uint8_t* to, const uint8_t* from, size_t bytes) override {
    std::lock_guard<std::mutex> turn(lane_->mutex);
    DeviceGuard guard(lane_->device);
    copy_on_device(to, from, bytes, lane_->stream);
  }

 private:
  const std::shared_ptr<Lane> lane_;
  const Allocate allocate_;
};

}  // namespace cuda
}  // namespace pyllm
