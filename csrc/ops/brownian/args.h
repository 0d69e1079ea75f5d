// One call of `brownian`, in plain numbers and pointers. No torch header is included here.
#pragma once

#include <cstdint>

namespace diffast {

struct BrownianArgs {
  const int64_t* streams;  // [samples, 3] of (seed, id, unused)
  const int64_t* nodes;    // [samples, 2]: from, to
  const double* weights;   // [samples, 2]: of V(to), of V(from)
  const void* last;        // V(from) [samples, elements], or null: it is computed
  void* increment;         // [samples, elements]
  void* value;             // V(to) [samples, elements], or null
  int64_t samples;
  int64_t elements;  // of one sample
  int32_t depth;
  bool wide;  // last, increment and value are float64; otherwise float32
};

}  // namespace diffast
