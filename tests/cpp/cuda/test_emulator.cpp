// The emulation that CUDA kernels are tested on: right results for right kernels, and that wrong ones are found.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "errors.h"
#include "tensor.cuh"

namespace pyllm {
namespace cuda {
namespace {

// The message of the Error that `launch` ends with; empty: none.
template <class F>
std::string error_of(F launch) {
  try {
    launch();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

float noise(unsigned& state) {
  state = state * 1664525u + 1013904223u;
  return float(state >> 8) / (1 << 23) - 1.0f;
}

class Emulator : public ::testing::TestWithParam<unsigned> {
 public:
  void SetUp() override { emu::set_seed(GetParam()); }
  void TearDown() override { emu::set_seed(0); }
};

__global__ void indices(int* out, int n) {
  const int i =
      int(((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x * blockDim.y * blockDim.z +
          (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
  if (i < n) out[i] += i;
}
TEST_P(Emulator, RunsEveryThreadOnce) {
  const int n = 2 * 3 * 2 * 5 * 3 * 2;
  std::vector<int> out(n - 1, 1);
  PYLLM_LAUNCH(indices, dim3(2, 3, 2), dim3(5, 3, 2), 0, nullptr, out.data(), n - 1);
  for (int i = 0; i < n - 1; i++) ASSERT_EQ(out[size_t(i)], i + 1);
}

__global__ void reductions(const float* x, float* sum, float* most, int n) {
  float s = 0.0f, m = -INFINITY;
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    s += x[blockIdx.x * n + i];
    m = fmaxf(m, x[blockIdx.x * n + i]);
  }
  s = block_sum(s);
  m = block_max(m);
  if (threadIdx.x == blockDim.x - 1) sum[blockIdx.x] = s, most[blockIdx.x] = m;
}
TEST_P(Emulator, ReducesOverBlocks) {
  const int rows = 3, n = 300;
  std::vector<float> x(rows * n), sum(rows), most(rows);
  for (int i = 0; i < rows * n; i++) x[size_t(i)] = float(i * 7 % 31 - 400);
  PYLLM_LAUNCH(reductions, rows, 96, 0, nullptr, x.data(), sum.data(), most.data(), n);
  for (int r = 0; r < rows; r++) {
    float s = 0.0f, m = -INFINITY;
    for (int i = 0; i < n; i++) s += x[size_t(r * n + i)], m = std::max(m, x[size_t(r * n + i)]);
    EXPECT_EQ(sum[size_t(r)], s);  // integers: any order gives the same
    EXPECT_EQ(most[size_t(r)], m);
  }
}

__global__ void shuffles(int* out) {
  const int lane = int(threadIdx.x);
  if (lane < 16) {  // half of a warp, by itself
    out[lane] = __shfl_xor_sync(0x0000ffffu, lane, 5);
    out[32 + lane] = __shfl_up_sync(0x0000ffffu, lane, 3, 8);
  }
  out[64 + lane] = __shfl_down_sync(kWarp, lane, 3, 8);
  out[96 + lane] = __shfl_sync(kWarp, lane, 11, 16);
  out[128 + lane] = int(__ballot_sync(kWarp, lane % 3 == 0));
  out[160 + lane] = __any_sync(kWarp, lane == 7) * 4 + __all_sync(kWarp, lane < 31) * 2 + __all_sync(kWarp, lane < 32);
  out[192 + lane] = __reduce_add_sync(kWarp, lane - 20);
  out[224 + lane] = __reduce_max_sync(kWarp, -5 - lane);
}
TEST_P(Emulator, ExchangesWithinWarps) {
  std::vector<int> out(256);
  PYLLM_LAUNCH(shuffles, 1, 32, 0, nullptr, out.data());
  for (int l = 0; l < 32; l++) {
    const auto at = [&](int row) { return out[size_t(row * 32 + l)]; };
    if (l < 16) {
      EXPECT_EQ(at(0), l ^ 5);
      EXPECT_EQ(at(1), l % 8 >= 3 ? l - 3 : l);
    }
    EXPECT_EQ(at(2), l % 8 + 3 < 8 ? l + 3 : l);
    EXPECT_EQ(at(3), l / 16 * 16 + 11);
    EXPECT_EQ(unsigned(at(4)), 0x49249249u);
    EXPECT_EQ(at(5), 5);
    EXPECT_EQ(at(6), 31 * 16 - 20 * 32);
    EXPECT_EQ(at(7), -5);
  }
}

// c = a b^T of 16 x 16 by tensor cores, double-buffered; Wait: how many groups the loop leaves under way.
template <class T, int Wait>
__global__ void products(const T* a, const T* b, float* c, int k) {
  __shared__ __align__(16) T tiles[2][2][16][16];
  const int lane = int(threadIdx.x), r = lane / 2, h = lane % 2 * 8;
  const auto load = [&](int stage, int p) {
    cp_async16(&tiles[stage][0][r][h], a + r * k + p + h);
    cp_async16(&tiles[stage][1][r][h], b + r * k + p + h);
    cp_async_commit();
  };
  float sums[2][4] = {};
  load(0, 0);
  for (int p = 0, stage = 0; p < k; p += 16, stage ^= 1) {
    if (p + 16 < k) load(stage ^ 1, p + 16);
    if (p + 16 < k) cp_async_wait<Wait>();
    else cp_async_wait<0>();
    __syncwarp();
    u32 fa[4], fb[4];
    ldmatrix4(fa, &tiles[stage][0][lane % 16][lane / 16 * 8]);
    ldmatrix4(fb, &tiles[stage][1][lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]);
    Number<T>::mma(sums[0], fa, fb[0], fb[1]);
    Number<T>::mma(sums[1], fa, fb[2], fb[3]);
    __syncwarp();
  }
  for (int j = 0; j < 2; j++)
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 16 + j * 8 + lane % 4 * 2 + i % 2] = sums[j][i];
}
template <class T, int Wait>
float worst_product() {
  const int k = 80;
  unsigned state = 5;
  std::vector<T> a(16 * k), b(16 * k);
  for (auto* each : {&a, &b})
    for (T& x : *each) x = from_float<T>(noise(state));
  std::vector<float> c(256);
  PYLLM_LAUNCH((products<T, Wait>), 1, 32, 0, nullptr, a.data(), b.data(), c.data(), k);
  float worst = 0.0f;
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) {
      double want = 0.0;
      for (int p = 0; p < k; p++) want += double(to_float(a[size_t(i * k + p)])) * to_float(b[size_t(j * k + p)]);
      const float off = std::fabs(float(want) - c[size_t(i * 16 + j)]);
      worst = off <= worst ? worst : off;  // NaN counts as worst
    }
  return worst;
}
TEST_P(Emulator, MultipliesOnTensorCores) {
  EXPECT_LT((worst_product<bf16, 1>()), 1e-5f);
  EXPECT_LT((worst_product<f16, 1>()), 1e-5f);
}
TEST_P(Emulator, ShowsAWaitThatIsMissing) { EXPECT_FALSE((worst_product<f16, 2>()) < 1e-2f); }

__global__ void transposed(const uint16_t* x, unsigned* out) {
  PYLLM_DYN_SHARED(uint16_t, tile);
  for (int i = int(threadIdx.x); i < 256; i += 32) tile[i] = x[i];
  __syncwarp();
  u32 four[4], two[2];
  ldmatrix4_trans(four, tile + threadIdx.x * 8);
  ldmatrix2_trans(two, tile + threadIdx.x % 16 * 8);
  for (int i = 0; i < 4; i++) out[i * 32 + threadIdx.x] = four[i];
  for (int i = 0; i < 2; i++) out[(4 + i) * 32 + threadIdx.x] = two[i];
}
TEST_P(Emulator, TransposesMatrices) {
  std::vector<uint16_t> x(256);
  for (size_t i = 0; i < x.size(); i++) x[i] = uint16_t(i);
  std::vector<unsigned> out(6 * 32);
  PYLLM_LAUNCH(transposed, 1, 32, 512, nullptr, x.data(), out.data());
  for (unsigned m = 0; m < 6; m++)
    for (unsigned l = 0; l < 32; l++) {
      const unsigned first = m % 4 * 64 + l % 4 * 2 * 8 + l / 4;
      EXPECT_EQ(out[m * 32 + l], first | (first + 8) << 16);
    }
}

__global__ void no_barrier(float* out) {
  __shared__ float slots[64];
  slots[threadIdx.x] = float(threadIdx.x);
  out[threadIdx.x] = slots[(threadIdx.x + 63) % 64];
  __syncthreads();
  slots[threadIdx.x] = -1.0f;
}
TEST(EmulatorOrder, ShowsABarrierThatIsMissing) {
  int wrong[2] = {0, 0};
  for (unsigned seed : {0u, 7u}) {
    emu::set_seed(seed);
    std::vector<float> out(64);
    for (int twice = 0; twice < 2; twice++) PYLLM_LAUNCH(no_barrier, 1, 64, 0, nullptr, out.data());
    for (int i = 0; i < 64; i++) wrong[seed != 0] += out[size_t(i)] != float((i + 63) % 64);
  }
  emu::set_seed(0);
  EXPECT_LE(wrong[0], 1);
  EXPECT_GT(wrong[1], 8);
}

__global__ void unwritten(float* out) {
  PYLLM_DYN_SHARED(float, x);
  out[threadIdx.x] = x[threadIdx.x];
}
TEST_P(Emulator, SharedMemoryBeginsAsNaN) {
  std::vector<float> out(32);
  PYLLM_LAUNCH(unwritten, 1, 32, 128, nullptr, out.data());
  for (float x : out) EXPECT_TRUE(x != x);
}

__global__ void deadlock() {
  if (threadIdx.x < 40) __syncthreads();
  else __syncwarp();
}
__global__ void wrong_mask() { __syncwarp(threadIdx.x < 16 ? 0xffff0000u : 0xffffffffu); }
__global__ void other_operations() {
  if (threadIdx.x < 16) __syncwarp();
  else __shfl_sync(kWarp, 1.0f, 0);
}
__global__ void alone(float* out) {
  u32 a[4] = {}, b = 0;
  float c[4] = {};
  if (threadIdx.x == 0) return;
  mma_bf16(c, a, b, b);
  out[0] = c[0];
}
__global__ void crooked(char* p) {
  PYLLM_DYN_SHARED(char, x);
  cp_async16(x, p);
}
TEST_P(Emulator, ReportsMistakes) {
  alignas(16) char bytes[64] = {};
  float out = 0.0f;
  EXPECT_TRUE(has(error_of([&] { PYLLM_LAUNCH(deadlock, 1, 64, 0, nullptr); }), "deadlock"));
  EXPECT_TRUE(has(error_of([&] { PYLLM_LAUNCH(wrong_mask, 1, 32, 0, nullptr); }), "not in the mask"));
  EXPECT_TRUE(has(error_of([&] { PYLLM_LAUNCH(other_operations, 1, 32, 0, nullptr); }), "different warp operations"));
  EXPECT_TRUE(has(error_of([&] { PYLLM_LAUNCH(alone, 1, 32, 0, nullptr, &out); }), "all 32 lanes"));
  EXPECT_TRUE(has(error_of([&] { PYLLM_LAUNCH(crooked, 1, 1, 16, nullptr, bytes + 4); }), "multiples of its size"));
  EXPECT_TRUE(has(error_of([&] { PYLLM_LAUNCH(deadlock, 1, 1025, 0, nullptr); }), "1 to 1024 threads"));
  EXPECT_TRUE(has(error_of([&] { PYLLM_LAUNCH(deadlock, 1, 32, 200000, nullptr); }), "more dynamic shared memory"));
  EXPECT_EQ(error_of([&] { PYLLM_LAUNCH(deadlock, 1, 32, 0, nullptr); }), "");  // and goes on
}

__global__ void count(int* counter, int* last) {
  if (atomicAdd(counter, 1) == int(gridDim.x * blockDim.x) - 1) *last += 1;
}
TEST_P(Emulator, LaunchesFromSeveralThreadsTakeTurns) {
  std::vector<int> counters(8), last(8);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 8; i++)
    threads.emplace_back([&, i] { PYLLM_LAUNCH(count, 5, 40, 0, nullptr, &counters[i], &last[i]); });
  for (std::thread& each : threads) each.join();
  for (size_t i = 0; i < 8; i++) EXPECT_EQ(counters[i] * 10 + last[i], 2001);
}

INSTANTIATE_TEST_SUITE_P(Orders, Emulator, ::testing::Values(0u, 7u));

}  // namespace
}  // namespace cuda
}  // namespace pyllm
