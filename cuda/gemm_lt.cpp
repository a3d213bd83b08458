// linear_lt(): products of many rows by cuBLASLt, which is looked for when the program runs (load_cublaslt): nothing of
// pyllm is linked with it. Where its header was not there at build time, or in the emulated module, there is none.
//
// One algorithm is pinned for a matrix: what cuBLASLt proposes for kPinnedRows rows, without split K and without any
// reduction across blocks. So the order in which a row is summed does not depend on the rows beside it.
//
// cuBLASLt's matrices are column-major; a row-major [r, c] is a column-major [c, r]: y^T [n, m] = W [n, k] x^T [k, m].
#include <cstdint>

#include "errors.h"
#include "launch.h"
#include "lt_parts.h"
#if defined(PYLLM_HAVE_CUBLASLT) && !defined(PYLLM_CUDA_EMU)
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <tuple>
#endif

namespace pyllm {
namespace cuda {

#if defined(PYLLM_HAVE_CUBLASLT) && !defined(PYLLM_CUDA_EMU)
namespace {

constexpr size_t kLtBytes = size_t(32) << 20;  // what NVIDIA recommends for Hopper
constexpr int kPinnedRows = 1024;              // many enough for the tiles that large products want
constexpr int kScratchRows = 1024;             // rows whose sums wait for the epilogue at once
constexpr int kWidenRows = 256;  // from which on integer weights are widened first: 2.5 to 3 bytes of traffic a weight,
                                 // a third of the time of 256 rows' products on an H100

// Functions of the library, by the types of its header.
struct Library {
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtGetStatusString) status_text;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) config_get;
  bool loaded = false;

  bool load(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);  // never closed: its handles live as long as we do
    if (!library) return false;
    bool all = true;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      all = all && function;
    };
    find(version, "cublasLtGetVersion");
    find(status_text, "cublasLtGetStatusString");
    find(create, "cublasLtCreate");
    find(matmul, "cublasLtMatmul");
    find(desc_create, "cublasLtMatmulDescCreate");
    find(desc_destroy, "cublasLtMatmulDescDestroy");
    find(desc_set, "cublasLtMatmulDescSetAttribute");
    find(layout_create, "cublasLtMatrixLayoutCreate");
    find(layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(preference_create, "cublasLtMatmulPreferenceCreate");
    find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(config_get, "cublasLtMatmulAlgoConfigGetAttribute");
    return loaded = all && version() / 10000 >= 12;
  }
};

Library& library() {
  static Library l = {};
  return l;
}

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(ErrorKind::device, text("[cuBLASLt] ", what, " must succeed, got ", library().status_text(status),
                                        "; unset its path to use pyllm's own kernels"));
}

cudaDataType_t data_type(Type t) { return t == Type::f32 ? CUDA_R_32F : t == Type::bf16 ? CUDA_R_16BF : CUDA_R_16F; }

class Layout {
 public:
  Layout(Type type, int64_t rows, int64_t cols, int64_t ld) {
    check(library().layout_create(&layout_, data_type(type), uint64_t(rows), uint64_t(cols), ld), "a matrix layout");
  }
  ~Layout() { library().layout_destroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  operator cublasLtMatrixLayout_t() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_;
};

// out [m, n] = scale * (x [m, k] W [n, k]^T) + bias (+ residual).
struct Product {
  Type type, out_type;
  int64_t n, k;
  const void* w = nullptr;
  int64_t w_ld = 0;
  const void* x = nullptr;
  int64_t x_ld = 0;
  void* out = nullptr;
  int64_t out_ld = 0;
  const float* bias = nullptr;
  const void* residual = nullptr;
  int64_t residual_ld = 0;
  float scale = 1.0f;
};

class Operation {
 public:
  explicit Operation(const Product& p) {
    check(library().desc_create(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product's description");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (!p.bias) return;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }
  ~Operation() { library().desc_destroy(desc_); }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  operator cublasLtMatmulDesc_t() const { return desc_; }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    const cublasStatus_t status = library().desc_set(desc_, attribute, &value, sizeof value);
    if (status != CUBLAS_STATUS_SUCCESS) library().desc_destroy(desc_);
    check(status, "a product's description");
  }
  cublasLtMatmulDesc_t desc_;
};

int current_device() {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) throw Error(ErrorKind::device, text("[cuBLASLt] ", cudaGetErrorString(error)));
  return device;
}

// Handles and pinned algorithms, of all devices.
class Pins {
 public:
  cublasLtHandle_t handle(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return handle_locked(device);
  }
  // nullptr: cuBLASLt has none for this product without a reduction.
  const cublasLtMatmulAlgo_t* find(const Product& p) {
    const int device = current_device();
    const Key key(device, int(p.type), int(p.out_type), p.n, p.k, p.bias != nullptr, p.residual != nullptr);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto found = algorithms_.find(key);
    if (found == algorithms_.end()) found = algorithms_.emplace(key, choose(device, p)).first;
    return found->second.known ? &found->second.algorithm : nullptr;
  }

 private:
  using Key = std::tuple<int, int, int, int64_t, int64_t, bool, bool>;
  struct Entry {
    bool known = false;
    cublasLtMatmulAlgo_t algorithm = {};
  };

  cublasLtHandle_t handle_locked(int device) {
    const auto found = handles_.find(device);
    if (found != handles_.end()) return found->second;
    cublasLtHandle_t created;
    check(library().create(&created), "a handle");
    return handles_[device] = created;
  }
  Entry choose(int device, const Product& p) {
    const Operation operation(p);
    const Layout a(p.type, p.k, p.n, p.w_ld), b(p.type, p.k, kPinnedRows, round_up(p.k, 64)),
        d(p.out_type, p.n, kPinnedRows, round_up(p.n, 64));
    cublasLtMatmulPreference_t preference;
    check(library().preference_create(&preference), "a preference");
    const uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint64_t bytes = kLtBytes;
    library().preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof none);
    library().preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    const uint32_t alignment = 16;  // what every view has
    for (auto which : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      library().preference_set(preference, which, &alignment, sizeof alignment);
    cublasLtMatmulHeuristicResult_t results[16];
    int count = 0;
    const cublasStatus_t status =
        library().heuristic(handle_locked(device), operation, a, b, d, d, preference, 16, results, &count);
    library().preference_destroy(preference);
    Entry entry;
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < count && !entry.known; i++) {
      int32_t splits = 0;
      size_t written = 0;
      if (results[i].state != CUBLAS_STATUS_SUCCESS ||
          library().config_get(&results[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits, &written) !=
              CUBLAS_STATUS_SUCCESS ||
          splits > 1)
        continue;
      entry.known = true;
      entry.algorithm = results[i].algo;
    }
    return entry;
  }

  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<Key, Entry> algorithms_;
};

Pins& pins() {
  static Pins* const p = new Pins;  // handles must not outlive the driver at exit
  return *p;
}

void run(const Product& p, int m, void* workspace, Stream stream) {
  const cublasLtMatmulAlgo_t* const algorithm = pins().find(p);
  if (!algorithm)
    throw Error(ErrorKind::device, text("[cuBLASLt] a product must be one that lt_takes() takes, got ", p.n, " x ", p.k,
                                        "; ask it first"));
  const Operation operation(p);
  const Layout a(p.type, p.k, p.n, p.w_ld), b(p.type, p.k, m, p.x_ld),
      c(p.out_type, p.n, m, p.residual ? p.residual_ld : p.out_ld), d(p.out_type, p.n, m, p.out_ld);
  const float beta = p.residual ? 1.0f : 0.0f;
  check(library().matmul(pins().handle(current_device()), operation, &p.scale, p.w, a, p.x, b, &beta,
                         p.residual ? p.residual : p.out, c, p.out, d, algorithm, workspace, kLtBytes,
                         static_cast<cudaStream_t>(stream)),
        "a product");
}

// Whether cuBLASLt's own epilogue does all of it.
bool direct(const LinearArgs& a) {
  if (a.w.gated || a.activation != Activation::none || a.softcap > 0.0f || is_i8(a.w.format)) return false;
  if (a.w.bias && (a.y.type != Type::f32 || a.scale != 1.0f)) return false;  // bias has the type of y
  if (a.residual.data && (a.y.type != Type::f32 || (a.residual.data == a.y.data && a.residual.ld != a.y.ld)))
    return false;
  return a.y.type == Type::f32 || a.y.type == a.type;
}

bool narrows(const LinearArgs& a) { return a.type != Type::f32 && a.x.type == Type::f32; }
bool widens(const LinearArgs& a) { return is_i8(a.w.format) || is_i4(a.w.format); }

// What lies where in the workspace.
struct Places {
  size_t x, w, sums, end;
  explicit Places(const LinearArgs& a) {
    x = kLtBytes;
    w = x + (narrows(a) ? size_t(a.m) * size_t(round_up(a.w.k, 64)) * 2 : 0);
    sums = w + (widens(a) ? size_t(round_up(a.w.n * a.w.ld * 2, 256)) : 0);
    const int rows = a.m < kScratchRows ? a.m : kScratchRows;
    end = sums + (direct(a) ? 0 : size_t(rows) * size_t(round_up(a.w.n, 64)) * 4);
  }
};

Product product_of(const LinearArgs& a) {
  Product p;
  p.type = a.type;
  p.n = a.w.n, p.k = a.w.k;
  p.w = a.w.codes, p.w_ld = a.w.ld;
  p.x = a.x.data, p.x_ld = a.x.ld;
  p.out_type = Type::f32;
  p.out_ld = round_up(a.w.n, 64);
  if (!direct(a)) return p;
  p.out_type = a.y.type;
  p.out = a.y.data, p.out_ld = a.y.ld;
  p.bias = a.w.bias;
  p.residual = a.residual.data, p.residual_ld = a.residual.ld;
  p.scale = a.scale;
  return p;
}

bool knows_types(const LinearArgs& a) {
  const Format f = a.w.format;
  if (widens(a)) return a.type != Type::f32 && a.m >= kWidenRows;
  if (is_f32(f)) return a.type == Type::f32 && a.x.type == Type::f32;
  return a.type == (f == Format::bf16 ? Type::bf16 : Type::f16);
}

}  // namespace

bool load_cublaslt(const char* path) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  return library().loaded || library().load(path);
}

bool lt_takes(const LinearArgs& a) {
  if (!library().loaded || a.norm.kind != NormKind::none || !knows_types(a)) return false;
  const int64_t whole = 16 / size_of(a.type);  // columns of 16 bytes: tensor cores, and one alignment for the pin
  if (a.w.k % whole || a.w.n % 8) return false;
  return pins().find(product_of(a)) != nullptr;
}

size_t lt_workspace(const LinearArgs& a) { return Places(a).end; }

void linear_lt(const LinearArgs& a, void* workspace, Stream stream) {
  const Places at(a);
  char* const memory = static_cast<char*>(workspace);
  Product p = product_of(a);
  if (narrows(a)) {
    const View narrow = {memory + at.x, round_up(a.w.k, 64), a.type};
    narrow_rows(a.x, a.m, a.w.k, narrow, stream);
    p.x = narrow.data, p.x_ld = narrow.ld;
  }
  if (widens(a)) {
    widen_weights(a.w, a.type, memory + at.w, stream);
    p.w = memory + at.w;
  }
  if (direct(a)) return run(p, a.m, workspace, stream);
  p.out = memory + at.sums;
  const char* const x = static_cast<const char*>(p.x);
  for (int row = 0; row < a.m; row += kScratchRows) {
    const int rows = a.m - row < kScratchRows ? a.m - row : kScratchRows;
    p.x = x + int64_t(row) * p.x_ld * size_of(a.type);
    run(p, rows, workspace, stream);
    finish_rows(a, static_cast<const float*>(p.out), p.out_ld, row, rows, stream);
  }
}

#else

bool load_cublaslt(const char*) { return false; }
bool lt_takes(const LinearArgs&) { return false; }
size_t lt_workspace(const LinearArgs&) { return 0; }
void linear_lt(const LinearArgs&, void*, Stream) {
  throw Error(ErrorKind::device, "[cuBLASLt] it must be in the build, got none; install nvidia-cublas and build again");
}

#endif

}  // namespace cuda
}  // namespace pyllm
