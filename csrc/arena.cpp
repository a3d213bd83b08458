#include "arena.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "errors.h"
#include "machine.h"
#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace pyllm {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kPage = 4096;

std::string human(size_t bytes) {
  char out[32];
  std::snprintf(out, sizeof out, "%.1f MB", double(bytes) / 1e6);
  return out;
}

size_t up(size_t x, size_t to) { return (x + to - 1) / to * to; }

}  // namespace

Arena::Arena(size_t bytes, const char* what) {
  if (bytes == 0) return;
  const bool huge = bytes >= kHugePage;
  // Asking first: an over-committing kernel grants anything and kills the process later. It takes a few file reads.
  const size_t available = huge ? available_memory() : SIZE_MAX;
  const bool fits = bytes <= available && bytes < SIZE_MAX / 2;
  const size_t size = up(bytes, huge ? kHugePage : kPage);
  const size_t mapped = huge ? size + kHugePage : size;
#if defined(_WIN32)
  void* base = fits ? VirtualAlloc(nullptr, mapped, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) : nullptr;
  const bool granted = base != nullptr;
#else
  void* base = fits ? mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
  const bool granted = base != MAP_FAILED;
#endif
  if (!granted)
    throw Error(ErrorKind::out_of_memory, text("[", what, "] ", human(bytes), " of memory were refused",
                                               available == SIZE_MAX ? "" : text(" (", human(available), " available)"),
                                               "; free memory, or use a smaller model, batch, context or dtype"));
  base_ = base;
  mapped_ = mapped;
  size_ = size;
  data_ = reinterpret_cast<uint8_t*>(huge ? up(uintptr_t(base), kHugePage) : uintptr_t(base));
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, size_, MADV_HUGEPAGE);  // advice: huge_bytes() tells what came of it
#endif
}

Arena& Arena::operator=(Arena&& other) noexcept {
  if (this != &other) {
    free();
    base_ = std::exchange(other.base_, nullptr);
    mapped_ = std::exchange(other.mapped_, 0);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

void Arena::free() {
  if (base_ == nullptr) return;
#if defined(_WIN32)
  VirtualFree(base_, 0, MEM_RELEASE);
#else
  munmap(base_, mapped_);
#endif
  base_ = nullptr;
}

size_t Arena::huge_bytes() const { return size_ ? huge_page_bytes(data_, size_) : 0; }

}  // namespace pyllm
