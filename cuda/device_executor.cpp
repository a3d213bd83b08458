#include "device_executor.h"

#include <algorithm>
#include <utility>

#include "errors.h"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kBuckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128};  // rows of a decode step
constexpr int kMostRows = 128;
constexpr size_t kGrain = size_t(2) << 20;  // bytes that the arena grows by

size_t align(size_t bytes) { return size_t(round_up(int64_t(bytes), kAlign)); }

Program checked(Program program) {
  program.check();
  return program;
}

// Keys of a bucket: chunks of attention, doubled until they are enough.
int64_t bucket_keys(int64_t keys) {
  int64_t most = keys == 0 ? 0 : kChunkKeys;
  while (most < keys) most *= 2;
  return most;
}

StepSizes bucket_of(const StepSizes& sizes) {
  StepSizes bucket = sizes;
  bucket.rows = *std::lower_bound(std::begin(kBuckets), std::end(kBuckets), sizes.rows);
  bucket.sequences = bucket.logits = bucket.rows;
  bucket.longest = bucket_keys(sizes.longest);
  bucket.width = bucket.longest / kBlockTokens;
  bucket.longest_cross = bucket_keys(sizes.longest_cross);
  bucket.cross_width = bucket.longest_cross / kBlockTokens;
  return bucket;
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

size_t Executor::arena_bytes() const {
  std::lock_guard<std::mutex> turn(mutex_);
  return arena_bytes_;
}

size_t Executor::pinned_bytes() const {
  std::lock_guard<std::mutex> turn(mutex_);
  return upload_.pinned_bytes();
}

size_t Executor::graphs() const {
  std::lock_guard<std::mutex> turn(mutex_);
  size_t count = 0;
  for (const Prepared& routine : routines_)
    for (const auto& [sizes, bucket] : routine.buckets) count += bool(bucket.graph);
  return count;
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

void Executor::reserve(int rows) {
  std::lock_guard<std::mutex> turn(mutex_);
  DeviceGuard guard(lane_->device);
  size_t bytes = 0;
  for (size_t i = 0; i < routines_.size(); i++) {
    StepSizes prompt;
    prompt.rows = rows;
    prompt.sequences = prompt.logits = 1;
    prompt.longest = std::min<int64_t>(rows, program_.routines[i].max_positions);
    prompt.most_rows = int(prompt.longest);
    prompt.width = (prompt.longest + kBlockTokens - 1) / kBlockTokens;
    if (program_.routines[i].reads_cross()) {
      prompt.longest_cross = prompt.longest;
      prompt.cross_width = prompt.width;
    }
    bytes = std::max(bytes, place(i, prompt, false).bytes);
    prompt.rows = prompt.sequences = prompt.logits = std::min(kMostRows, rows);
    prompt.most_rows = 1;
    if (decodes(i, prompt)) bytes = std::max(bytes, place(i, bucket_of(prompt), true).bytes);
  }
  make_room(bytes);
}

// The block of the step, then buffers, scratch and, for a bucket, its output.
Executor::Place Executor::place(size_t routine, const StepSizes& sizes, bool with_output,
                                const CaptureTargets* capture) const {
  Place at;
  at.layout = StepLayout(sizes);
  const Plan& plan = routines_[routine].plan;
  at.buffers = align(at.layout.bytes());
  at.workspace = at.buffers + size_t(plan.row_bytes) * size_t(sizes.rows);
  uint8_t* somewhere = reinterpret_cast<uint8_t*>(uintptr_t(kGrain));  // only asked how much it takes
  Frame f;
  f.step = at.layout.view(somewhere);
  f.capacity = sizes.rows;
  f.buffers = f.workspace = somewhere;
  f.output = reinterpret_cast<float*>(somewhere);
  f.output_ld = output_ld(int(routine));
  f.capture = capture;
  const size_t scratch = Launches(program_, routine, plan, weights_, type_, f, nullptr).workspace();
  at.output = at.workspace + align(scratch);
  at.bytes = at.output + (with_output ? size_t(sizes.logits) * size_t(f.output_ld) * sizeof(float) : 0);
  return at;
}

// Graphs know addresses: they go with the arena.
void Executor::make_room(size_t bytes) {
  if (bytes <= arena_bytes_) return;
  if (arena_ != nullptr) synchronise(lane_->stream);
  for (Prepared& routine : routines_) routine.buckets.clear();
  upload_.forget();
  arena_ = nullptr;
  arena_bytes_ = 0;
  const size_t wanted = size_t(round_up(int64_t(bytes + bytes / 8), int64_t(kGrain)));
  arena_ = allocate_arena_(wanted);
  arena_bytes_ = wanted;
}

bool Executor::decodes(size_t routine, const StepSizes& sizes) const {
  return !routines_[routine].limits.whole && sizes.rows == sizes.sequences && sizes.rows == sizes.logits &&
         sizes.rows <= kMostRows && !sizes.types && sizes.pointers == 0;
}

Frame Executor::frame(const Place& at, bool has_cross, float* output, int64_t output_ld) const {
  Frame f;
  f.step = at.layout.view(arena_);
  f.has_cross = has_cross;
  f.capacity = at.layout.sizes().rows;
  f.buffers = arena_ + at.buffers;
  f.workspace = arena_ + at.workspace;
  f.output = output;
  f.output_ld = output_ld;
  return f;
}

void Executor::launch(size_t routine, const Frame& frame) {
  Launches(program_, routine, routines_[routine].plan, weights_, type_, frame, lane_->stream)
      .run(profiled_ ? profile_.get() : nullptr);
}

// The first time as it is, so that everything is loaded; captured the second time. The output goes to the caller's
// memory afterwards, whose address changes.
void Executor::run_bucket(size_t routine, Bucket& bucket, float* output) {
  const Place& at = bucket.place;
  const int64_t ld = output_ld(int(routine));
  float* own = reinterpret_cast<float*>(arena_ + at.output);
  upload_.send(at.layout, step_, {}, arena_, lane_->stream);
  const Frame f = frame(at, step_.has_cross(), own, ld);
  if (bucket.runs > 0 && !bucket.graph && !profiled_ && graphs_available()) {
    cuda::Capture capture(lane_->stream);
    launch(routine, f);
    bucket.graph = capture.finish();
  }
  if (bucket.graph && !profiled_) bucket.graph.launch(lane_->stream);
  else launch(routine, f);
  bucket.runs = 1;
  copy_on_device(output, own, size_t(step_.batch().logits * ld) * sizeof(float), lane_->stream);
}

void Executor::run_as_is(size_t routine, const Place& at, float* output, const DeviceCapture* capture) {
  static const std::vector<float*> none;
  upload_.send(at.layout, step_, capture ? capture->pointers : none, arena_, lane_->stream);
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
    bytes += align(floats * sizeof(float));
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

void Executor::run(int index, const Batch& batch, KvCache& cache, KvCache* cross, float* output, Stream consumer,
                   pyllm::Capture* capture) {
  const Routine& r = routine(index);
  Prepared& prepared = routines_[size_t(index)];
  std::lock_guard<std::mutex> turn(mutex_);
  DeviceGuard guard(lane_->device);
  if (!weights_.placed())
    throw Error(ErrorKind::array,
                text("[run] ", weights_.missing(), " weights are not loaded; load every matrix and vector first"));
  check_caches(program_, r, cache, cross);
  step_.load(batch, cache, cross, prepared.limits);

  StepSizes sizes = sizes_of(step_);
  DeviceCapture captured;
  pyllm::CaptureTargets host;
  if (capture) {
    host = prepare_capture(r, batch, *capture);
    captured = device_capture(r, host);
    sizes.pointers = int64_t(captured.pointers.size());
  }
  const bool in_bucket = buckets_ && capture == nullptr && decodes(size_t(index), sizes);
  Bucket* bucket = nullptr;
  Place at;
  if (in_bucket) {
    const StepSizes wanted = bucket_of(sizes);
    auto found = prepared.buckets.find(wanted);
    if (found == prepared.buckets.end()) {
      at = place(size_t(index), wanted, true);
      make_room(at.bytes);
      found = prepared.buckets.emplace(wanted, Bucket{at, 0, {}}).first;
    }
    bucket = &found->second;
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
  if (bucket) {
    run_bucket(size_t(index), *bucket, output);
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
