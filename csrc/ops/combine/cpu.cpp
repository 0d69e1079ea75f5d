// `combine` on the CPU: chunks of samples go through the loops of cpu.inc.
#include "../../cpu/row_chunks.h"
#include "checks.h"

namespace diffast::cpu {
namespace {

bool runs_in_place(const CombineArgs& a) {
  if (a.noises > 0 || a.rows > kMaxGroup || (a.clamp && !is_clamped_at_once(a))) return false;
  const DType native = a.wide ? DType::kFloat64 : DType::kFloat32;
  for (int k = 0; k < a.inputs; ++k)
    if (a.x_type[k] != native) return false;
  for (int r = 0; r < a.rows; ++r)
    if (a.y[r] && a.y_type[r] != native) return false;
  return true;
}

template <typename T>
void run_typed(CombineArgs a) {
  const bool per_sample = a.weight_table || a.noises > 0 || a.status;
  if (!per_sample) {
    a.elements *= a.samples;
    a.samples = 1;
  }
  const bool at_once = is_clamped_at_once(a);
  const auto make = [&](Chunk<T>& chunk, const RowWeights<T>& weights, int64_t, int64_t) {
    if (at_once) return chunk.clamped_rows(weights);
    const bool finite = chunk.rows(weights, a.clamp ? 1 : 0, a.rows);
    chunk.store_clamped();
    return finite;
  };
  make_chunks<T>(a, runs_in_place(a) ? kLongChunk : kChunk, bypasses_caches(a), make, at_once);
}

void run(const CombineArgs& a, const Tensor&) {
  if (a.samples * a.elements == 0) return;
  a.wide ? run_typed<double>(a) : run_typed<float>(a);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) {
  m.impl("combine", TORCH_BOX(&combine<run>));
  m.impl("combine.out", TORCH_BOX(&combine_out<run>));
  m.impl("combine.table", TORCH_BOX(&combine_table<run>));
  m.impl("combine.table_out", TORCH_BOX(&combine_table_out<run>));
}

}  // namespace diffast::cpu
