// A checksum of bytes that come one run after the other, computed (and read from a file) by all threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pyllm {

class Checksum {
 public:
  static constexpr size_t kChunk = 1 << 20;  // bytes hashed as one: threads divide a run into these

  explicit Checksum(int threads) : threads_(threads) {}

  // More bytes. All runs but the last have a multiple of kChunk; then their division does not change the value.
  void add(const uint8_t* data, size_t bytes);
  // The same for bytes of a file, which are read to `data`. Those that are not there leave what was there. Read, not
  // mapped: a file that someone cuts short meanwhile gives another checksum, not a signal.
  void read(const std::string& file, int64_t offset, uint8_t* data, size_t bytes);

  uint64_t value() const;  // of all bytes so far; independent of threads

 private:
  template <class Fill>
  void each_chunk(const uint8_t* data, size_t bytes, const Fill& fill);

  const int threads_;
  std::vector<uint64_t> chunks_;
};

}  // namespace pyllm
