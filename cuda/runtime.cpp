// The host calls of CUDA (runtime.h) by the static CUDA runtime.
#include "runtime.h"

#if !defined(PYLLM_CUDA_EMU)
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

#include "errors.h"

namespace pyllm {
namespace cuda {
void allow_shared_memory(const void* kernel, size_t bytes);
void check_launch(const char* kernel);
bool can_overlap();

namespace {

[[noreturn]] void raise(cudaError_t error, const std::string& what) {
  cudaGetLastError();  // clears it; those that mean a broken context come again
  const bool memory = error == cudaErrorMemoryAllocation;
  throw Error(
      memory ? ErrorKind::out_of_memory : ErrorKind::device,
      text("[cuda] ", what, " must succeed, got ", cudaGetErrorName(error), " (", cudaGetErrorString(error), "); ",
           memory ? "free memory on the device, or use a smaller model, batch or context"
                  : "after an error in a kernel the process has to be started anew"));
}
void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) raise(error, what);
}
cudaStream_t of(Stream stream) { return static_cast<cudaStream_t>(stream); }

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "reading a property of the device");
  return value;
}
int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "finding the current device");
  return device;
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::string unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count > 0 ? "" : "no CUDA-capable device is detected";
}

DeviceInfo device_info(int device) {
  const int count = device_count();
  if (device < 0 || device >= count)
    throw Error(ErrorKind::device, text("[cuda] there must be a device ", device, ", got ", count,
                                        " CUDA devices; use one from 0 on, or device='cpu'"));
  const DeviceGuard guard(device);
  cudaDeviceProp found;
  check(cudaGetDeviceProperties(&found, device), "reading the properties of the device");
  DeviceInfo info;
  info.name = found.name;
  info.index = device;
  info.major = found.major;
  info.minor = found.minor;
  info.multiprocessors = found.multiProcessorCount;
  info.shared_memory = found.sharedMemPerBlockOptin;
  info.l2_cache = size_t(found.l2CacheSize);
  check(cudaMemGetInfo(&info.free_memory, &info.total_memory), "reading the device's free memory");
  return info;
}

DeviceGuard::DeviceGuard(int device) : before_(current_device()) {
  check(cudaSetDevice(device), "choosing the device");
}
DeviceGuard::~DeviceGuard() { cudaSetDevice(before_); }

size_t free_memory() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "reading the device's free memory");
  return free;
}
int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount, current_device()); }
size_t shared_memory_limit() { return size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device())); }
bool has_compute(int major, int minor) {
  const int device = current_device();
  return attribute(cudaDevAttrComputeCapabilityMajor, device) * 100 +
             attribute(cudaDevAttrComputeCapabilityMinor, device) >=
         major * 100 + minor;
}

void copy_to_device(void* device, const void* host, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, of(stream)), "a copy to the device");
}
void copy_to_host(void* host, const void* device, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, of(stream)), "a copy to the host");
}
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, of(stream)), "a copy on the device");
}
void fill(void* device, int byte, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemsetAsync(device, byte, bytes, of(stream)), "filling memory of the device");
}
void synchronise(Stream stream) { check(cudaStreamSynchronize(of(stream)), "work on the device"); }

PinnedMemory::PinnedMemory(size_t bytes) : bytes_(bytes) {
  void* data = nullptr;
  if (bytes) check(cudaMallocHost(&data, bytes), "allocating host memory for copies");
  data_.reset(data);
}
void PinnedMemory::Free::operator()(void* p) const { cudaFreeHost(p); }

Event::Event(bool timed) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming), "making an event");
  event_.reset(event);
}
void Event::Free::operator()(void* p) const { cudaEventDestroy(static_cast<cudaEvent_t>(p)); }
void Event::record(Stream stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_.get()), of(stream)), "recording an event");
}
void Event::wait() { check(cudaEventSynchronize(static_cast<cudaEvent_t>(event_.get())), "work on the device"); }
void Event::make_stream_wait(Stream stream) {
  check(cudaStreamWaitEvent(of(stream), static_cast<cudaEvent_t>(event_.get()), 0), "waiting for an event");
}
double Event::seconds_since(const Event& before) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(before.event_.get()),
                             static_cast<cudaEvent_t>(event_.get())),
        "the time between two events");
  return 1e-3 * double(milliseconds);
}

void Graph::Free::operator()(void* p) const { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(p)); }
void Graph::launch(Stream stream) const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(instance_.get()), of(stream)), "launching a graph");
}
bool graphs_available() { return true; }

Capture::Capture(Stream stream) : stream_(stream) {
  check(cudaStreamBeginCapture(of(stream), cudaStreamCaptureModeThreadLocal), "beginning a capture");
  open_ = true;
}
Capture::~Capture() {
  if (!open_) return;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(of(stream_), &graph);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
}
Graph Capture::finish() {
  open_ = false;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(of(stream_), &graph), "ending a capture");
  cudaGraphExec_t instance = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&instance, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "making a graph");
  Graph out;
  out.instance_.reset(instance);
  return out;
}

void allow_shared_memory(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& now = allowed[{kernel, device}];
  if (bytes <= now) return;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) raise(error, text("asking for ", bytes, " bytes of shared memory"));
  now = bytes;
}

bool can_overlap() {
  static std::mutex mutex;
  static std::map<int, bool> known;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  // Drivers before 12.3 can't capture such launches into graphs.
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "reading the driver's version");
  return known[device] = driver >= 12030 && has_compute(9, 0);
}

void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) raise(error, text("launching ", kernel));
}

}  // namespace cuda
}  // namespace pyllm
#endif
