// From tensors to EvaluateArgs, and `evaluate`. Shared by the CPU and the CUDA glue. What the
// tensors hold is checked by the CPU code alone.
#pragma once

#include "../../core/checks.h"
#include "args.h"

namespace diffast {

// The size of a tensor of one dimension; -1 of another.
inline int64_t length_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return sizes.size() == 1 ? int64_t(sizes[0]) : -1;
}

inline bool set_outs(EvaluateArgs* a, First& first, const std::vector<Tensor>& outs) {
  if (outs.size() > size_t(kMaxEvaluateOuts)) return false;
  a->outs = int32_t(outs.size());
  for (int r = 0; r < a->outs; ++r) {
    const First out(outs[r]);
    const ScalarType type = outs[r].scalar_type();
    if (type != ScalarType::Double && type != ScalarType::Long) return false;
    if (out.sizes.size() == 0 || out.samples() != a->samples || !first.is_beside(outs[r]))
      return false;
    void* data = first.writes(outs[r], a->samples * out.elements(), 8, type);
    a->out[r] = {data, out.elements(), type == ScalarType::Long};
  }
  return true;
}

inline bool set_evaluate(EvaluateArgs* a, const Tensor& code, const Tensor& constants,
                         const Tensor& starts, int64_t program, const Tensor& inputs,
                         const OptionalTensor& counts, int64_t column, const Tensor& edges,
                         const Tensor& pieces, int64_t registers, const std::vector<Tensor>& outs) {
  First first(inputs);
  if (first.sizes.size() != 2 || registers < 1 || registers > kMaxRegisters) return false;
  a->samples = first.sizes[0];
  a->columns = first.sizes[1];
  a->registers = int32_t(registers);
  a->instructions = code.sizes().size() == 2 ? int64_t(code.sizes()[0]) : -1;
  a->constant_count = length_of(constants);
  a->programs = length_of(starts) - 1;
  a->edge_count = length_of(edges);
  a->pieces = a->edge_count > 1 ? a->edge_count - 1 : 0;
  a->fields = pieces.sizes().size() == 3 ? int64_t(pieces.sizes()[0]) : -1;
  if (a->programs < 1 || a->edge_count < 0 ||
      !first.bind(&a->inputs, inputs, {a->samples, a->columns}) ||
      !first.bind(&a->code, code, {a->instructions, kInstructionWords}) ||
      !first.bind(&a->constants, constants, {a->constant_count}) ||
      !first.bind(&a->starts, starts, {a->programs + 1}) ||
      !first.bind(&a->edges, edges, {a->edge_count}) ||
      !first.bind(&a->table, pieces, {a->fields, a->pieces, 4}) || !set_outs(a, first, outs))
    return false;
  a->program = program;
  a->counts = nullptr;
  a->count_step = 0;
  if (counts.has_value()) {
    a->count_step = counts->sizes().size() == 2 ? int64_t(counts->sizes()[1]) : 0;
    if (column < 0 || column >= a->count_step ||
        !first.bind(&a->counts, *counts, {a->samples, a->count_step}))
      return false;
  } else if (program < 0 || program >= a->programs) {
    return false;
  }
  if (a->counts) a->counts += column;
  return first.is_apart();
}

// `evaluate`, over a backend's `Run(const EvaluateArgs&, const Tensor& inputs)`.
template <auto Run>
void evaluate(Tensor code, Tensor constants, Tensor starts, int64_t program, Tensor inputs,
              OptionalTensor counts, int64_t column, Tensor edges, Tensor pieces, int64_t registers,
              std::vector<Tensor> outs) {
  EvaluateArgs a;
  need(set_evaluate(&a, code, constants, starts, program, inputs, counts, column, edges, pieces,
                    registers, outs),
       "evaluate");
  Run(a, inputs);
}

}  // namespace diffast
