// Tiles of y = x W^T by wgmma, for sm_90a: 16-bit weights and x of their type, many rows. The sm_80 tiles
// (tile_core.cuh) are its portable form and have the same epilogue.
//
// A block makes 128 weight rows (64 a warpgroup, wgmma's A) by 256 rows of x (its B). Both lie in shared memory with k
// contiguous, 64 k (128 bytes) a row, in the swizzle of 128 bytes: 16-byte chunk c of row r at chunk c ^ (r % 8).
#include "../tile_copy.cuh"

namespace pyllm {
namespace cuda {
namespace {

struct Shape {
  static constexpr int threads = 256, w_rows = 128, x_rows = 256, step = 64, chunks = 8;
  static constexpr int stages = 4, stage_bytes = (w_rows + x_rows) * step * 2;
  static constexpr int sums_ld = w_rows + 4;
  static constexpr int x_pieces = x_rows * chunks / threads, row_step = threads / chunks;
  static constexpr size_t shared_bytes = size_t(stages) * stage_bytes + 1024;  // the swizzle repeats every 1024 bytes
  static_assert(shared_bytes >= size_t(x_rows) * sums_ld * 4 + 1024, "sums lie where the stages were");
  static __device__ __forceinline__ int place(int row, int c) { return (row * chunks + (c ^ (row & 7))) * 4; }
};

// A matrix in shared memory for wgmma: 128-byte swizzle (bit 62), 1024 bytes from 8 rows to the next 8; addresses and
// strides count 16 bytes. Bits 16 .. 29 have no meaning for swizzled rows.
__device__ __forceinline__ uint64_t descriptor(const void* shared) {
  const uint64_t address = __cvta_generic_to_shared(shared);
  return (address & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Left>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}
// What this thread wrote to shared memory (asynchronous copies that it waited for) is there for wgmma after a barrier.
__device__ __forceinline__ void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Keeps the compiler from moving what defines or reads sums into the time when wgmma owns them.
__device__ __forceinline__ void fence_sums(float (&c)[128]) {
#pragma unroll
  for (int i = 0; i < 128; i++) asm volatile("" : "+f"(c[i])::"memory");
}

// c += w x^T over 16 k. Lane 4 g + t of warp v of the warpgroup has in c[4 n + i] weight row 16 v + g + 8 (i / 2) and
// row 8 n + 2 t + i % 2 of x.
template <class E>
__device__ __forceinline__ void multiply(float (&c)[128], uint64_t w, uint64_t x);
template <>
__device__ __forceinline__ void multiply<bf16>(float (&c)[128], uint64_t w, uint64_t x) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, 1, 1, 1, 0, 0;\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
        "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
        "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]),
        "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]),
        "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
        "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]),
        "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]), "+f"(c[64]),
        "+f"(c[65]), "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]), "+f"(c[72]),
        "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), "+f"(c[78]), "+f"(c[79]), "+f"(c[80]),
        "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]), "+f"(c[88]),
        "+f"(c[89]), "+f"(c[90]), "+f"(c[91]), "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]), "+f"(c[96]),
        "+f"(c[97]), "+f"(c[98]), "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]), "+f"(c[104]),
        "+f"(c[105]), "+f"(c[106]), "+f"(c[107]), "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]), "+f"(c[112]),
        "+f"(c[113]), "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]), "+f"(c[120]),
        "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), "+f"(c[127])
      : "l"(w), "l"(x));
}
template <>
__device__ __forceinline__ void multiply<f16>(float (&c)[128], uint64_t w, uint64_t x) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, 1, 1, 1, 0, 0;\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
        "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
        "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]),
        "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]),
        "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
        "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]),
        "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]), "+f"(c[64]),
        "+f"(c[65]), "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]), "+f"(c[72]),
        "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), "+f"(c[78]), "+f"(c[79]), "+f"(c[80]),
        "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]), "+f"(c[88]),
        "+f"(c[89]), "+f"(c[90]), "+f"(c[91]), "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]), "+f"(c[96]),
        "+f"(c[97]), "+f"(c[98]), "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]), "+f"(c[104]),
        "+f"(c[105]), "+f"(c[106]), "+f"(c[107]), "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]), "+f"(c[112]),
        "+f"(c[113]), "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]), "+f"(c[120]),
        "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), "+f"(c[127])
      : "l"(w), "l"(x));
}

template <class E>
__global__ void __launch_bounds__(Shape::threads, 1) hopper_kernel(const __grid_constant__ TileArgs a) {
  using T = Shape;
  PYLLM_DYN_SHARED(unsigned char, raw);
  unsigned char* const shared = raw + (1024 - __cvta_generic_to_shared(raw) % 1024) % 1024;
  const int x0 = blockIdx.x * T::x_rows, group = threadIdx.x / 128;
  const int64_t w0 = int64_t(blockIdx.y) * T::w_rows;
  const TileRows rows(a, 0);
  const int steps = int(a.w.ld / T::step);
  RowCopier<T, Rows::narrow> copier(a, rows, 0, x0);
  const auto stage = [&](int s) { return reinterpret_cast<u32*>(shared + s % T::stages * T::stage_bytes); };
  constexpr int x_begin = T::w_rows * T::step / 2;  // words: x lies after the weights
  const auto copy = [&](int s) {
    if (s < steps) {
      copy_weights<T>(a.w, stage(s), w0, int64_t(s) * T::step);
      copier.template copy<E>(stage(s) + x_begin, int64_t(s) * T::step);
    }
    cp_async_commit();
  };
  copy(0);
  copy(1);
  float sums[128] = {};
  fence_sums(sums);
#pragma unroll 1
  for (int s = 0; s < steps; s++) {
    cp_async_wait<1>();
    fence_for_wgmma();
    __syncthreads();  // stage s is there, and all warps are past their products of stage s - 2
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < T::step / 16; k++)  // 16 k are 32 bytes: 2 in a descriptor
      multiply<E>(sums, descriptor(stage(s) + group * 64 * T::step / 2) + 2 * k,
                  descriptor(stage(s) + x_begin) + 2 * k);
    wgmma_commit();
    copy(s + 2);  // where stage s - 2 was
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  fence_sums(sums);
  cp_async_wait<0>();
  __syncthreads();
  float* out = reinterpret_cast<float*>(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < 32; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      out[(8 * n + 2 * (lane % 4) + i % 2) * T::sums_ld + 16 * warp + lane / 4 + 8 * (i / 2)] = sums[4 * n + i];
  __syncthreads();
  write_tile(a, a.w, 0, rows, out, T::sums_ld, x0, T::x_rows, w0, T::w_rows);
}

}  // namespace

void tiles_hopper(const TileArgs& a, Type type, Stream stream) {
  const dim3 grid(unsigned((a.m + Shape::x_rows - 1) / Shape::x_rows),
                  unsigned((a.w.n + Shape::w_rows - 1) / Shape::w_rows));
  if (type == Type::f16) {
    PYLLM_LAUNCH(hopper_kernel<f16>, grid, dim3(Shape::threads), Shape::shared_bytes, stream, a);
  } else {
    PYLLM_LAUNCH(hopper_kernel<bf16>, grid, dim3(Shape::threads), Shape::shared_bytes, stream, a);
  }
}

}  // namespace cuda
}  // namespace pyllm
