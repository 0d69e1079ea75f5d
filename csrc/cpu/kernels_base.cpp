#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstdlib>
#include <cstring>

#include "../core/half.h"
#include "../core/normal.h"
#include "../core/row.h"
#include "../ops/combine_error/norm.h"
#include "kernels.h"

namespace diffast::cpu {
namespace base {
namespace {
#define DIFFAST_ISA_NAME "base"
#include "kernels.inc"
}  // namespace
}  // namespace base

const Kernels& kernels_base() { return base::kTable; }

const Kernels& kernels() {
  static const Kernels& chosen = [&]() -> const Kernels& {
    const char* wanted = std::getenv("DIFFAST_CPU_ISA");
    const bool only_base = wanted != nullptr && std::strcmp(wanted, "base") == 0;
    const Kernels* avx2 = kernels_avx2();
    return avx2 == nullptr || only_base ? kernels_base() : *avx2;
  }();
  return chosen;
}

}  // namespace diffast::cpu
