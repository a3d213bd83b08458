// Where steps lie in the arena, and decode steps: brought up to the sizes of buckets, which graphs serve.
#include <algorithm>
#include <utility>

#include "device_executor.h"
#include "errors.h"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kBuckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128};  // rows of a decode step
constexpr int kMostRows = 128;
constexpr size_t kGrain = size_t(2) << 20;  // bytes that the arena grows by

size_t align(size_t bytes) { return size_t(round_up(int64_t(bytes), kAlign)); }

bool can_choose(int64_t cols) { return cols >= 1 && cols <= kMostChoices; }

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

size_t Executor::arena_bytes() const {
  std::lock_guard<std::mutex> turn(mutex_);
  return arena_bytes_;
}

size_t Executor::pinned_bytes() const {
  std::lock_guard<std::mutex> turn(mutex_);
  size_t bytes = upload_.pinned_bytes();
  for (const auto& flight : flights_) bytes += size_t(flight->rows()) * sizeof(int32_t);
  return bytes;
}

size_t Executor::graphs() const {
  std::lock_guard<std::mutex> turn(mutex_);
  size_t count = 0;
  for (const Prepared& routine : routines_)
    for (const auto& [sizes, bucket] : routine.buckets) count += bool(bucket.graph);
  return count;
}

size_t Executor::sent_bytes() const {
  std::lock_guard<std::mutex> turn(mutex_);
  return upload_.sent_bytes();
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
    if (can_choose(output_cols(int(i)))) prompt.chooses = int(Cuts::any);
    if (decodes(i, prompt)) bytes = std::max(bytes, place(i, bucket_of(prompt), true).bytes);
  }
  make_room(bytes);
}

// The block of the step, then buffers, scratch and, for a bucket, its output and what chooses from it.
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
  at.tokens = at.output + (with_output ? align(size_t(sizes.logits) * size_t(f.output_ld) * sizeof(float)) : 0);
  at.choosing = at.bytes = at.tokens;
  if (sizes.chooses < 0) return at;
  at.choosing += align(size_t(sizes.logits) * sizeof(int32_t));
  at.bytes = at.choosing + choose_workspace(sizes.logits, output_cols(int(routine)));
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

Executor::Bucket& Executor::bucket(size_t routine, const StepSizes& sizes) {
  const StepSizes wanted = bucket_of(sizes);
  auto& buckets = routines_[routine].buckets;
  const auto found = buckets.find(wanted);
  if (found != buckets.end()) return found->second;
  const Place at = place(routine, wanted, true);
  make_room(at.bytes);
  return buckets.emplace(wanted, Bucket{at, 0, {}}).first->second;
}

// The first time as it is, so that everything is loaded; captured the second time.
void Executor::launch_bucket(size_t routine, Bucket& bucket) {
  const Place& at = bucket.place;
  const StepSizes& sizes = at.layout.sizes();
  const int64_t ld = output_ld(int(routine));
  float* output = reinterpret_cast<float*>(arena_ + at.output);
  const Frame f = frame(at, step_.has_cross(), output, ld);
  const auto enqueue = [&] {
    launch(routine, f);
    if (sizes.chooses < 0) return;
    int32_t* tokens = reinterpret_cast<int32_t*>(arena_ + at.tokens);
    Choice* choices = at.layout.choices(arena_);
    const StepView& v = f.step;
    choose(View{output, ld, Type::f32}, sizes.logits, output_cols(int(routine)), choices, tokens, arena_ + at.choosing,
           lane_->stream, Cuts(sizes.chooses));
    advance(tokens, sizes.rows, v.sequence, const_cast<int32_t*>(v.ids), const_cast<int32_t*>(v.positions),
            const_cast<int32_t*>(v.context), choices, lane_->stream);
  };
  if (bucket.runs > 0 && !bucket.graph && !profiled_ && graphs_available()) {
    cuda::Capture capture(lane_->stream);
    enqueue();
    bucket.graph = capture.finish();
  }
  if (bucket.graph && !profiled_) bucket.graph.launch(lane_->stream);
  else enqueue();
  bucket.runs = 1;
}

bool Executor::goes_ahead(int routine) const {
  return buckets_ && can_choose(output_cols(routine)) && !routines_[size_t(routine)].limits.whole;
}

int Executor::rows_ahead(int routine) const {
  std::lock_guard<std::mutex> turn(mutex_);
  return goes_ahead(routine) ? kMostRows : 0;
}

// One that nobody holds, not even who brings its tokens to the next step.
std::shared_ptr<Flight> Executor::new_flight(int rows) {
  for (const auto& flight : flights_)
    if (flight.use_count() == 1 && flight->rows() == rows) {
      flight->wait();
      return flight;
    }
  flights_.erase(std::remove_if(flights_.begin(), flights_.end(), [](const auto& f) { return f.use_count() == 1; }),
                 flights_.end());
  return flights_.emplace_back(std::make_shared<Flight>(rows));
}

std::shared_ptr<Flight> Executor::run_ahead(int index, const Batch& batch, KvCache& cache, KvCache* cross,
                                            const Choice* choices, Cuts cuts, const std::shared_ptr<Flight>& after) {
  std::lock_guard<std::mutex> turn(mutex_);
  if (!goes_ahead(index) || (after && after->rows() != batch.rows))
    throw Error(ErrorKind::array,
                text("[run_ahead] steps must be of a program that tokens are chosen from, with buckets on, and follow "
                     "one of as many rows, got ",
                     batch.rows, " rows after ", after ? after->rows() : 0, "; call run"));
  DeviceGuard guard(lane_->device);
  Batch known = batch;
  const std::vector<int32_t> unread(size_t(after ? batch.rows : 0), 0);
  if (after) known.ids = unread.data();
  load(index, known, cache, cross);
  StepSizes sizes = sizes_of(step_);
  sizes.chooses = int(cuts);
  if (!decodes(size_t(index), sizes))
    throw Error(ErrorKind::array,
                text("[run_ahead] every row must be one sequence's next token and want its output, 1 to ", kMostRows,
                     " of them, got ", sizes.rows, " rows of ", sizes.sequences, " sequences, ", sizes.logits,
                     " outputs; call run"));
  Bucket& wanted = bucket(size_t(index), sizes);
  const std::shared_ptr<Flight> flight = new_flight(sizes.rows);

  std::lock_guard<std::mutex> lane(lane_->mutex);
  const Place& at = wanted.place;
  if (profiled_) profile_->begin(lane_->stream);
  upload_.send(at.layout, step_, {{}, choices}, arena_, lane_->stream, after);
  try {
    launch_bucket(size_t(index), wanted);
    flight->take(reinterpret_cast<const int32_t*>(arena_ + at.tokens), lane_->stream);
  } catch (...) {
    upload_.forget();  // nobody knows how far the device's copy is
    throw;
  }
  upload_.advanced(at.layout, flight);
  if (profiled_) profile_->end(program_, size_t(index), step_);
  return flight;
}

}  // namespace cuda
}  // namespace pyllm
