// Packed weights as one run of bytes: their checksum, and bringing back what an equal program packed before.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <memory>

#include "executor.h"

namespace pyllm {
namespace {

constexpr size_t kChunk = 1 << 20;  // bytes hashed as one: workers divide the whole into these

// Eight lanes of FNV-1a over 64-bit words: an accident is seen, whatever its place; not meant against forgery.
class Hash {
 public:
  void add(const uint8_t* p, size_t n) {
    for (; n >= 64; n -= 64, p += 64) {
      uint64_t words[8];
      std::memcpy(words, p, 64);
      for (int i = 0; i < 8; i++) lanes_[i] = (lanes_[i] ^ words[i]) * kPrime;
    }
    for (; n > 0; n--, p++) lanes_[0] = (lanes_[0] ^ *p) * kPrime;
  }
  uint64_t value() const {
    uint64_t all = 0;
    for (uint64_t lane : lanes_) all = (all ^ lane) * kPrime;
    return all;
  }

 private:
  static constexpr uint64_t kPrime = 0x100000001b3ULL;
  uint64_t lanes_[8] = {1, 2, 3, 4, 5, 6, 7, 8};
};

// Hashes of all chunks, folded in order. fill(begin, end) is called by each worker before it hashes its bytes.
template <class Fill>
uint64_t hash_chunks(const uint8_t* data, size_t bytes, int threads, const Fill& fill) {
  std::vector<uint64_t> hashes((bytes + kChunk - 1) / kChunk);
  Pool::Turn turn(Pool::instance());
  turn.run(threads, [&](Team& team) {
    const Team::Range mine = team.part(int64_t(hashes.size()));
    if (mine.begin == mine.end) return;
    auto next = fill(size_t(mine.begin) * kChunk);
    for (int64_t i = mine.begin; i < mine.end; i++) {
      const size_t at = size_t(i) * kChunk, n = std::min(kChunk, bytes - at);
      next(at, n);
      Hash hash;
      hash.add(data + at, n);
      hashes[size_t(i)] = hash.value();
    }
  });
  Hash all;
  all.add(reinterpret_cast<const uint8_t*>(hashes.data()), hashes.size() * sizeof(uint64_t));
  return all.value();
}

}  // namespace

uint64_t Executor::checksum() const {
  const Arena& arena = weights_.arena();
  return hash_chunks(arena.data(), arena.size(), threads_, [](size_t) { return [](size_t, size_t) {}; });
}

// Read, not mapped: a file that someone cuts short meanwhile gives other bytes, not a signal.
bool Executor::restore(const std::string& file, int64_t offset, uint64_t checksum) {
  uint8_t* data = weights_.arena().data();
  const size_t size = weights_.arena().size();
  const auto fill = [&](size_t begin) {
    auto in = std::make_shared<std::ifstream>();
    in->rdbuf()->pubsetbuf(nullptr, 0);
    in->open(file, std::ios::binary);
    in->seekg(std::streamoff(offset) + std::streamoff(begin));
    return [in, data](size_t at, size_t n) { in->read(reinterpret_cast<char*>(data + at), std::streamsize(n)); };
  };
  if (hash_chunks(data, size, threads_, fill) != checksum) {
    std::memset(data, 0, size);  // what is packed next relies on zeros between
    return false;
  }
  loaded_.assign(loaded_.size(), true);
  missing_ = 0;
  return true;
}

}  // namespace pyllm
