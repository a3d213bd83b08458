// The ops of one step as kernel launches, in order, on one stream.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device_plan.h"
#include "device_profile.h"
#include "device_weights.h"
#include "launch.h"
#include "program.h"

namespace pyllm {
namespace cuda {

// Where the values go that a step hands out besides its output: device addresses, dense float32.
struct CaptureTargets {
  std::vector<float*> rows;            // by op: its output [rows, cols], nullptr: not wanted
  std::vector<float* const*> weights;  // by op: device array of a pointer for each sequence, nullptr: not wanted
};

// One step in device memory.
struct Frame {
  StepView step;
  bool has_cross = false;  // whether there is a cross cache to store to
  int64_t capacity = 0;    // rows that the buffers have room for
  uint8_t *buffers = nullptr, *workspace = nullptr;
  float* output = nullptr;  // [R, output_ld]
  int64_t output_ld = 0;
  const CaptureTargets* capture = nullptr;
};

class Launches {
 public:
  Launches(const Program& program, size_t routine, const Plan& plan, const DeviceWeights& weights, Type type,
           const Frame& frame, Stream stream);
  size_t workspace();                          // bytes of scratch that any op needs; of the frame only sizes count
  void run(DeviceProfile* profile = nullptr);  // which is marked before the first op and after each

 private:
  const Buffer& buffer(int id) const { return r_.buffers[size_t(id)]; }
  int count(int id) const { return buffer(id).rows == Rows::T ? f_.step.rows : f_.step.logits; }
  View view(int id) const;
  NormWeights norm_weights(const Norm& o) const;
  bool takes_on(size_t linear) const;  // whether this linear does its norm itself in this step
  LinearArgs linear_args(const Linear& o, int norm) const;
  KvView kv_view(const KvShape& kv, int layer) const;
  AttendArgs attend_args(const Attention& o, size_t op) const;
  AttendArgs attend_args(const CrossAttention& o, size_t op) const;

  // Scratch of a mixture of experts.
  struct Mixture {
    RouteArgs route;
    View hidden, y;                // rows of all experts one after the other: [rows * (top_k + shared), ...]
    size_t linear = 0, bytes = 0;  // where the scratch of the shared expert's matmuls begins, and all of it
  };
  Mixture mixture(const Experts& o) const;
  LinearArgs shared_args(const Experts& o, const Mixture& m, bool down) const;

  size_t needs(const Op& op, size_t index) const;
  void apply(const Embed& o, size_t);
  void apply(const Rotary& o, size_t op);
  void apply(const Norm& o, size_t op);
  void apply(const HeadNorm& o, size_t op);
  void apply(const Linear& o, size_t op);
  void apply(const HeadLinear& o, size_t op);
  void apply(const Experts& o, size_t op);
  void apply(const Attention& o, size_t op);
  void apply(const StoreCross& o, size_t);
  void apply(const CrossAttention& o, size_t op);
  void apply(const Select& o, size_t);
  void capture(size_t op);

  const Program& p_;
  const size_t routine_;
  const Routine& r_;
  const Plan& plan_;
  const DeviceWeights& w_;
  const Type type_;
  const Frame& f_;
  const Stream stream_;
};

}  // namespace cuda
}  // namespace pyllm
