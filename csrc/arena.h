// Memory for weights, activations and KV slabs: zeroed, 2 MB aligned and advised for huge pages where that pays, and
// never a silent failure. Memory is not touched here, so the thread that writes a page first decides where it lies.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace pyllm {

class Arena {
 public:
  Arena() = default;
  // `what` names the memory in the error, e.g. "weights". Throws Error(out_of_memory); bytes 0 gives an empty arena.
  Arena(size_t bytes, const char* what);
  ~Arena() { free(); }
  Arena(Arena&& other) noexcept { *this = std::move(other); }
  Arena& operator=(Arena&& other) noexcept;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  size_t huge_bytes() const;  // how much of it huge pages back at this moment

 private:
  void free();
  void* base_ = nullptr;  // what was mapped: may start before data_
  size_t mapped_ = 0;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pyllm
