#include "ops.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "errors.h"
#include "kv_cache.h"
#include "threads.h"

namespace pyllm {
namespace {

// body(row) for every row, divided among the workers.
template <class Body>
void for_rows(int64_t rows, Runtime runtime, const Body& body) {
  Pool::instance().run(runtime.threads, [&](Team& team) {
    const Team::Range mine = team.part(rows);
    for (int64_t r = mine.begin; r < mine.end; r++) body(r);
  });
}

// A copy of x[m, n] with rows as kernels want them: padded with zeros to whole panels.
struct PaddedRows {
  PaddedRows(int64_t m, int64_t n)
      : ld(round_up(n, kPanel) + 16), floats(size_t(m * ld) * sizeof(float) + 64, "operation") {}
  PaddedRows(const float* x, int64_t m, int64_t n) : PaddedRows(m, n) {
    for (int64_t r = 0; r < m; r++) std::memcpy(row(r), x + r * n, size_t(n) * sizeof(float));
  }
  float* row(int64_t r) const { return reinterpret_cast<float*>(floats.data()) + r * ld; }
  int64_t ld;
  Arena floats;
};

}  // namespace

template <class Parts>
void PackedMatrix::fill(const Parts& parts, const std::vector<const float*>& bias, Runtime runtime) {
  data_ = Arena(shape_.bytes(), "packed matrix");
  std::atomic<bool> fits{true};
  Pool::instance().run(runtime.threads, [&](Team& team) {
    if (!pack_part(shape_, runtime.kernels, parts, team, data_.data())) fits.store(false);
  });
  if (!fits.load()) throw unfit(shape_, data_.data(), "the matrix");
  if (bias.empty()) return;
  bias_.resize(shape_.bias_floats());
  pack_bias(shape_, bias, bias_.data());
}

PackedMatrix::PackedMatrix(MatrixShape shape, const std::vector<Source>& parts, const std::vector<const float*>& bias,
                           Runtime runtime)
    : shape_(std::move(shape)) {
  fill(parts, bias, runtime);
}

PackedMatrix::PackedMatrix(MatrixShape shape, const std::vector<CodeSource>& parts,
                           const std::vector<const float*>& bias, Runtime runtime)
    : shape_(std::move(shape)) {
  std::string problems = shape_problems(shape_, parts);
  if (problems.empty()) problems = value_problem(shape_, parts, 0, 1);
  if (!problems.empty()) throw Error(ErrorKind::array, text("[pack] codes: ", problems, "; check them"));
  fill(parts, bias, runtime);
}

void matmul(const PackedMatrix& w, const float* x, int64_t m, const Epilogue& epilogue, float* y, Runtime runtime) {
  const MatrixShape& shape = w.shape();
  const Kernels& kernels = runtime.kernels;
  const int64_t outputs = shape.outputs();
  const PaddedRows input(x, m, shape.k), result(m, outputs);
  const PaddedRows added = epilogue.residual ? PaddedRows(epilogue.residual, m, outputs) : PaddedRows(0, outputs);
  const Arena prepared(kernels.prepared_bytes(shape.format, int(m), shape.k), "operation");
  LinearArgs a{};
  a.format = shape.format;
  a.activation = epilogue.activation;
  a.gated = shape.gated;
  a.m = int(m);
  a.n = shape.n();
  a.k = shape.k;
  a.weights = w.data();
  a.x = prepared.size() ? static_cast<const void*>(prepared.data()) : input.row(0);
  a.x_ld = input.ld;
  a.bias = w.bias();
  a.residual = epilogue.residual ? added.row(0) : nullptr;
  a.residual_ld = added.ld;
  a.y = result.row(0);
  a.y_ld = result.ld;
  a.scale = epilogue.scale;
  a.softcap = epilogue.softcap;
  const size_t each = size_t(round_up(int64_t(kernels.linear_scratch(a, shape.panels())), 64));
  const Arena scratch(each * size_t(runtime.threads), "operation");
  if (prepared.size())
    kernels.prepare(shape.format, input.row(0), input.ld, int(m), shape.k, 0, int(m), prepared.data());
  Pool::instance().run(runtime.threads, [&](Team& team) {
    const Team::Range panels = team.part(shape.panels());
    if (panels.begin < panels.end)
      kernels.linear(a, int(panels.begin), int(panels.end), scratch.data() + each * size_t(team.index));
  });
  for (int64_t r = 0; r < m; r++) std::memcpy(y + r * outputs, result.row(r), size_t(outputs) * sizeof(float));
}

void attention(const AttentionShape& shape, const float* q, const float* k, const float* v, const float* bias,
               float* out, Runtime runtime) {
  const Kernels& kernels = runtime.kernels;
  const int64_t e = shape.head_dim, group = shape.heads / shape.kv_heads;
  KvCache cache({shape.format, 1, shape.kv_heads, e}, 0);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < shape.keys; t += kBlockTokens) ids.push_back(cache.allocate());
  std::vector<KvCache::View> views(ids.size());
  cache.views(ids.data(), int64_t(ids.size()), views.data());
  std::vector<const uint8_t*> blocks;
  for (const KvCache::View& view : views) blocks.push_back(view.base);

  const size_t each = size_t(round_up(int64_t(kernels.attend_scratch(shape.format, e, shape.keys)), 64));
  const Arena scratch(each * size_t(runtime.threads), "operation");
  const int64_t vectors = shape.queries * group, chunks = (vectors + kAttendRows - 1) / kAttendRows;
  std::atomic<int64_t> next{0};
  const auto attend = [&](int64_t head, int64_t first, uint8_t* work) {
    const float* from[kAttendRows];
    const float* added[kAttendRows];
    float* to[kAttendRows];
    const int count = int(std::min<int64_t>(kAttendRows, vectors - first));
    for (int i = 0; i < count; i++) {
      const int64_t row = (first + i) / group, query_head = head * group + (first + i) % group;
      from[i] = q + (row * shape.heads + query_head) * e;
      to[i] = out + (row * shape.heads + query_head) * e;
      if (bias) added[i] = bias + (query_head * shape.queries + row) * shape.keys;
    }
    AttendArgs a;
    a.format = shape.format;
    a.causal = shape.causal;
    a.vectors = count;
    a.group = int(group);
    a.first_head = int(first % group);
    a.head_dim = e;
    a.first_position = shape.keys - shape.queries + first / group;
    a.num_keys = shape.keys;
    a.window = shape.window;
    a.scale = shape.scale;
    a.softcap = shape.softcap;
    a.q = from;
    a.out = to;
    a.bias = bias ? added : nullptr;
    a.blocks = blocks.data();
    a.block_offset = cache.shape().offset(0, int(head));
    kernels.attend(a, work);
  };
  Pool::instance().run(runtime.threads, [&](Team& team) {
    const Team::Range heads = team.part(shape.kv_heads);
    for (int64_t head = heads.begin; head < heads.end; head++)
      for (int64_t t = 0; t < shape.keys; t++) {
        const int64_t at = (t * shape.kv_heads + head) * e;
        uint8_t* block = views[size_t(t / kBlockTokens)].base + cache.shape().offset(0, int(head));
        kernels.kv_append(shape.format, e, int(t % kBlockTokens), k + at, v + at, block);
      }
    team.barrier();
    for (int64_t i; (i = next.fetch_add(1)) < chunks * shape.kv_heads;)
      attend(i % shape.kv_heads, i / shape.kv_heads * kAttendRows, scratch.data() + each * size_t(team.index));
  });
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t n, float* y,
                Runtime runtime) {
  for_rows(rows, runtime,
           [&](int64_t r) { runtime.kernels.layer_norm(x + r * n, weight, bias, eps, n, n, y + r * n); });
}

void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t n, float* y, Runtime runtime) {
  for_rows(rows, runtime, [&](int64_t r) { runtime.kernels.rms_norm(x + r * n, weight, eps, n, n, y + r * n); });
}

void activate(Activation activation, int64_t rows, int64_t n, float* x, Runtime runtime) {
  for_rows(rows, runtime, [&](int64_t r) { runtime.kernels.activate(activation, n, x + r * n); });
}

void gate(Activation activation, const float* g, const float* u, int64_t rows, int64_t n, float* y, Runtime runtime) {
  for_rows(rows, runtime, [&](int64_t r) { runtime.kernels.gate(activation, n, g + r * n, u + r * n, y + r * n); });
}

void softmax(int64_t rows, int64_t n, float* x, Runtime runtime) {
  for_rows(rows, runtime, [&](int64_t r) { runtime.kernels.softmax(n, x + r * n); });
}

void rope(const float* cos_sin, int64_t rotary_dim, bool interleaved, int64_t rows, int64_t heads, int64_t head_dim,
          float* x, Runtime runtime) {
  for_rows(rows, runtime, [&](int64_t r) {
    for (int64_t h = 0; h < heads; h++)
      runtime.kernels.rope(cos_sin + r * rotary_dim, rotary_dim, interleaved, x + (r * heads + h) * head_dim);
  });
}

void embedding(const PackedMatrix& table, const int32_t* ids, int64_t rows, float scale, float* y, Runtime runtime) {
  const MatrixShape& shape = table.shape();
  for_rows(rows, runtime, [&](int64_t r) { look_up(shape, table.data(), ids[r], scale, false, y + r * shape.k); });
}

}  // namespace pyllm
