// One call of `combine`, in plain numbers and pointers. checks.h fills it from tensors; the CPU
// loops and the CUDA launchers read it. No torch header is included here.
#pragma once

#include <cstdint>

#include "../../core/dtype.h"

namespace diffast {

constexpr int kMaxInputs = 16;
constexpr int kMaxRows = 8;
constexpr int kMaxNoises = 2;
constexpr int kMaxColumns = kMaxInputs + 1 + kMaxNoises;  // inputs, the clamped row, noises

// Rows are computed in order; columns are summed in the order inputs, clamped row, noises.
struct CombineArgs {
  const void* x[kMaxInputs];  // [samples, elements] each
  void* y[kMaxRows];          // [samples, elements] each; y[0] may be null: row 0 not stored
  DType x_type[kMaxInputs];
  DType y_type[kMaxRows];
  double weight[kMaxRows * (kMaxInputs + 1)];  // [rows, inputs (+ 1 with a clamp)], host weights
  double noise[kMaxRows * kMaxNoises];         // [rows, noises]
  const double* weight_table;  // [samples, rows, inputs (+ 1)] on the device, or null
  const double* noise_table;   // [samples, rows, noises] on the device, or null
  const int64_t* ids;          // [samples], or null: 0 .. samples - 1
  const int64_t* streams;      // [samples, 3] of (seed, id, word), or null: seed, ids, word
  int64_t* status;             // [samples], or null; set to the stage where a value is not finite
  uint64_t seed;
  int64_t samples;
  int64_t elements;  // of one sample
  uint32_t word;     // stage and purpose, see core/normal.h
  int8_t inputs;
  int8_t rows;
  int8_t noises;
  bool clamp;  // row 0 is clamped to [low, high] and is one more column of the later rows
  bool wide;   // float64 arithmetic; otherwise float32
  double low;
  double high;
};

}  // namespace diffast
