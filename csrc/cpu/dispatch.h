// Names of the kernel tables, best first. The tables themselves are in kernels.h.
#pragma once
#include <string>
#include <vector>

namespace pyllm {

std::vector<std::string> compiled_kernels();   // in this build
std::vector<std::string> available_kernels();  // of those, what this CPU and operating system run

}  // namespace pyllm
