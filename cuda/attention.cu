// Chooses how a step attends, and joins the pieces that blocks along the keys left. Everything is chosen from the sizes
// of a step or, where that would make a row depend on its neighbours, on the device from its own sequence's.
#include "attention_mma.cuh"

namespace pyllm {
namespace cuda {
namespace {

// One block a (row, query head): the chunks that the row sees, in ascending order.
__global__ void __launch_bounds__(128)
    join_kernel(const __grid_constant__ AttendArgs a, const __grid_constant__ StepView step, Pieces pieces,
                int most_rows) {
  const int row = blockIdx.x, head = blockIdx.y, s = blockIdx.z;
  let_next_begin();
  const int e = int(a.kv.head_dim), ep = padded(e);
  const Sequence seq = sequence_of(step, s);
  if (row >= seq.rows || seq.rows > most_rows || seq.keys <= 0) return;
  const Seen seen = seen_by(a, step.positions[seq.row0 + row], seq.keys);
  const bool exact = a.type == Type::f32;
  for (int d = threadIdx.x; d < e; d += blockDim.x) {
    Softmax state{-INFINITY, 0.0f};
    float out = 0.0f;
    for (int chunk = seen.begin / kChunkKeys; chunk <= (seen.end - 1) / kChunkKeys; chunk++) {
      const float* piece = partial_of(pieces, a.num_heads, ep, s, row, head, chunk);
      const Fold fold = join(exact, state, {piece[0], piece[1]});
      out = fmaf(piece[kPartialHead + d], fold.take, out * fold.keep);
    }
    store(a.out, seq.row0 + row, int64_t(head) * e + d, out * inverse_of(state.sum));
  }
}

int64_t chunks_of(const StepView& step) { return (step.longest + kChunkKeys - 1) / kChunkKeys; }
int64_t partial_bytes(const AttendArgs& a, const StepView& step, int64_t rows) {
  return step.sequences * rows * a.num_heads * chunks_of(step) * (padded_head(a.kv.head_dim) + kPartialHead) *
         int64_t(sizeof(float));
}

// Cross attention is attention to other blocks without causality, window or bias.
AttendArgs settled(AttendArgs a) {
  if (!a.cross) return a;
  a.causal = false;
  a.window = 0;
  a.bias = {};
  return a;
}
StepView settled(const AttendArgs& a, StepView step) {
  if (step.most_rows < 1) step.most_rows = 1;  // idle rows only: a launch has at least one tile
  if (!a.cross) return step;
  step.blocks = step.cross_blocks;
  step.table_width = step.cross_width;
  step.context = step.cross_context;
  step.longest = step.longest_cross;
  return step;
}

}  // namespace

Pieces cut(const AttendArgs& a, const StepView& step, int rows, int64_t blocks) {
  Pieces pieces;
  pieces.chunks = int(chunks_of(step));
  pieces.rows = rows;
  pieces.partial = static_cast<float*>(a.workspace);
  pieces.split =
      pieces.partial && pieces.chunks > 1 && blocks < kFewBlocks && partial_bytes(a, step, rows) <= kPartialBytes;
  if (!pieces.split) {
    pieces.each = pieces.chunks > 1 ? pieces.chunks : 1;
  } else {
    const int64_t wanted = (kFewBlocks + blocks - 1) / blocks;  // blocks along the keys
    pieces.each = wanted < pieces.chunks ? int((pieces.chunks + wanted - 1) / wanted) : 1;
  }
  return pieces;
}

void join_pieces(const AttendArgs& a, const StepView& step, const Pieces& pieces, int most_rows, Stream stream) {
  PYLLM_LAUNCH(join_kernel, dim3(pieces.rows, a.num_heads, step.sequences), dim3(128), 0,
               static_cast<cudaStream_t>(stream), a, step, pieces, most_rows);
}

// Never less for a larger step, though a larger step may need none.
size_t attend_workspace(const AttendArgs& args, const StepView& given) {
  const StepView step = settled(args, given);
  if (chunks_of(step) <= 1) return 0;
  const int64_t bytes = partial_bytes(args, step, step.most_rows);
  return size_t(bytes < kPartialBytes ? bytes : kPartialBytes);
}

void attend(const AttendArgs& args, const StepView& given, Stream stream) {
  const AttendArgs a = settled(args);
  const StepView step = settled(args, given);
  if (step.rows <= 0 || step.sequences <= 0) return;
  if (mma_takes(a)) {
    // Which of both takes a sequence, the kernels see from its own rows.
    const bool bf = a.type == Type::bf16, many = step.most_rows > kDecodeRows;
    (bf ? decode_bf16 : decode_f16)(a, step, stream);
    if (many) (bf ? prefill_bf16 : prefill_f16)(a, step, stream);
  } else {
    attend_plain(a, step, stream);
  }
  if (a.weights) attend_weights(a, step, stream);
}

}  // namespace cuda
}  // namespace pyllm
