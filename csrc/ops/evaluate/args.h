// One call of `evaluate`, in plain numbers and pointers. No torch header is included here.
#pragma once

#include <cstdint>

namespace diffast {

constexpr int kMaxRegisters = 256;
constexpr int kMaxEvaluateOuts = 16;
constexpr int kInstructionWords = 5;  // opcode, target, a, b, c

// What a program may write: a float64 or an int64 tensor.
struct EvaluateOut {
  void* data;        // [samples, elements]
  int64_t elements;  // of one sample
  bool whole;        // int64
};

struct EvaluateArgs {
  const int32_t* code;      // [instructions, kInstructionWords]
  const double* constants;  // [constant_count]
  const int32_t* starts;    // [programs + 1]
  const double* inputs;     // [samples, columns]
  const int64_t* counts;    // program of sample b: counts[b * count_step]; null: `program` for all
  const double* edges;      // [pieces + 1], or empty where there are no pieces
  const double* table;      // [fields, pieces, 4]
  EvaluateOut out[kMaxEvaluateOuts];
  int64_t samples, columns, count_step;
  int64_t instructions, constant_count, programs, program;
  int64_t fields, pieces, edge_count;
  int32_t registers, outs;
};

}  // namespace diffast
