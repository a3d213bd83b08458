#include "checksum.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <memory>

#include "threads.h"

namespace pyllm {
namespace {

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

}  // namespace

// Hashes of the chunks, appended in order. fill(begin) is called by each thread that has some, and what it gives, with
// (begin, bytes), before each is hashed.
template <class Fill>
void Checksum::each_chunk(const uint8_t* data, size_t bytes, const Fill& fill) {
  const size_t before = chunks_.size(), count = (bytes + kChunk - 1) / kChunk;
  chunks_.resize(before + count);
  Pool::Turn turn(Pool::instance());
  turn.run(threads_, [&](Team& team) {
    const Team::Range mine = team.part(int64_t(count));
    if (mine.begin == mine.end) return;
    auto next = fill(size_t(mine.begin) * kChunk);
    for (int64_t i = mine.begin; i < mine.end; i++) {
      const size_t at = size_t(i) * kChunk, n = std::min(kChunk, bytes - at);
      next(at, n);
      Hash hash;
      hash.add(data + at, n);
      chunks_[before + size_t(i)] = hash.value();
    }
  });
}

void Checksum::add(const uint8_t* data, size_t bytes) {
  each_chunk(data, bytes, [](size_t) { return [](size_t, size_t) {}; });
}

void Checksum::read(const std::string& file, int64_t offset, uint8_t* data, size_t bytes) {
  each_chunk(data, bytes, [&](size_t begin) {
    auto in = std::make_shared<std::ifstream>();
    in->rdbuf()->pubsetbuf(nullptr, 0);
    in->open(file, std::ios::binary);
    in->seekg(std::streamoff(offset) + std::streamoff(begin));
    return [in, data](size_t at, size_t n) { in->read(reinterpret_cast<char*>(data + at), std::streamsize(n)); };
  });
}

uint64_t Checksum::value() const {
  Hash all;
  all.add(reinterpret_cast<const uint8_t*>(chunks_.data()), chunks_.size() * sizeof(uint64_t));
  return all.value();
}

}  // namespace pyllm
