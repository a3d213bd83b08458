// Our errors as Python's (pyllm/errors.py): what every extension module registers as its translator of exceptions.
#pragma once
#include <pybind11/pybind11.h>

#include <exception>
#include <new>

#include "errors.h"

namespace pyllm {

inline const char* class_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::array:
      return "ArrayError";
    case ErrorKind::program:
      return "ProgramError";
    case ErrorKind::prompt:
      return "PromptError";
    case ErrorKind::context_length:
      return "ContextLengthError";
    case ErrorKind::option:
      return "InvalidOptionError";
    case ErrorKind::device:
      return "DeviceError";
    case ErrorKind::out_of_memory:
      return "OutOfMemoryError";
  }
  return "PyllmError";
}

inline void raise(const char* name, const char* message) {
  PyErr_SetString(pybind11::module_::import("pyllm.errors").attr(name).ptr(), message);
}

inline void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const Error& error) {
    raise(class_of(error.kind()), error.what());
  } catch (const std::bad_alloc&) {
    raise("OutOfMemoryError",
          "[memory] an allocation was refused; free memory or use a smaller model, batch or context");
  }
}

}  // namespace pyllm
