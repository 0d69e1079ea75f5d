// `gram` on the CPU: rows are made in registers or in the cache, then multiplied and added up.
#include <algorithm>
#include <cmath>
#include <memory>

#include "../../cpu/row_chunks.h"
#include "../../cpu/sums.h"
#include "checks.h"

namespace diffast::cpu {
namespace {

void run_gram(const Kernels& kernel, const GramCall<float>& call) { kernel.gram_float(call); }
void run_gram(const Kernels& kernel, const GramCall<double>& call) { kernel.gram_double(call); }

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

// The part of a call that is the same for all chunks of a sample. With few columns and rows, rows
// and products are made in one loop; otherwise a chunk's rows are made in the cache first.
template <typename T>
struct SampleCall {
  T weight[kFusedRows * kFusedColumns];
  GramCall<T> call = {};

  SampleCall(const CombineArgs& a, const RowWeights<T>& weights, const Scratch<T>& scratch) {
    call.rows = a.rows;
    bool fused = a.inputs <= kFusedColumns && a.rows <= kFusedRows;
    for (int r = 0; fused && r < a.rows; ++r) {
      for (int k = 0; k < a.inputs; ++k) {
        weight[r * a.inputs + k] = weights.value[r][k];
        // The one loop fills its last vectors up with zeros, and 0 times infinity is NaN.
        if (!std::isfinite(weights.value[r][k])) fused = false;
      }
    }
    call.columns = fused ? a.inputs : 0;
    for (int r = 0; !fused && r < a.rows; ++r) call.column[r] = scratch.result[r];
  }

  void run(const CombineArgs& a, const Kernels& kernel, const RowWeights<T>& weights,
           Chunk<T>* chunk, int64_t count, double* sums) {
    for (int k = 0; k < call.columns; ++k) call.column[k] = chunk->column(k);
    if (call.columns == 0) chunk->rows(weights, 0, a.rows);
    call.weight = weight;
    call.sums = sums;
    call.count = count;
    run_gram(kernel, call);
  }
};

template <typename T>
void run_typed(const GramArgs& g) {
  const CombineArgs& a = g.rows;
  const Kernels& kernel = kernels();
  const int sums = gram_sums(g);
  const int64_t chunks = (a.elements + kChunk - 1) / kChunk;
  const auto partials = std::make_unique_for_overwrite<double[]>(a.samples * chunks * sums);
  const auto work = [&](int64_t from, int64_t to) {
    Scratch<T>& scratch = scratch_of_thread<T>();
    Chunk<T> chunk(a, kernel, &scratch, false);
    int64_t known = from / chunks;
    RowWeights<T> weights(a, known);
    SampleCall<T> call(a, weights, scratch);
    for (int64_t item = from; item < to; ++item) {
      const int64_t sample = item / chunks;
      const int64_t begin = item % chunks * kChunk;
      const int64_t count = std::min(kChunk, a.elements - begin);
      if (sample != known) {
        weights = RowWeights<T>(a, sample);
        call = SampleCall<T>(a, weights, scratch);
      }
      known = sample;
      chunk.prepare(weights, sample, begin, count);
      call.run(a, kernel, weights, &chunk, count, &partials[item * sums]);
    }
  };
  const int64_t average = std::max<int64_t>(1, a.elements / chunks);
  share_out(a.samples * chunks, std::max<int64_t>(1, kGrain / average), work);
  finish(g, partials.get(), chunks);
}

void run(const GramArgs& g, const Tensor&) {
  if (g.rows.samples * g.rows.elements == 0)
    std::fill_n(g.sums, g.rows.samples * gram_sums(g), 0.0);
  else if (g.rows.wide)
    run_typed<double>(g);
  else
    run_typed<float>(g);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) { m.impl("gram", TORCH_BOX(&gram<run>)); }

}  // namespace diffast::cpu
