// `combine_error` on the CPU. Each chunk's rows are made as in `combine`; rows that are not stored
// stay in the cache. The chunk's norms are taken right after that.
#include <algorithm>
#include <memory>

#include "../../cpu/row_chunks.h"
#include "../../cpu/sums.h"
#include "checks.h"
#include "norm.h"

namespace diffast::cpu {
namespace {

double run_norm(const Kernels& kernel, const NormCall<float>& call) {
  return kernel.norm_float(call);
}
double run_norm(const Kernels& kernel, const NormCall<double>& call) {
  return kernel.norm_double(call);
}

// Makes all rows of a chunk. The rows that are not stored stay in the scratch memory.
template <typename T>
bool run_chunk(const ErrorArgs& e, Chunk<T>* chunk, const RowWeights<T>& weights, bool stream) {
  const int first = e.rows.clamp ? 1 : 0;
  if (e.rows.rows - first <= kMaxGroup && !stream) return chunk->rows(weights, first, e.rows.rows);
  // Made in a call of their own, stored rows can bypass the caches, and up to four need no copy.
  // The other rows come first, because a stored row may overwrite an input.
  const bool finite = chunk->rows(weights, e.error, e.rows.rows);
  return chunk->rows(weights, first, e.error) && finite;
}

// The two sums (or the largest magnitude) of a chunk.
template <typename T>
void chunk_norms(const ErrorArgs& e, const Kernels& kernel, const Scratch<T>& scratch,
                 int64_t sample, int64_t count, double* partial) {
  NormCall<T> call = {};
  call.row = scratch.result[e.error];
  call.before = call.after = call.row;
  if (e.form != ErrorForm::kScalar) {
    call.before = scratch.result[e.error + 1];
    call.after = scratch.result[e.error + 2];
  }
  call.atol = T(e.tolerance[2 * sample]);
  call.rtol = T(e.tolerance[2 * sample + 1]);
  call.count = count;
  call.form = e.form;
  call.scaled = true;
  call.largest = e.norm == ErrorNorm::kLinf;
  partial[0] = run_norm(kernel, call);
  partial[1] = 0;
  if (!e.measure) return;
  call.row = call.before = call.after = scratch.result[e.rows.rows - 1];
  call.scaled = false;
  partial[1] = run_norm(kernel, call);
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
  const Kernels& kernel = kernels();
  const bool stream = bytes_moved(a) >= kStreamBytes && !writes_over_inputs(a);
  const int64_t chunks = (a.elements + kChunk - 1) / kChunk;
  const auto partials = std::make_unique_for_overwrite<double[]>(2 * a.samples * chunks);
  const auto work = [&](int64_t from, int64_t to) {
    Scratch<T>& scratch = scratch_of_thread<T>();
    Chunk<T> chunk(a, kernel, &scratch, stream);
    int64_t known = from / chunks;
    RowWeights<T> weights(a, known);
    for (int64_t item = from; item < to; ++item) {
      const int64_t sample = item / chunks;
      const int64_t begin = item % chunks * kChunk;
      const int64_t count = std::min(kChunk, a.elements - begin);
      if (sample != known) weights = RowWeights<T>(a, sample);
      known = sample;
      bool finite = chunk.prepare(weights, sample, begin, count);
      finite = run_chunk(e, &chunk, weights, stream) && finite;
      chunk_norms(e, kernel, scratch, sample, count, &partials[2 * item]);
      if (a.status && !finite) report(a, sample);
    }
  };
  const int64_t average = std::max<int64_t>(1, a.elements / chunks);
  const int64_t grain = a.noises > 0 ? kNoiseGrain : kGrain;
  share_out(a.samples * chunks, std::max<int64_t>(1, grain / average), work);
  finish(e, partials.get(), chunks);
}

void run(const ErrorArgs& e, const Tensor&) {
  if (e.rows.samples * e.rows.elements == 0)
    std::fill(e.norms, e.norms + 2 * e.rows.samples, 0.0);
  else if (e.rows.wide)
    run_typed<double>(e);
  else
    run_typed<float>(e);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) {
  m.impl("combine_error", TORCH_BOX(&combine_error<run>));
  m.impl("combine_error.out", TORCH_BOX(&combine_error_out<run>));
}

}  // namespace diffast::cpu
