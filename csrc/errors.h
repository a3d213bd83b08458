// The one exception type of the core: a sentence and the Python class (pyllm.errors) it becomes. The text reads
// `[where] rule, what was given, what to do`.
#pragma once
#include <exception>
#include <sstream>
#include <string>
#include <utility>

namespace pyllm {

enum class ErrorKind { array, program, prompt, context_length, option, device, out_of_memory };

class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}
  ErrorKind kind() const { return kind_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorKind kind_;
  std::string message_;
};

// text("rows ", 3, " of ", 4) == "rows 3 of 4"
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace pyllm
