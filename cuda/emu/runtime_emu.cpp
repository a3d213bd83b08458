// The host calls of CUDA (runtime.h) where the device is this processor.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

#include "errors.h"
#include "fibers.h"
#include "machine.h"
#include "runtime.h"

namespace pyllm {
namespace cuda {

int device_count() { return 1; }
std::string unavailable() { return ""; }

DeviceInfo device_info(int device) {
  if (device != 0)
    throw Error(ErrorKind::device, text("[emulator] the device must be 0, got ", device, "; use device='cuda:0'"));
  DeviceInfo info;
  info.name = "emulated on the CPU";
  info.multiprocessors = multiprocessors();
  info.shared_memory = shared_memory_limit();
  info.free_memory = info.total_memory = free_memory();
  return info;
}

DeviceGuard::DeviceGuard(int device) {
  if (device != 0) device_info(device);
}
DeviceGuard::~DeviceGuard() = default;

size_t free_memory() { return size_t(available_memory()); }
int multiprocessors() { return 2; }  // few, so that small tests reach the code of many waves of blocks
size_t shared_memory_limit() { return emu::kSharedBytes; }
bool has_compute(int major, int) { return major <= 8; }

namespace {
void refuse_captured(const char* what) {
  if (emu::record_of_thread())
    throw Error(ErrorKind::device, text("[emulator] a capture must hold launches only, got ", what));
}
}  // namespace
void copy_to_device(void* device, const void* host, size_t bytes, Stream) {
  refuse_captured("a copy");
  if (bytes) std::memmove(device, host, bytes);
}
void copy_to_host(void* host, const void* device, size_t bytes, Stream) {
  refuse_captured("a copy");
  if (bytes) std::memmove(host, device, bytes);
}
void copy_on_device(void* to, const void* from, size_t bytes, Stream) {
  refuse_captured("a copy");
  if (bytes) std::memmove(to, from, bytes);
}
void fill(void* device, int byte, size_t bytes, Stream) {
  refuse_captured("a fill");
  if (bytes) std::memset(device, byte, bytes);
}
void synchronise(Stream) { refuse_captured("a wait"); }

PinnedMemory::PinnedMemory(size_t bytes) : bytes_(bytes) {
  if (!bytes) return;
  data_.reset(std::malloc(bytes));
  if (!data_) throw std::bad_alloc();
}
void PinnedMemory::Free::operator()(void* p) const { std::free(p); }

// A timed event is the time at which it was recorded.
using Clock = std::chrono::steady_clock;
Event::Event(bool timed) {
  if (timed) event_.reset(new Clock::time_point());
}
void Event::Free::operator()(void* p) const { delete static_cast<Clock::time_point*>(p); }
void Event::record(Stream) {
  if (event_) *static_cast<Clock::time_point*>(event_.get()) = Clock::now();
}
double Event::seconds_since(const Event& before) const {
  const auto at = [](const Event& e) { return *static_cast<Clock::time_point*>(e.event_.get()); };
  return std::chrono::duration<double>(at(*this) - at(before)).count();
}
void Event::wait() {}
void Event::make_stream_wait(Stream) {}

// A graph is the list of its launches, with their arguments as they were.
void Graph::Free::operator()(void* p) const { delete static_cast<emu::Record*>(p); }
void Graph::launch(Stream) const {
  for (const std::function<void()>& call : *static_cast<emu::Record*>(instance_.get())) call();
}
bool graphs_available() { return true; }

Capture::Capture(Stream stream) : stream_(stream) {
  if (stream == nullptr) throw Error(ErrorKind::device, "[emulator] the default stream can't be captured");
  refuse_captured("another capture");
  emu::record_to(new emu::Record);
  open_ = true;
}
Capture::~Capture() {
  if (!open_) return;
  delete emu::record_of_thread();
  emu::record_to(nullptr);
}
Graph Capture::finish() {
  open_ = false;
  Graph out;
  out.instance_.reset(emu::record_of_thread());
  emu::record_to(nullptr);
  (void)stream_;
  return out;
}

}  // namespace cuda
}  // namespace pyllm
