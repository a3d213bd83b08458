// Where the time of steps goes on a device: events between ops, read when a step is done.
#pragma once
#include <cstddef>
#include <vector>

#include "profile.h"
#include "runtime.h"

namespace pyllm {
namespace cuda {

class DeviceProfile {
 public:
  explicit DeviceProfile(const Program& program);  // from zero

  // Of one step, in this order: its start, before its first op and after each op, its end, for which the host waits.
  void begin(Stream stream);
  void mark(Stream stream);
  void end(const Program& program, size_t routine, const Step& step);

  // By routine. setup: what brings the step to the device. Nothing waits for other threads, and finish is empty.
  const std::vector<RoutineTimes>& times() const { return times_; }

 private:
  std::vector<RoutineTimes> times_;
  std::vector<Event> events_;
  size_t marks_ = 0;
};

}  // namespace cuda
}  // namespace pyllm
