#include "device_profile.h"

namespace pyllm {
namespace cuda {

DeviceProfile::DeviceProfile(const Program& program) {
  for (const Routine& r : program.routines) times_.push_back({std::vector<OpTime>(r.ops.size()), {}, {}});
}

void DeviceProfile::begin(Stream stream) {
  marks_ = 0;
  mark(stream);
}

void DeviceProfile::mark(Stream stream) {
  if (marks_ == events_.size()) events_.emplace_back(true);
  events_[marks_++].record(stream);
}

void DeviceProfile::end(const Program& program, size_t routine, const Step& step) {
  const Routine& r = program.routines[routine];
  RoutineTimes& times = times_[routine];
  events_[marks_ - 1].wait();
  times.setup.calls++;
  times.setup.seconds += events_[1].seconds_since(events_[0]);
  for (size_t op = 0; op < r.ops.size(); op++) {
    OpTime& time = times.ops[op];
    time.calls++;
    time.seconds += events_[op + 2].seconds_since(events_[op + 1]);
    time.bytes += bytes_read(program, r, r.ops[op], step);
  }
}

}  // namespace cuda
}  // namespace pyllm
