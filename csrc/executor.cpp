#include "executor.h"

#include <algorithm>

#include "errors.h"
#include "machine.h"

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
      kv_{program_.format, program_.num_layers, program_.num_kv_heads, program_.head_dim},
      plan_(make_plan(program_, kernels.prepared_bytes(program_.format, 1, 1) != 0)),
      weights_(program_),
      loaded_(program_.matrices.size() + program_.vectors.size(), false),
      missing_(int(loaded_.size())),
      counters_(new Counter[size_t(plan_.attentions) + 1]) {
  if (threads < 1 || threads > kMaxThreads)
    throw Error(ErrorKind::option, text("[num_threads] must be from 1 to ", kMaxThreads, ", got ", threads,
                                        "; leave it out for the default"));
  for (const Op& op : program_.ops)
    if (const Attention* attention = std::get_if<Attention>(&op)) group_ = attention->num_heads / program_.num_kv_heads;
  reserve(std::min(kPlannedRows, program_.max_positions), std::min(kPlannedRows, program_.max_positions));
}

void Executor::pack(int matrix, const std::vector<Source>& parts, const std::vector<const float*>& bias) {
  if (matrix < 0 || size_t(matrix) >= program_.matrices.size())
    throw Error(ErrorKind::array, text("[load] there is no matrix ", matrix, "; use the ids the program gave"));
  const Matrix& m = program_.matrices[size_t(matrix)];
  const MatrixShape& shape = m.shape;
  bool fits = parts.size() == shape.parts.size() && bias.size() == (m.bias ? parts.size() : 0);
  for (size_t i = 0; fits && i < parts.size(); i++)
    fits = parts[i].rows == shape.parts[i] && parts[i].cols == shape.k && parts[i].type == parts[0].type;
  if (!fits)
    throw Error(ErrorKind::array,
                text("[load] the sources of ", m.name, " must have the recorded shapes and one dtype; check them"));
  Pool::Turn turn(Pool::instance());
  turn.run(threads_, [&](Team& team) { pack_part(shape, kernels_, parts, team, weights_.matrix(matrix)); });
  if (m.bias) pack_bias(shape, bias, weights_.bias(matrix));
  missing_ -= !loaded_[size_t(matrix)];
  loaded_[size_t(matrix)] = true;
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

ScratchSizes Executor::scratch_sizes(int64_t rows, int64_t keys) const {
  ScratchSizes sizes{page_up(size_t(kFewRows) * size_t(plan_.norm_width) * sizeof(float)), 0, 0};
  for (int m = 1; m <= kFewRows; m++)
    sizes.prepared = std::max(sizes.prepared, page_up(kernels_.prepared_bytes(program_.format, m, plan_.input_width)));
  size_t work = kernels_.attend_scratch(program_.format, program_.head_dim, keys);
  for (const Op& op : program_.ops) {
    const Linear* linear = std::get_if<Linear>(&op);
    if (linear == nullptr) continue;
    const MatrixShape& shape = program_.matrices[size_t(linear->weight)].shape;
    LinearArgs args{};
    args.format = shape.format;
    args.gated = shape.gated;
    args.n = shape.n();
    args.k = shape.k;
    for (int64_t m : {int64_t(1), int64_t(kFewRows), rows}) {
      args.m = int(m);
      work = std::max(work, kernels_.linear_scratch(args, shape.panels()));
    }
  }
  sizes.work = page_up(work);
  return sizes;
}

// Memory for steps of up to `rows` rows over contexts of up to `keys` keys. Contexts grow a token a step, so their room
// doubles.
void Executor::reserve(int64_t rows, int64_t keys) {
  if (rows <= rows_ && keys <= keys_) return;
  rows = std::max(rows_, round_up(rows, 16));
  if (keys > keys_) keys = std::max(keys, std::min(2 * keys_, program_.max_positions));
  keys = std::max(keys, keys_);
  if (rows > rows_) {
    const size_t floats = page_up(size_t(rows) * size_t(plan_.width) * sizeof(float));
    const size_t prepared = kernels_.prepared_bytes(program_.format, int(rows), plan_.input_width);
    activations_ = Arena(floats + prepared, "activations");
    prepared_offset_ = floats;
  }
  const ScratchSizes sizes = scratch_sizes(rows, keys);
  scratch_ = Arena(sizes.total() * size_t(threads_), "scratch");
  sizes_ = sizes;
  rows_ = rows;
  keys_ = keys;
}

void Executor::run(const Batch& batch, KvCache& cache, float* logits) {
  Pool::Turn turn(Pool::instance());
  if (missing_ != 0)
    throw Error(ErrorKind::array,
                text("[run] ", missing_, " weights are not loaded; load every matrix and vector first"));
  if (!(cache.shape() == kv_))
    throw Error(ErrorKind::array, "[run] the cache belongs to another model; use this model's new_cache()");
  step_.load(batch, cache, {program_.table_rows(), program_.max_positions});
  reserve(batch.rows, step_.longest());
  for (int i = 0; i < plan_.attentions; i++) counters_[size_t(i)].next.store(0, std::memory_order_relaxed);

  const bool few = batch.rows <= kFewRows;
  const int64_t heads = batch.sequences * program_.num_kv_heads;
  const bool own_heads = few && (heads % threads_ == 0 || heads >= 4 * threads_);
  if (!own_heads) step_.divide(group_, program_.num_kv_heads, threads_);
  const StepShared shared = {program_,
                             plan_,
                             weights_,
                             kernels_,
                             kv_,
                             step_,
                             counters_.get(),
                             reinterpret_cast<float*>(activations_.data()),
                             rows_,
                             activations_.data() + prepared_offset_,
                             scratch_.data(),
                             sizes_.total(),
                             logits,
                             logits_ld(),
                             few,
                             own_heads};
  turn.run(threads_, [&](Team& team) { run_worker(shared, sizes_, team); });
}

}  // namespace pyllm
