// `combine` on the CPU: chunks of samples go through the loops of cpu.inc.
#include <algorithm>

#include "../../cpu/row_chunks.h"
#include "checks.h"

namespace diffast::cpu {
namespace {

bool runs_in_place(const CombineArgs& a) {
  if (a.clamp || a.noises > 0 || a.rows > kMaxGroup) return false;
  const DType native = a.wide ? DType::kFloat64 : DType::kFloat32;
  for (int k = 0; k < a.inputs; ++k)
    if (a.x_type[k] != native) return false;
  for (int r = 0; r < a.rows; ++r)
    if (a.y_type[r] != native) return false;
  return true;
}

template <typename T>
void run_typed(CombineArgs a) {
  const bool per_sample = a.weight_table || a.noises > 0 || a.status;
  if (!per_sample) {
    a.elements *= a.samples;
    a.samples = 1;
  }
  const Kernels& kernel = kernels();
  const bool in_place = runs_in_place(a);
  const bool stream = bytes_moved(a) >= kStreamBytes && !writes_over_inputs(a);
  const int64_t chunk = in_place ? kLongChunk : kChunk;
  const int64_t chunks = (a.elements + chunk - 1) / chunk;
  const int64_t average = std::max<int64_t>(1, a.elements / std::max<int64_t>(1, chunks));
  const auto work = [&](int64_t from, int64_t to) {
    Chunk<T> run(a, kernel, &scratch_of_thread<T>(), stream);
    int64_t known = -1;
    RowWeights<T> weights(a, 0);
    for (int64_t item = from; item < to; ++item) {
      const int64_t sample = item / chunks;
      const int64_t begin = item % chunks * chunk;
      const int64_t count = std::min(chunk, a.elements - begin);
      if (a.weight_table && sample != known) weights = RowWeights<T>(a, sample);
      known = sample;
      bool finite = run.prepare(weights, sample, begin, count);
      finite = run.rows(weights, a.clamp ? 1 : 0, a.rows) && finite;
      run.store_clamped();
      if (a.status && !finite) report(a, sample);
    }
  };
  const int64_t grain = a.noises > 0 ? kNoiseGrain : kGrain;
  share_out(a.samples * chunks, std::max<int64_t>(1, grain / average), work);
}

void run(const CombineArgs& a, const Tensor&) {
  if (a.samples * a.elements == 0) return;
  if (a.wide)
    run_typed<double>(a);
  else
    run_typed<float>(a);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) {
  m.impl("combine", TORCH_BOX(&combine<run>));
  m.impl("combine.out", TORCH_BOX(&combine_out<run>));
  m.impl("combine.table", TORCH_BOX(&combine_table<run>));
  m.impl("combine.table_out", TORCH_BOX(&combine_table_out<run>));
}

}  // namespace diffast::cpu
