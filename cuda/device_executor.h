// Runs a program on a device: one call per step, everything enqueued on one stream. Owns plans, graphs and staging
// memory; weights, activations and caches lie in memory that the caller allocates.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "capture.h"
#include "device_memory.h"
#include "device_plan.h"
#include "device_profile.h"
#include "device_weights.h"
#include "launches.h"
#include "program.h"
#include "step.h"
#include "step_upload.h"

namespace pyllm {
namespace cuda {

class Executor {
 public:
  // arena: memory for steps, asked for again, and then used instead, when a step needs more. captures: memory for what
  // one step hands out, free again when run() returns. Throws Error(program) for a wrong program.
  Executor(Program program, Type type, std::shared_ptr<Lane> lane, Allocate arena, Allocate captures);

  DeviceWeights& weights() { return weights_; }
  // Uploads the tables that ops need to memory of weights().table_bytes(), once all weights are set.
  void place_tables(uint8_t* address);
  // Makes the arena large enough for prompts of so many rows and for full decode buckets. Throws Error(out_of_memory).
  void reserve(int rows);

  // One step of one routine: enqueues everything that appends keys and values to the cache and writes its output
  // [R, output_ld()] to device memory; with captures also waits for them. consumer: the stream on which the output is
  // used, before and after. Thread-safe; callers take turns. Throws Error(array, prompt, context_length) for a wrong
  // batch or capture, before anything is changed, Error(out_of_memory) likewise, and Error(device).
  void run(int routine, const Batch& batch, KvCache& cache, KvCache* cross, float* output, Stream consumer,
           pyllm::Capture* capture = nullptr);

  // Most rows of a step that run_ahead() takes; 0 where outputs are nothing to choose from, or buckets are off.
  int rows_ahead(int routine) const;
  // One step of a steady decode, each row one sequence's next token, from whose output a next one is chosen on the
  // device; it also makes the device's copy of the step the next step. after: what the step before it chose, whose
  // rows were the same sequences one token earlier: those are the ids then, and batch.ids are not read. choices [R],
  // of this step. Waits for nothing, unless the device's copy has become another step's. Thread-safe; throws as run().
  std::shared_ptr<Flight> run_ahead(int routine, const Batch& batch, KvCache& cache, KvCache* cross,
                                    const Choice* choices, Cuts cuts, const std::shared_ptr<Flight>& after);

  // Whether decode steps are brought up to the sizes of buckets, so that graphs serve them. Changes no result.
  void set_buckets(bool enable);

  // Times every op from now on, from zero, or no longer. Steps then run without graphs, and run() waits for them.
  void profile(bool enable);
  std::vector<RoutineTimes> times() const;  // by routine, on the device's clock

  const Program& program() const { return program_; }
  const Routine& routine(int index) const;  // throws Error(array) when there is no such
  const std::shared_ptr<Lane>& lane() const { return lane_; }
  int64_t output_cols(int index) const;
  int64_t output_ld(int index) const { return round_up(output_cols(index), kPanel); }
  size_t arena_bytes() const;
  size_t pinned_bytes() const;
  size_t graphs() const;      // decode buckets that run as graphs by now
  size_t sent_bytes() const;  // of steps' integers and block addresses, in all

 private:
  // Where a step of some sizes has its memory in the arena: offsets, and all of it.
  struct Place {
    StepLayout layout;
    size_t buffers = 0, workspace = 0, output = 0, tokens = 0, choosing = 0, bytes = 0;
  };
  struct Bucket {
    Place place;
    int runs = 0;
    Graph graph;
  };
  struct Prepared {
    Plan plan;
    Limits limits;
    std::map<StepSizes, Bucket> buckets;
  };
  // What a step hands out, on the device.
  struct DeviceCapture {
    CaptureTargets targets;
    std::vector<float*> pointers;  // of all sequences of all attentions wanted
    struct Copy {
      float* to;
      const float* from;
      size_t bytes;
    };
    std::vector<Copy> copies;
  };

  // Checks everything, and loads step_. Throws before anything is changed.
  void load(int routine, const Batch& batch, KvCache& cache, KvCache* cross);
  Place place(size_t routine, const StepSizes& sizes, bool with_output, const CaptureTargets* capture = nullptr) const;
  Frame frame(const Place& at, bool has_cross, float* output, int64_t output_ld) const;
  void make_room(size_t bytes);
  bool decodes(size_t routine, const StepSizes& sizes) const;
  bool goes_ahead(int routine) const;  // whether run_ahead() takes its steps now
  Bucket& bucket(size_t routine, const StepSizes& sizes);
  void launch_bucket(size_t routine, Bucket& bucket);
  std::shared_ptr<Flight> new_flight(int rows);
  void run_as_is(size_t routine, const Place& at, float* output, const DeviceCapture* capture);
  void launch(size_t routine, const Frame& frame);
  DeviceCapture device_capture(const Routine& r, const pyllm::CaptureTargets& host) const;

  const Program program_;
  const Type type_;
  const std::shared_ptr<Lane> lane_;
  const Allocate allocate_arena_, allocate_captures_;
  DeviceWeights weights_;
  std::vector<Prepared> routines_;

  mutable std::mutex mutex_;  // taken before the lane's
  bool buckets_ = true, profiled_ = false;
  std::unique_ptr<DeviceProfile> profile_;
  uint8_t* arena_ = nullptr;
  size_t arena_bytes_ = 0;
  Step step_;
  StepUpload upload_;
  std::vector<std::shared_ptr<Flight>> flights_;  // those that nobody else holds are used again
  Event consumed_, produced_;
};

}  // namespace cuda
}  // namespace pyllm
