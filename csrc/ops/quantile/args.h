// One call of `quantile`, in plain numbers and pointers. No torch header is included here.
#pragma once

#include "../combine/args.h"

namespace diffast {

constexpr int kMaxQuantileInputs = 8;
constexpr int64_t kMaxQuantileElements = 0x7fffffff;  // counts have 32 bits

struct QuantileArgs {
  CombineArgs rows;         // one row, which is not stored
  double* out;              // [samples]
  int64_t rank;             // the order statistic at or below the quantile, from 0
  double weight;            // of the order statistic after it: 0 <= weight < 1
  void* scratch = nullptr;  // of a GPU launch
};

// What a GPU knows of a sample between two passes.
struct QuantileState {
  uint64_t digits[2];  // the first bits of the two order statistics
  uint32_t rank[2];    // their places among the keys that begin with these bits
  uint32_t nan;
  uint32_t unused;
};

// Scratch of a GPU launch, in words of 64 bits: states, then counts [samples, 2, digits].
constexpr int64_t quantile_words(int64_t samples, int64_t digits) {
  return samples * int64_t(sizeof(QuantileState) / 8 + digits);
}

}  // namespace diffast
