// Packed weights as one run of bytes: their checksum, and bringing back what an equal program packed before.
#include <cstring>

#include "checksum.h"
#include "executor.h"

namespace pyllm {

uint64_t Executor::checksum() const {
  const Arena& arena = weights_.arena();
  Checksum found(threads_);
  found.add(arena.data(), arena.size());
  return found.value();
}

bool Executor::restore(const std::string& file, int64_t offset, uint64_t checksum) {
  uint8_t* data = weights_.arena().data();
  const size_t size = weights_.arena().size();
  Checksum found(threads_);
  found.read(file, offset, data, size);
  if (found.value() != checksum) {
    std::memset(data, 0, size);  // what is packed next relies on zeros between
    return false;
  }
  loaded_.assign(loaded_.size(), true);
  missing_ = 0;
  return true;
}

}  // namespace pyllm
