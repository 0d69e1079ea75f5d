// One call of `combine`, in plain numbers and pointers. checks.h fills it from tensors; the CPU
// loops and the CUDA launchers read it. No torch header is included here.
#pragma once

#include <cstdint>

#include "../../core/dtype.h"
#include "../../core/hd.h"

namespace diffast {

constexpr int kMaxInputs = 16;
constexpr int kMaxRows = 8;
constexpr int kMaxNoises = 2;
constexpr int kMaxColumns = kMaxInputs + 1 + kMaxNoises;  // inputs, the clamped row, noises

// All of a call but weights that the host gives. Rows are computed in order; columns are summed in
// the order inputs, clamped row, noises.
struct CombineCall {
  const void* x[kMaxInputs];  // [samples, elements] each
  void* y[kMaxRows] = {};     // [samples, elements] each; null for a row that is not stored
  DType x_type[kMaxInputs];
  DType y_type[kMaxRows] = {};
  const double* weight_table = nullptr;  // [samples, rows, inputs (+ 1 with a clamp)], or null
  const double* noise_table = nullptr;   // [samples, rows, noises], or null
  const int64_t* ids = nullptr;          // [samples], or null: 0 .. samples - 1
  const int64_t* streams = nullptr;  // [samples, 3] of (seed, id, word), or null: seed, ids, word
  int64_t* status = nullptr;  // [samples], or null; set to the stage where a value is not finite
  uint64_t seed = 0;
  int64_t samples;
  int64_t elements;   // of one sample
  uint32_t word = 0;  // stage and purpose, see core/normal.h
  int8_t inputs;
  int8_t rows;
  int8_t noises = 0;
  bool clamp;         // row 0 is clamped to [low, high] and is one more column of the later rows
  bool wide = false;  // float64 arithmetic; otherwise float32
  double low;
  double high;
};

struct CombineArgs : CombineCall {
  double weight[kMaxRows * (kMaxInputs + 1)];  // [rows, inputs (+ 1 with a clamp)], host weights
  double noise[kMaxRows * kMaxNoises];         // [rows, noises]
};

// What the noise of a sample is made of.
struct Stream {
  uint64_t seed, id;
  uint32_t word;
};

DIFFAST_HD Stream stream_of(const CombineCall& a, int64_t sample) {
  if (a.streams) {
    const int64_t* s = a.streams + 3 * sample;
    return {uint64_t(s[0]), uint64_t(s[1]), uint32_t(s[2])};
  }
  return {a.seed, uint64_t(a.ids ? a.ids[sample] : sample), a.word};
}

}  // namespace diffast
