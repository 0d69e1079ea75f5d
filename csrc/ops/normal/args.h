// One call of `normal`, in plain numbers and pointers. No torch header is included here.
#pragma once

#include <cstdint>

#include "../../core/dtype.h"

namespace diffast {

struct NormalArgs {
  void* y;  // [samples, elements]
  DType y_type;
  const int64_t* ids;  // [samples]
  uint64_t seed;
  int64_t samples;
  int64_t elements;
  uint32_t word;
  double scale;
};

}  // namespace diffast
