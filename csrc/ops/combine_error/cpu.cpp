// `combine_error` on the CPU. Each chunk's rows are made as in `combine`; rows that are not stored
// stay in the cache. The chunk's norms are taken right after that.
#include <algorithm>
#include <memory>

#include "../../cpu/row_chunks.h"
#include "checks.h"
#include "norm.h"

namespace diffast::cpu {
namespace {

// Makes all rows of a chunk. The rows that are not stored stay in the scratch memory.
template <typename T>
bool make_rows(const ErrorArgs& e, Chunk<T>& chunk, const RowWeights<T>& weights, bool stream) {
  const int first = e.rows.clamp ? 1 : 0;
  if (e.rows.rows - first <= kMaxGroup && !stream) return chunk.rows(weights, first, e.rows.rows);
  // Made in a call of their own, stored rows can bypass the caches, and up to four need no copy.
  // The other rows come first, because a stored row may overwrite an input.
  const bool finite = chunk.rows(weights, e.error, e.rows.rows);
  return chunk.rows(weights, first, e.error) && finite;
}

// The two sums (or the largest magnitude) of a chunk.
template <typename T>
void chunk_norms(const ErrorArgs& e, const Chunk<T>& chunk, int64_t sample, double* partial) {
  const TypedKernels<T>& kernel = kernels().of<T>();
  NormCall<T> call = {};
  call.row = chunk.result(e.error);
  call.before = call.after = call.row;
  if (e.form != ErrorForm::kScalar) {
    call.before = chunk.result(e.error + 1);
    call.after = chunk.result(e.error + 2);
  }
  call.atol = T(e.tolerance[2 * sample]);
  call.rtol = T(e.tolerance[2 * sample + 1]);
  call.count = chunk.count();
  call.form = e.form;
  call.scaled = true;
  call.largest = e.norm == ErrorNorm::kLinf;
  partial[0] = kernel.norm(call);
  partial[1] = 0;
  if (!e.measure) return;
  call.row = call.before = call.after = chunk.result(e.rows.rows - 1);
  call.scaled = false;
  partial[1] = kernel.norm(call);
}

// Adds up a sample's chunks in order, whichever threads made them.
void finish(const ErrorArgs& e, const double* partials, int64_t chunks) {
  for (int64_t sample = 0; sample < e.rows.samples; ++sample) {
    double error = 0, measured = 0;
    for (int64_t i = 0; i < chunks; ++i) {
      const double* partial = partials + 2 * (sample * chunks + i);
      error = e.norm == ErrorNorm::kLinf ? larger(partial[0], error) : error + partial[0];
      measured = measured + partial[1];
    }
    if (e.norm == ErrorNorm::kL2) error = root_mean(error, e.rows.elements);
    e.norms[2 * sample] = one_nan(error);
    e.norms[2 * sample + 1] = one_nan(root_mean(measured, e.rows.elements));
  }
}

template <typename T>
void run_typed(const ErrorArgs& e) {
  const CombineArgs& a = e.rows;
  const bool stream = bypasses_caches(a);
  const int64_t chunks = chunks_of(a.elements, kChunk);
  const auto partials = std::make_unique_for_overwrite<double[]>(2 * a.samples * chunks);
  const auto make = [&](Chunk<T>& chunk, const RowWeights<T>& weights, int64_t item,
                        int64_t sample) {
    const bool finite = make_rows(e, chunk, weights, stream);
    chunk_norms(e, chunk, sample, &partials[2 * item]);
    return finite;
  };
  make_chunks<T>(a, kChunk, stream, make);
  finish(e, partials.get(), chunks);
}

void run(const ErrorArgs& e, const Tensor&) {
  if (e.rows.samples * e.rows.elements == 0)
    std::fill_n(e.norms, 2 * e.rows.samples, 0.0);
  else
    e.rows.wide ? run_typed<double>(e) : run_typed<float>(e);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) {
  m.impl("combine_error", TORCH_BOX(&combine_error<run>));
  m.impl("combine_error.out", TORCH_BOX(&combine_error_out<run>));
}

}  // namespace diffast::cpu
