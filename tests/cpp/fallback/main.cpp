// Runs every registered case; the exit status tells whether all passed.
#include <gtest/gtest.h>

int main() {
  auto& state = testing::internal::state();
  int failed = 0;
  for (const auto& test : state.cases) {
    state.failures = 0;
    std::printf("%s\n", test.name.c_str());
    test.run();
    if (state.failures) {
      ++failed;
      std::printf("FAILED %s: %d failures\n", test.name.c_str(), state.failures);
    }
  }
  std::printf("%zu passed, %d failed\n", state.cases.size() - failed, failed);
  return failed != 0;
}
