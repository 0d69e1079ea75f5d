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

}  // namespace diffast
