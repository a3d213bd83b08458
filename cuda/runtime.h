// The host calls that the executor needs of CUDA: devices, copies, events, pinned memory, graphs. One interface for the
// real module and the emulated one, where the device is this processor, every call is done when it returns and a graph
// is a list of launches. All throw Error(device), or Error(out_of_memory).
#pragma once
#include <cstddef>
#include <memory>
#include <string>

namespace pyllm {
namespace cuda {

using Stream = void*;  // cudaStream_t; nullptr: the default stream

struct DeviceInfo {
  std::string name;
  int index = 0;
  int major = 0, minor = 0;  // compute capability; 0.0: emulated
  int multiprocessors = 0;
  size_t shared_memory = 0;  // most bytes of one block
  size_t l2_cache = 0, free_memory = 0, total_memory = 0;
};

int device_count();  // 0 without a driver; never throws
// Why device 0 can't be used (no driver, one too old, no device), or empty. Never throws.
std::string unavailable();
DeviceInfo device_info(int device);

// Calls of this thread go to this device while it lives. Every entry from Python makes one.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

size_t free_memory();                    // of the current device, now
int multiprocessors();                   // of the current device
size_t shared_memory_limit();            // of one block on the current device
bool has_compute(int major, int minor);  // whether the current device is of this compute capability or a later one

// Enqueued on the stream. The host side of a copy is pinned memory, or the call waits for it.
void copy_to_device(void* device, const void* host, size_t bytes, Stream stream);
void copy_to_host(void* host, const void* device, size_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
void fill(void* device, int byte, size_t bytes, Stream stream);
void synchronise(Stream stream);  // waits for all of the stream's work, and tells of its errors

// Host memory that copies reach without a detour.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes);
  void* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

// A place in a stream's work. timed: it knows when the work before it was done.
class Event {
 public:
  explicit Event(bool timed = false);
  void record(Stream stream);
  void wait();  // the host waits for what was recorded
  void make_stream_wait(Stream stream);
  double seconds_since(const Event& before) const;  // of two timed ones that were waited for

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> event_;
};

// Work captured once and launched as one.
class Graph {
 public:
  Graph() = default;
  explicit operator bool() const { return bool(instance_); }
  void launch(Stream stream) const;

 private:
  friend class Capture;
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> instance_;
};
bool graphs_available();

// What this thread enqueues on the stream (not the default one) from here to finish() becomes a graph instead of
// running. Without finish(), as after an exception, it is dropped.
class Capture {
 public:
  explicit Capture(Stream stream);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  Graph finish();

 private:
  Stream stream_;
  bool open_ = false;
};

}  // namespace cuda
}  // namespace pyllm
