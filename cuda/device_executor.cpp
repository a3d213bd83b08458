#include "device_executor.h"

#include <algorithm>
#include <utility>

#include "errors.h"

namespace pyllm {
namespace cuda {
namespace {

Program checked(Program program) {
  program.check();
  return program;
}

}  // namespace

Executor::Executor(Program program, Type type, std::shared_ptr<Lane> lane, Allocate arena, Allocate captures)
    : program_(checked(std::move(program))),
      type_(type),
      lane_(std::move(lane)),
      allocate_arena_(std::move(arena)),
      allocate_captures_(std::move(captures)),
      weights_(program_) {
  for (const Routine& r : program_.routines) routines_.push_back({make_plan(r, type_), limits_of(program_, r), {}});
}

const Routine& Executor::routine(int index) const {
  if (index < 0 || size_t(index) >= program_.routines.size())
    throw Error(ErrorKind::array, text("[run] there is no routine ", index, "; use the ids the program gave"));
  return program_.routines[size_t(index)];
}

int64_t Executor::output_cols(int index) const {
  const Routine& r = routine(index);
  return r.buffers[size_t(r.output)].cols;
}

void Executor::set_buckets(bool enable) {
  std::lock_guard<std::mutex> turn(mutex_);
  buckets_ = enable;
}

void Executor::profile(bool enable) {
  std::lock_guard<std::mutex> turn(mutex_);
  profiled_ = enable;
  if (enable) profile_ = std::make_unique<DeviceProfile>(program_);
}

std::vector<RoutineTimes> Executor::times() const {
  std::lock_guard<std::mutex> turn(mutex_);
  return profile_ ? profile_->times() : std::vector<RoutineTimes>();
}

void Executor::place_tables(uint8_t* address) {
  std::lock_guard<std::mutex> turn(mutex_);
  const std::vector<uint8_t> tables = weights_.tables(reinterpret_cast<uintptr_t>(address));
  std::lock_guard<std::mutex> lane(lane_->mutex);
  DeviceGuard guard(lane_->device);
  copy_to_device(address, tables.data(), tables.size(), lane_->stream);
  synchronise(lane_->stream);
}

void Executor::launch(size_t routine, const Frame& frame) {
  Launches(program_, routine, routines_[routine].plan, weights_, type_, frame, lane_->stream)
      .run(profiled_ ? profile_.get() : nullptr);
}

void Executor::run_as_is(size_t routine, const Place& at, float* output, const DeviceCapture* capture) {
  upload_.send(at.layout, step_, {capture ? capture->pointers : std::vector<float*>{}, nullptr}, arena_, lane_->stream);
  Frame f = frame(at, step_.has_cross(), output, output_ld(int(routine)));
  if (capture) f.capture = &capture->targets;
  launch(routine, f);
}

// Memory on the device for every array of `host`; pointers of weights are numbers until the arena's place is known.
Executor::DeviceCapture Executor::device_capture(const Routine& r, const pyllm::CaptureTargets& host) const {
  const Batch& b = step_.batch();
  DeviceCapture found;
  found.targets.rows.assign(r.ops.size(), nullptr);
  found.targets.weights.assign(r.ops.size(), nullptr);
  size_t bytes = 0;
  const auto add = [&](float* to, size_t floats) {
    found.copies.push_back({to, reinterpret_cast<const float*>(bytes), floats * sizeof(float)});
    bytes += size_t(round_up(int64_t(floats * sizeof(float)), kAlign));
  };
  for (size_t op = 0; op < r.ops.size(); op++) {
    if (host.rows[op]) {
      const Buffer& buffer = r.buffers[size_t(writes(r.ops[op]))];
      add(host.rows[op], size_t((buffer.rows == Rows::T ? b.rows : b.logits) * buffer.cols));
    }
    const bool own = std::holds_alternative<Attention>(r.ops[op]);
    for (size_t s = 0; s < host.weights[op].size(); s++) {
      const int64_t heads = own ? r.heads() : r.cross_heads(), rows = b.starts[s + 1] - b.starts[s];
      add(host.weights[op][s], size_t(heads * rows * (own ? b.context : b.cross_context)[s]));
    }
  }
  uint8_t* base = allocate_captures_(std::max<size_t>(bytes, 1));
  size_t next = 0;
  for (DeviceCapture::Copy& copy : found.copies)
    copy.from = reinterpret_cast<const float*>(base + reinterpret_cast<size_t>(copy.from));
  for (size_t op = 0; op < r.ops.size(); op++) {
    if (host.rows[op]) found.targets.rows[op] = const_cast<float*>(found.copies[next++].from);
    for (size_t s = 0; s < host.weights[op].size(); s++)
      found.pointers.push_back(const_cast<float*>(found.copies[next++].from));
    if (!host.weights[op].empty())
      found.targets.weights[op] = found.pointers.data();  // run() knows where they will lie
  }
  return found;
}

void Executor::load(int index, const Batch& batch, KvCache& cache, KvCache* cross) {
  const Routine& r = routine(index);
  if (!weights_.placed())
    throw Error(ErrorKind::array,
                text("[run] ", weights_.missing(), " weights are not loaded; load every matrix and vector first"));
  check_caches(program_, r, cache, cross);
  step_.load(batch, cache, cross, routines_[size_t(index)].limits);
}

void Executor::run(int index, const Batch& batch, KvCache& cache, KvCache* cross, float* output, Stream consumer,
                   pyllm::Capture* capture) {
  const Routine& r = routine(index);
  std::lock_guard<std::mutex> turn(mutex_);
  DeviceGuard guard(lane_->device);
  load(index, batch, cache, cross);

  StepSizes sizes = sizes_of(step_);
  DeviceCapture captured;
  pyllm::CaptureTargets host;
  if (capture) {
    host = prepare_capture(r, batch, *capture);
    captured = device_capture(r, host);
    sizes.pointers = int64_t(captured.pointers.size());
  }
  Bucket* in_bucket = nullptr;
  Place at;
  if (buckets_ && capture == nullptr && decodes(size_t(index), sizes)) {
    in_bucket = &bucket(size_t(index), sizes);
  } else {
    at = place(size_t(index), sizes, false, capture ? &captured.targets : nullptr);
    make_room(at.bytes);
  }
  size_t pointers = 0;
  for (size_t op = 0; capture && op < r.ops.size(); op++) {
    if (host.weights[op].empty()) continue;
    captured.targets.weights[op] = at.layout.pointers(arena_) + pointers;
    pointers += host.weights[op].size();
  }

  std::lock_guard<std::mutex> lane(lane_->mutex);
  if (consumer != lane_->stream) {
    consumed_.record(consumer);
    consumed_.make_stream_wait(lane_->stream);
  }
  if (profiled_) profile_->begin(lane_->stream);
  if (in_bucket) {
    const size_t bytes = size_t(batch.logits * output_ld(index)) * sizeof(float);
    upload_.send(in_bucket->place.layout, step_, {}, arena_, lane_->stream);
    launch_bucket(size_t(index), *in_bucket);
    copy_on_device(output, arena_ + in_bucket->place.output, bytes, lane_->stream);  // its address changes
  } else {
    for (const DeviceCapture::Copy& copy : captured.copies)
      fill(const_cast<float*>(copy.from), 0, copy.bytes, lane_->stream);
    run_as_is(size_t(index), at, output, capture ? &captured : nullptr);
    for (const DeviceCapture::Copy& copy : captured.copies) copy_to_host(copy.to, copy.from, copy.bytes, lane_->stream);
    if (capture) synchronise(lane_->stream);
  }
  if (profiled_) profile_->end(program_, size_t(index), step_);
  if (consumer != lane_->stream) {
    produced_.record(lane_->stream);
    produced_.make_stream_wait(consumer);
  }
}

}  // namespace cuda
}  // namespace pyllm
