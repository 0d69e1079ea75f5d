// `gram` on the CPU: rows are made in registers or in the cache, then multiplied and added up.
#include <algorithm>
#include <cmath>
#include <memory>

#include "../../cpu/row_chunks.h"
#include "checks.h"

namespace diffast::cpu {
namespace {

// Adds up a sample's chunks in order, whichever threads made them.
void finish(const GramArgs& g, const double* partials, int64_t chunks) {
  const int sums = gram_sums(g);
  for (int64_t sample = 0; sample < g.rows.samples; ++sample) {
    for (int s = 0; s < sums; ++s) {
      double sum = 0;
      for (int64_t i = 0; i < chunks; ++i) sum = sum + partials[(sample * chunks + i) * sums + s];
      g.sums[sample * sums + s] = one_nan(sum);
    }
  }
}

// Whether each row is one of the columns, with the weight 1, and every column is a row; sets which.
template <typename T>
bool rows_are_columns(const CombineArgs& a, const RowWeights<T>& weights, int* which) {
  unsigned seen = 0;
  for (int r = 0; r < a.rows; ++r) {
    int ones = 0, zeros = 0;
    for (int k = 0; k < a.inputs; ++k) {
      const T weight = weights.value[r][k];
      ones += weight == T(1);
      zeros += weight == T(0);
      if (weight == T(1)) which[r] = k;
    }
    if (ones != 1 || zeros != a.inputs - 1) return false;
    seen |= 1u << which[r];
  }
  return seen == (1u << a.inputs) - 1;
}

// Makes the sums of a chunk whose rows are columns, without making rows. Returns whether the sums
// are finite. Otherwise they are not the result: 0 times an infinity is NaN, which spoils every
// row.
template <typename T>
bool column_sums(const GramArgs& g, const int* which, Chunk<T>& chunk, double* sums) {
  const CombineArgs& a = g.rows;
  GramCall<T> call;
  for (int r = 0; r < a.rows; ++r) call.column[r] = chunk.column(which[r]);
  call.weight = nullptr;
  call.sums = sums;
  call.columns = 0;
  call.rows = a.rows;
  call.totals = g.totals;
  call.count = chunk.count();
  kernels().of<T>().gram(call);
  return std::all_of(sums, sums + gram_sums(g), [](double sum) { return std::isfinite(sum); });
}

// Makes the sums of a chunk. With few columns and rows, rows and products are made in one loop;
// otherwise the rows are made in the cache first.
template <typename T>
void chunk_sums(const GramArgs& g, const RowWeights<T>& weights, Chunk<T>& chunk, double* sums) {
  const CombineArgs& a = g.rows;
  int which[kMaxRows];
  if (rows_are_columns(a, weights, which) && column_sums(g, which, chunk, sums)) return;
  bool fused = a.inputs <= kFusedColumns && a.rows <= kFusedRows;
  // The one loop fills its last vectors up with zeros, and 0 times infinity is NaN.
  for (int r = 0; fused && r < a.rows; ++r)
    for (int k = 0; k < a.inputs; ++k) fused = fused && std::isfinite(weights.value[r][k]);
  GramCall<T> call;
  for (int k = 0; fused && k < a.inputs; ++k) call.column[k] = chunk.column(k);
  if (!fused) chunk.rows(weights, 0, a.rows);
  for (int r = 0; !fused && r < a.rows; ++r) call.column[r] = chunk.result(r);
  call.weight = weights.value;
  call.sums = sums;
  call.columns = fused ? a.inputs : 0;
  call.rows = a.rows;
  call.totals = g.totals;
  call.count = chunk.count();
  kernels().of<T>().gram(call);
}

template <typename T>
void run_typed(const GramArgs& g) {
  const CombineArgs& a = g.rows;
  const int sums = gram_sums(g);
  const int64_t chunks = chunks_of(a.elements, kChunk);
  const auto partials = std::make_unique_for_overwrite<double[]>(a.samples * chunks * sums);
  const auto make = [&](Chunk<T>& chunk, const RowWeights<T>& weights, int64_t item, int64_t) {
    chunk_sums(g, weights, chunk, &partials[item * sums]);
    return true;
  };
  make_chunks<T>(a, kChunk, false, make);
  finish(g, partials.get(), chunks);
}

void run(const GramArgs& g, const Tensor&) {
  if (g.rows.samples * g.rows.elements == 0)
    std::fill_n(g.sums, g.rows.samples * gram_sums(g), 0.0);
  else
    g.rows.wide ? run_typed<double>(g) : run_typed<float>(g);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) { m.impl("gram", TORCH_BOX(&gram<run>)); }

}  // namespace diffast::cpu
