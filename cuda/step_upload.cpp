#include "step_upload.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "errors.h"

namespace pyllm {
namespace cuda {
namespace {

constexpr int64_t kArray = 64;  // bytes: what arrays begin on

int64_t blocks_for(int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

template <class T>
T* at(uint8_t* base, size_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

// `count` values, then `fill` up to `all`.
void put(int32_t* to, const int32_t* from, int64_t count, int64_t all, int32_t fill) {
  std::copy(from, from + count, to);
  std::fill(to + count, to + all, fill);
}

}  // namespace

StepSizes sizes_of(const Step& step) {
  const Batch& b = step.batch();
  StepSizes sizes;
  sizes.rows = int(b.rows);
  sizes.sequences = int(b.sequences);
  sizes.logits = int(b.logits);
  sizes.types = b.token_types != nullptr;
  for (int64_t s = 0; s < b.sequences; s++) {
    sizes.most_rows = std::max(sizes.most_rows, b.starts[s + 1] - b.starts[s]);
    sizes.longest = std::max<int64_t>(sizes.longest, b.context[s]);
    if (!step.has_cross()) continue;
    const int32_t tokens = b.cross_context ? b.cross_context[s] : b.context[s];
    sizes.longest_cross = std::max<int64_t>(sizes.longest_cross, tokens);
  }
  sizes.width = blocks_for(sizes.longest);
  sizes.cross_width = blocks_for(sizes.longest_cross);
  return sizes;
}

StepLayout::StepLayout(const StepSizes& sizes) : sizes_(sizes) {
  const auto take = [&](int64_t count, size_t each) {
    const size_t begin = bytes_;
    bytes_ += size_t(round_up(count * int64_t(each), kArray));
    return begin;
  };
  ids_ = take(sizes.rows, sizeof(int32_t));
  positions_ = take(sizes.rows, sizeof(int32_t));
  types_ = take(sizes.types ? sizes.rows : 0, sizeof(int32_t));
  sequence_ = take(sizes.rows, sizeof(int32_t));
  starts_ = take(sizes.sequences + 1, sizeof(int32_t));
  context_ = take(sizes.sequences, sizeof(int32_t));
  logit_rows_ = take(sizes.logits, sizeof(int32_t));
  cross_context_ = take(sizes.cross_width > 0 ? sizes.sequences : 0, sizeof(int32_t));
  pointers_ = take(sizes.pointers, sizeof(float*));
  choices_ = take(sizes.chooses >= 0 ? sizes.logits : 0, sizeof(Choice));
  blocks_ = take(sizes.sequences * sizes.width, sizeof(uint8_t*));
  cross_blocks_ = take(sizes.sequences * sizes.cross_width, sizeof(uint8_t*));
}

StepView StepLayout::view(uint8_t* device) const {
  StepView v;
  v.ids = at<int32_t>(device, ids_);
  v.positions = at<int32_t>(device, positions_);
  if (sizes_.types) v.types = at<int32_t>(device, types_);
  v.sequence = at<int32_t>(device, sequence_);
  v.starts = at<int32_t>(device, starts_);
  v.context = at<int32_t>(device, context_);
  v.logit_rows = at<int32_t>(device, logit_rows_);
  v.blocks = at<uint8_t*>(device, blocks_);
  v.table_width = sizes_.width;
  if (sizes_.cross_width > 0) {
    v.cross_blocks = at<uint8_t*>(device, cross_blocks_);
    v.cross_width = sizes_.cross_width;
    v.cross_context = at<int32_t>(device, cross_context_);
  }
  v.rows = sizes_.rows;
  v.sequences = sizes_.sequences;
  v.logits = sizes_.logits;
  v.most_rows = sizes_.most_rows;
  v.longest = sizes_.longest;
  v.longest_cross = sizes_.longest_cross;
  return v;
}

void StepLayout::write(const Step& step, const StepExtras& extras, uint8_t* host) const {
  const Batch& b = step.batch();
  std::memset(host, 0, bytes_);
  put(at<int32_t>(host, ids_), b.ids, b.rows, sizes_.rows, 0);
  put(at<int32_t>(host, positions_), b.positions, b.rows, sizes_.rows, 0);
  if (sizes_.types) put(at<int32_t>(host, types_), b.token_types, b.rows, sizes_.rows, 0);
  int32_t* sequence = at<int32_t>(host, sequence_);
  for (int64_t s = 0; s < b.sequences; s++) std::fill(sequence + b.starts[s], sequence + b.starts[s + 1], int32_t(s));
  std::fill(sequence + b.rows, sequence + sizes_.rows, -1);
  put(at<int32_t>(host, starts_), b.starts, b.sequences + 1, sizes_.sequences + 1, 0);
  // Idle sequences have a row each: a bucket has as many rows as sequences.
  for (int64_t s = b.sequences; s < sizes_.sequences; s++) at<int32_t>(host, starts_)[s + 1] = int32_t(s + 1);
  put(at<int32_t>(host, context_), b.context, b.sequences, sizes_.sequences, 0);
  put(at<int32_t>(host, logit_rows_), b.logit_rows, b.logits, sizes_.logits, 0);
  for (int64_t r = b.logits; r < sizes_.logits; r++) at<int32_t>(host, logit_rows_)[r] = int32_t(r);
  std::copy(extras.pointers.begin(), extras.pointers.end(), at<float*>(host, pointers_));
  if (sizes_.chooses >= 0) {
    std::copy(extras.choices, extras.choices + b.logits, choices(host));
    Choice idle;
    idle.temperature = 0.0;  // the cheapest to make
    std::fill(choices(host) + b.logits, choices(host) + sizes_.logits, idle);
  }
  for (int s = 0; s < int(b.sequences); s++)
    std::copy_n(step.blocks(s), blocks_for(b.context[s]), at<const uint8_t*>(host, blocks_) + s * sizes_.width);
  if (sizes_.cross_width == 0) return;
  const int32_t* tokens = b.cross_context ? b.cross_context : b.context;
  put(at<int32_t>(host, cross_context_), tokens, b.sequences, sizes_.sequences, 0);
  for (int s = 0; s < int(b.sequences); s++)
    std::copy_n(step.cross_blocks(s), blocks_for(tokens[s]),
                at<const uint8_t*>(host, cross_blocks_) + s * sizes_.cross_width);
}

void StepLayout::advance(uint8_t* host) const {
  const int32_t* sequence = at<int32_t>(host, sequence_);
  for (int t = 0; t < sizes_.rows; t++) {
    if (sequence[t] < 0) continue;
    ++at<int32_t>(host, positions_)[t];
    ++at<int32_t>(host, context_)[t];
    ++choices(host)[t].step;
  }
}

Flight::~Flight() {
  try {
    wait();
  } catch (const Error&) {  // of which whoever reads tokens is told
  }
}

void Flight::take(const int32_t* device, Stream stream) {
  copy_to_host(tokens_.data(), device, size_t(rows_) * sizeof(int32_t), stream);
  done_.record(stream);
}

const int32_t* Flight::wait() {
  done_.wait();
  return static_cast<const int32_t*>(tokens_.data());
}

void StepUpload::send(const StepLayout& layout, const Step& step, const StepExtras& extras, uint8_t* device,
                      Stream stream, const std::shared_ptr<Flight>& after) {
  wanted_.resize(layout.bytes());
  layout.write(step, extras, wanted_.data());
  const bool there = there_ == device && sizes_ == layout.sizes() && held_.size() == wanted_.size();
  const bool follows = there && after && ids_of_ == after;
  if (after && !follows) {
    const int32_t* tokens = after->wait();
    for (int64_t t = 0; t < step.batch().rows; t++) at<int32_t>(wanted_.data(), 0)[t] = std::max(tokens[t], 0);
  }
  std::vector<Piece> pieces;
  const auto compare = [&](size_t begin, size_t end, bool known) {
    if (begin == end || (there && known && std::memcmp(&held_[begin], &wanted_[begin], end - begin) == 0)) return;
    if (!pieces.empty() && pieces.back().end == begin) pieces.back().end = end;
    else pieces.push_back({begin, end});
  };
  if (!follows) compare(0, layout.ids(), ids_of_ == nullptr);
  compare(layout.ids(), layout.tables(), true);
  compare(layout.tables(), layout.bytes(), true);
  forget();
  if (!pieces.empty()) copy(pieces, device, stream);
  there_ = device;
  sizes_ = layout.sizes();
  std::swap(held_, wanted_);
  if (!follows) ids_of_ = nullptr;
}

void StepUpload::copy(const std::vector<Piece>& pieces, uint8_t* device, Stream stream) {
  Stage& stage = stages_[next_];
  next_ = (next_ + 1) % stages_.size();
  if (stage.used) stage.done.wait();
  stage.used = false;
  if (stage.memory.bytes() < wanted_.size()) stage.memory = PinnedMemory(2 * wanted_.size());
  uint8_t* host = static_cast<uint8_t*>(stage.memory.data());
  for (const Piece& piece : pieces) {
    const size_t bytes = piece.end - piece.begin;
    std::memcpy(host + piece.begin, &wanted_[piece.begin], bytes);
    copy_to_device(device + piece.begin, host + piece.begin, bytes, stream);
    sent_bytes_ += bytes;
  }
  stage.done.record(stream);
  stage.used = true;
}

void StepUpload::advanced(const StepLayout& layout, std::shared_ptr<Flight> by) {
  layout.advance(held_.data());
  ids_of_ = std::move(by);
}

size_t StepUpload::pinned_bytes() const {
  size_t bytes = 0;
  for (const Stage& stage : stages_) bytes += stage.memory.bytes();
  return bytes;
}

}  // namespace cuda
}  // namespace pyllm
