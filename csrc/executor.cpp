#include "executor.h"

#include <algorithm>
#include <atomic>

#include "errors.h"
#include "machine.h"
#include "overloaded.h"

namespace pyllm {
namespace {

constexpr int64_t kPlannedRows = 512;  // rows of a step that memory is laid out for at load

Program checked(Program program) {
  program.check();
  return program;
}

size_t page_up(size_t bytes) { return size_t(round_up(int64_t(bytes), 4096)); }

}  // namespace

Executor::Executor(Program program, int threads, const Kernels& kernels)
    : program_(checked(std::move(program))),
      kernels_(kernels),
      threads_(threads),
      weights_(program_),
      loaded_(program_.matrices.size() + program_.vectors.size(), false),
      missing_(int(loaded_.size())) {
  if (threads < 1 || threads > kMaxThreads)
    throw Error(ErrorKind::option, text("[num_threads] must be from 1 to ", kMaxThreads, ", got ", threads,
                                        "; leave it out for the default"));
  const auto prepares = [&](Format f) { return kernels.prepared_bytes(f, 1, 1) != 0; };
  for (const Matrix& m : program_.matrices)
    if (std::find(formats_.begin(), formats_.end(), m.shape.format) == formats_.end())
      formats_.push_back(m.shape.format);
  int counters = 0;
  for (const Routine& routine : program_.routines) {
    const Limits limits = limits_of(program_, routine);
    routines_.push_back({make_plan(program_, routine, threads_, prepares), limits, routine.heads() / routine.kv.heads,
                         limits.cross == CrossUse::reads ? routine.cross_heads() / program_.cross.heads : 0,
                         RotaryTables(routine)});
    const Plan& plan = routines_.back().plan;
    width_ = std::max(width_, plan.width);
    input_width_ = std::max(input_width_, plan.input_width);
    norm_width_ = std::max(norm_width_, plan.norm_width);
    most_positions_ = std::max(most_positions_, routine.max_positions);
    counters = std::max(counters, plan.attentions);
  }
  counters_.reset(new Counter[size_t(counters) + 1]);
  reserve(std::min(kPlannedRows, most_positions_), std::min(kPlannedRows, most_positions_));
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

const Matrix& Executor::checked_matrix(int matrix) const {
  if (matrix < 0 || size_t(matrix) >= program_.matrices.size())
    throw Error(ErrorKind::array, text("[load] there is no matrix ", matrix, "; use the ids the program gave"));
  return program_.matrices[size_t(matrix)];
}

// Packs parts that are known to fit. A matrix that turns out to hold what its format cannot counts as not loaded.
template <class Parts>
void Executor::pack_parts(int matrix, const Parts& parts, const std::vector<const float*>& bias, Pool::Turn& turn) {
  const Matrix& m = program_.matrices[size_t(matrix)];
  missing_ += loaded_[size_t(matrix)];
  loaded_[size_t(matrix)] = false;
  std::atomic<bool> fits{true};
  turn.run(threads_, [&](Team& team) {
    if (!pack_part(m.shape, kernels_, parts, team, weights_.matrix(matrix))) fits.store(false);
  });
  if (!fits.load()) throw unfit(m.shape, weights_.matrix(matrix), m.name);
  if (m.bias) pack_bias(m.shape, bias, weights_.bias(matrix));
  missing_--;
  loaded_[size_t(matrix)] = true;
}

void Executor::pack(int matrix, const std::vector<Source>& parts, const std::vector<const float*>& bias) {
  const Matrix& m = checked_matrix(matrix);
  const MatrixShape& shape = m.shape;
  bool fits = parts.size() == shape.parts.size() && bias.size() == (m.bias ? parts.size() : 0);
  for (size_t i = 0; fits && i < parts.size(); i++)
    fits = parts[i].rows == shape.parts[i] && parts[i].cols == shape.k && parts[i].type == parts[0].type;
  if (!fits)
    throw Error(ErrorKind::array,
                text("[load] the sources of ", m.name, " must have the recorded shapes and one dtype; check them"));
  Pool::Turn turn(Pool::instance());
  pack_parts(matrix, parts, bias, turn);
}

void Executor::pack_codes(int matrix, const std::vector<CodeSource>& parts, const std::vector<const float*>& bias) {
  const Matrix& m = checked_matrix(matrix);
  std::string problems = shape_problems(m.shape, parts);
  if (bias.size() != (m.bias ? parts.size() : 0))
    problems +=
        text(problems.empty() ? "" : "; ", "there must be ", m.bias ? parts.size() : 0, " biases, got ", bias.size());
  Pool::Turn turn(Pool::instance());
  if (problems.empty()) {
    std::vector<std::string> found(static_cast<size_t>(threads_));
    turn.run(threads_,
             [&](Team& team) { found[size_t(team.index)] = value_problem(m.shape, parts, team.index, team.size); });
    for (const std::string& problem : found)
      if (problems.empty()) problems = problem;
  }
  if (!problems.empty())
    throw Error(ErrorKind::array, text("[load] the codes of ", m.name, ": ", problems, "; check the checkpoint"));
  pack_parts(matrix, parts, bias, turn);
}

void Executor::set_vector(int id, const float* values, int64_t n) {
  if (id < 0 || size_t(id) >= program_.vectors.size() || program_.vectors[size_t(id)] != n)
    throw Error(ErrorKind::array,
                text("[load] there is no vector ", id, " of ", n, " floats; use the ids the program gave"));
  Pool::Turn turn(Pool::instance());
  std::copy(values, values + n, weights_.vector(id));
  const size_t slot = program_.matrices.size() + size_t(id);
  missing_ -= !loaded_[slot];
  loaded_[slot] = true;
}

void Executor::set_sharing(int64_t repeat_rows, int64_t own_rows) {
  if (repeat_rows < 1 || repeat_rows > kRepeatRows || own_rows < 1)
    throw Error(ErrorKind::option, text("[sharing] rows must be from 1 to ", kRepeatRows, " and at least 1, got ",
                                        repeat_rows, " and ", own_rows, "; measure them again"));
  Pool::Turn turn(Pool::instance());
  repeat_rows_ = repeat_rows;
  own_rows_ = own_rows;
}

size_t Executor::linear_work(int matrix, int64_t rows) const {
  const MatrixShape& shape = program_.matrices[size_t(matrix)].shape;
  LinearArgs args{};
  args.format = shape.format;
  args.gated = shape.gated;
  args.n = shape.n();
  args.k = shape.k;
  size_t work = 0;
  const auto see = [&](int64_t m) {
    args.m = int(m);
    work = std::max(work, kernels_.linear_scratch(args, shape.panels()));
  };
  for (int64_t m = 1; m <= std::min<int64_t>(rows, 16); m++) see(m);
  for (int64_t m = 16; m < std::min<int64_t>(rows, 512); m += 16) see(m);  // kernels divide rows into even parts
  see(rows);
  return work;
}

size_t Executor::most_prepared(int rows) const {
  size_t bytes = 0;
  for (Format f : formats_) bytes = std::max(bytes, Worker::most_prepared(kernels_, f, rows, input_width_));
  return bytes;
}

ScratchSizes Executor::scratch_sizes(int64_t rows, int64_t keys) const {
  ScratchSizes sizes{page_up(size_t(std::min(rows, kRepeatRows) * norm_width_) * sizeof(float)), 0, 0, 0, 0};
  sizes.prepared = page_up(most_prepared(int(std::min(rows, kMatmulRows))));
  for (const Routine& r : program_.routines) {
    sizes.work = std::max(sizes.work, kernels_.attend_scratch(program_.kv_format, r.kv.head_dim, keys));
    if (r.reads_cross())
      sizes.work = std::max(sizes.work, kernels_.attend_scratch(program_.kv_format, program_.cross.head_dim, keys));
    const auto see = [&](int matrix, int64_t m) { sizes.work = std::max(sizes.work, linear_work(matrix, m)); };
    const auto local = [&](size_t bytes) { sizes.local = std::max(sizes.local, page_up(bytes)); };
    for (const Op& op : r.ops)
      std::visit(Overloaded{[&](const Linear& o) { see(o.weight, rows); },
                            [&](const HeadLinear& o) {
                              for (int matrix : o.weights) see(matrix, Worker::chunk_rows(rows));
                              local(Worker::head_scratch(program_, o, kernels_, rows));
                            },
                            [&](const Experts& o) {
                              const int64_t m = Worker::chunk_rows(rows);
                              for (const std::vector<int>* list : {&o.gate_up, &o.down})
                                for (int matrix : *list) see(matrix, m);
                              for (int matrix : {o.shared_gate_up, o.shared_down})
                                if (matrix >= 0) see(matrix, m);
                              local(Worker::expert_scratch(program_, o, kernels_, rows));
                            },
                            [&](const Attention& o) {
                              if (o.bias.any())
                                sizes.bias = page_up(size_t(kAttendRows * bias_stride(keys)) * sizeof(float));
                            },
                            [](const auto&) {}},
                 op);
  }
  sizes.work = page_up(sizes.work);
  return sizes;
}

// Captures want every op's output.
Sharing Executor::sharing_for(int64_t rows, bool captures) const {
  if (captures) return Sharing::share;
  if (rows <= repeat_rows_) return Sharing::repeat;
  return threads_ > 1 && rows >= own_rows_ * threads_ ? Sharing::rows : Sharing::share;
}

// Memory for steps of up to `rows` rows over contexts of up to `keys` keys. Contexts grow a token a step, so their room
// doubles.
void Executor::reserve(int64_t rows, int64_t keys) {
  if (rows <= rows_ && keys <= keys_) return;
  rows = std::max(rows_, round_up(rows, 16));
  if (keys > keys_) keys = std::max(keys, std::min(2 * keys_, most_positions_));
  keys = std::max(keys, keys_);
  if (rows > rows_) {
    const size_t floats = page_up(size_t(rows) * size_t(width_) * sizeof(float));
    const size_t prepared = most_prepared(int(rows));
    activations_ = Arena(floats + prepared, "activations");
    prepared_offset_ = floats;
  }
  const ScratchSizes sizes = scratch_sizes(rows, keys);
  scratch_ = Arena(sizes.total() * size_t(threads_), "scratch");
  sizes_ = sizes;
  rows_ = rows;
  keys_ = keys;
}

void Executor::check_summary(const Routine& r) const {
  const Linear* last = std::get_if<Linear>(&r.ops.back());  // it writes the output
  if (last == nullptr || program_.matrices[size_t(last->weight)].shape.gated)
    throw Error(ErrorKind::array, text("[summary] the output of ", r.name,
                                       " must be logits, got what no matrix gives; leave the summary out"));
}

void Executor::profile(bool enable) {
  Pool::Turn turn(Pool::instance());
  profiled_ = enable;
  if (!enable) return;
  times_.clear();
  for (const Routine& r : program_.routines) times_.push_back({std::vector<OpTime>(r.ops.size()), {}, {}});
}

std::vector<RoutineTimes> Executor::times() const {
  Pool::Turn turn(Pool::instance());
  return times_;
}

void Executor::run(int index, const Batch& batch, KvCache& cache, KvCache* cross, float* output, Capture* capture,
                   float* summary, const float* scales) {
  const Routine& r = routine(index);
  auto& [plan, limits, group, cross_group, rotary] = routines_[size_t(index)];
  Pool::Turn turn(Pool::instance());
  Stopwatch watch;
  if (missing_ != 0)
    throw Error(ErrorKind::array,
                text("[run] ", missing_, " weights are not loaded; load every matrix and vector first"));
  check_caches(program_, r, cache, cross);
  if (summary) check_summary(r);
  step_.load(batch, cache, cross, limits);
  reserve(batch.rows, step_.longest());
  rotary.reserve(step_.longest(), threads_, turn);
  CaptureTargets targets;
  if (capture) targets = prepare_capture(r, batch, *capture);
  for (int i = 0; i < plan.attentions; i++) counters_[size_t(i)].next.store(0, std::memory_order_relaxed);

  if (plan.divides) step_.divide(group, r.kv.heads, threads_);
  if (plan.divides_cross)
    step_.divide_cross(cross_group, program_.cross.heads, divides_by_heads(program_.cross, threads_) ? 1 : threads_);
  RoutineTimes* times = profiled_ ? &times_[size_t(index)] : nullptr;
  const StepShared shared = {program_,
                             r,
                             plan,
                             weights_,
                             kernels_,
                             step_,
                             rotary,
                             counters_.get(),
                             reinterpret_cast<float*>(activations_.data()),
                             rows_,
                             activations_.data() + prepared_offset_,
                             scratch_.data(),
                             sizes_.total(),
                             output,
                             output_ld(index),
                             sharing_for(batch.rows, capture != nullptr),
                             capture ? &targets : nullptr,
                             summary,
                             scales,
                             times};
  turn.run(threads_, [&](Team& team) {
    const bool timed = times && team.index == 0;
    if (timed) times->setup.seconds += watch.lap();
    Worker(shared, sizes_, team).run();
    if (timed) watch.lap();
  });
  if (times == nullptr) return;
  times->finish.waited += watch.lap();
  times->setup.calls++;
  times->finish.calls++;
}

}  // namespace pyllm
