// Where the time of steps goes: seconds and bytes of every op, on worker 0's clock.
#pragma once
#include <chrono>
#include <cstdint>
#include <vector>

#include "program.h"
#include "step.h"

namespace pyllm {

// One op's part of all steps so far.
struct OpTime {
  int64_t calls = 0;
  double seconds = 0;  // at work
  double waited = 0;   // at barriers, until the other workers were done
  double bytes = 0;    // weights, keys and values that all workers together had to read
};

// Times of one routine: by op, and of what comes before the first and after the last.
struct RoutineTimes {
  std::vector<OpTime> ops;
  OpTime setup, finish;  // checks of the batch, division of its work; waiting for the other workers to end
};

class Stopwatch {
 public:
  // Seconds since it was made or read last.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// What an op reads of weights, keys and values in a step. Of experts: nothing, they are known only once rows chose.
double bytes_read(const Program& program, const Routine& routine, const Op& op, const Step& step);

}  // namespace pyllm
