// One call of `combine_error`, in plain numbers and pointers. No torch header is included here.
#pragma once

#include "../combine/args.h"

namespace diffast {

enum class ErrorForm : int8_t { kScalar, kMax, kSum };
enum class ErrorNorm : int8_t { kL2, kLinf };

constexpr int kMaxUnstored = 4;  // error, before, after, measured

// On a GPU so many elements of a sample make one partial sum. Then the order in which sums are
// added up depends on the number of elements alone.
constexpr int64_t kErrorChunk = 1024;

constexpr int64_t error_chunks(const CombineCall& a) {
  return (a.elements + kErrorChunk - 1) / kErrorChunk;
}

struct ErrorArgs {
  CombineArgs rows;            // a row that is not stored has a null y
  const double* tolerance;     // [samples, 2] of (atol, rtol)
  double* norms;               // [samples, 2] of (scaled error, measured row)
  double* partials = nullptr;  // [samples, chunks, 2] of a GPU's launch, with several chunks
  int8_t error;  // which row is the error; before and after follow it, measured is last
  ErrorForm form;
  ErrorNorm norm;
  bool measure;
};

}  // namespace diffast
