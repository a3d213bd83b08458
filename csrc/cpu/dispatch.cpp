// Chooses the table of CPU kernels: the best one that was built and runs here, or the one PYLLM_ISA names.
#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

#include "cpu/features.h"
#include "errors.h"
#include "kernels.h"

namespace pyllm {
namespace {

struct Entry {
  const Kernels* table;
  bool (*runs_here)();
};
// Best first.
const Entry kEntries[] = {
#if PYLLM_HAVE_AMX
    {&kernels_amx, cpu_has_amx},
#endif
#if PYLLM_HAVE_AVX512_BF16
    {&kernels_avx512_bf16, cpu_has_avx512_bf16},
#endif
#if PYLLM_HAVE_AVX512_VNNI
    {&kernels_avx512_vnni, cpu_has_avx512_vnni},
#endif
#if PYLLM_HAVE_AVX512
    {&kernels_avx512, cpu_has_avx512},
#endif
#if PYLLM_HAVE_AVX2_VNNI
    {&kernels_avx2_vnni, cpu_has_avx2_vnni},
#endif
#if PYLLM_HAVE_AVX2
    {&kernels_avx2, cpu_has_avx2},
#endif
    {&kernels_scalar, [] { return true; }},
};

const Kernels& forced(const char* name) {
  if (const Kernels* k = kernels_by_name(name)) return *k;
  std::string message = "[PYLLM_ISA] must name an instruction set that this build has and this CPU runs, got '";
  message += std::string(name) + "'; available:";
  const char* separator = " ";
  for (const std::string& available : available_kernels()) {
    message += separator + available;
    separator = ", ";
  }
  throw Error(ErrorKind::device, message + "; set it to one of these or unset it");
}

const Kernels& choose() {
  const char* name = std::getenv("PYLLM_ISA");
  if (name && *name) return forced(name);
  for (const Entry& e : kEntries)
    if (e.runs_here()) return *e.table;
  return kernels_scalar;
}

}  // namespace

std::vector<std::string> compiled_kernels() {
  std::vector<std::string> names;
  for (const Entry& e : kEntries) names.push_back(e.table->name);
  return names;
}

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Entry& e : kEntries)
    if (e.runs_here()) names.push_back(e.table->name);
  return names;
}

const Kernels* kernels_by_name(const char* name) {
  for (const Entry& e : kEntries)
    if (!std::strcmp(name, e.table->name)) return e.runs_here() ? e.table : nullptr;
  return nullptr;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace pyllm
