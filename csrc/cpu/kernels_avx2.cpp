#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)  // clang knows no such pragma
#define DIFFAST_HAS_AVX2_BUILD 1
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>

#include "kernels.h"

#if defined(DIFFAST_HAS_AVX2_BUILD)
// Everything below is compiled for AVX2 and half conversions. Headers with functions that are not
// always inlined are included above. FMA stays off: contraction would change the bits.
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#include "../core/half.h"
#include "../core/normal.h"
#include "../core/row.h"
#include "../ops/combine_error/norm.h"

namespace diffast::cpu::avx2 {
namespace {
#define DIFFAST_AVX2 1
#define DIFFAST_ISA_NAME "avx2"
#include "kernels.inc"
static_assert(kVectorBytes == 32);
}  // namespace
}  // namespace diffast::cpu::avx2
#pragma GCC pop_options
#endif

namespace diffast::cpu {

const Kernels* kernels_avx2() {
#if defined(DIFFAST_HAS_AVX2_BUILD)
  const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  return runs ? &avx2::kTable : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace diffast::cpu
