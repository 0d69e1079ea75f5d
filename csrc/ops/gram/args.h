// One call of `gram`, in plain numbers and pointers. No torch header is included here.
#pragma once

#include "../combine/args.h"

namespace diffast {

constexpr int kMaxGramInputs = 8;
constexpr int kMaxGramRows = 4;
constexpr int kMaxGramSums = kMaxGramRows * (kMaxGramRows + 3) / 2;

struct GramArgs {
  CombineArgs rows;            // every y is null: no row is stored
  double* sums;                // [samples, rows (rows + 1) / 2]: (0, 0), (0, 1), ..., (1, 1), ...
  double* partials = nullptr;  // a GPU launch's partial sums [samples, chunks, sums]
  bool totals = false;         // the sum of each row's elements follows, in `rows` more columns
};

// On a GPU so many elements of a sample make one partial sum of each pair of rows.
constexpr int64_t kGramChunk = 128;

constexpr int64_t gram_chunks(const CombineCall& a) {
  return (a.elements + kGramChunk - 1) / kGramChunk;
}

constexpr int gram_sums(const GramArgs& g) {
  return g.rows.rows * (g.rows.rows + 1) / 2 + (g.totals ? g.rows.rows : 0);
}

}  // namespace diffast
