// From tensors to AcceptArgs, with every check `accept` makes. Shared by the CPU and the CUDA glue;
// ops/checks_accept.py says the same words for the reference and Triton.
#pragma once

#include "../combine/checks.h"
#include "args.h"

namespace diffast {

inline void accept_check_place(const char* list, const std::string& index, const Tensor& t,
                               const Tensor& norms) {
  STD_TORCH_CHECK(same_device(t, norms), "accept: ", list, index, " is on ", device_text(t),
                  " but norms is on ", device_text(norms));
  STD_TORCH_CHECK(t.is_contiguous(), "accept: ", list, index, " of shape ", shape_text(t),
                  " is not contiguous but the kernel reads it in row-major order");
}

// The small tensors, [samples, width] each, or [samples] where the width is 0.
inline void accept_check_numbers(const char* name, const Tensor& t, ScalarType type,
                                 int64_t samples, int64_t width, const Tensor& norms) {
  const auto sizes = t.sizes();
  const bool fits = t.scalar_type() == type && sizes.size() == (width ? 2u : 1u) &&
                    sizes[0] == samples && (width == 0 || sizes[1] == width);
  STD_TORCH_CHECK(fits, "accept: ", name, " is ", dtype_text(t), " ", shape_text(t), " but ",
                  type == ScalarType::Long ? "int64 [" : "float64 [", samples,
                  width ? ", " + std::to_string(width) : "", "] is needed");
  accept_check_place(name, "", t, norms);
}

inline void set_rule(AcceptArgs* a, const std::vector<double>& rule,
                     const std::vector<int64_t>& flags) {
  STD_TORCH_CHECK(rule.size() == kRule, "accept: rule has ", rule.size(), " numbers but ", kRule,
                  " are needed");
  STD_TORCH_CHECK(flags.size() == kFlags, "accept: flags has ", flags.size(), " numbers but ",
                  kFlags, " are needed");
  for (const double number : rule)
    STD_TORCH_CHECK(number == number, "accept: a number of the rule is NaN but rules are numbers");
  memcpy(&a->rule, rule.data(), sizeof a->rule);
  memcpy(&a->flags, flags.data(), sizeof a->flags);
  STD_TORCH_CHECK(a->rule.noise_floor > 0, "accept: noise_floor is ", a->rule.noise_floor,
                  " but errors are divided by it");
  STD_TORCH_CHECK(a->flags.last >= 1 && a->flags.last < int64_t(1) << 31,
                  "accept: the last stage is ", a->flags.last, " but 1 to 2147483647 is needed");
  STD_TORCH_CHECK(a->flags.restart >= 0 && a->flags.restart <= a->flags.last,
                  "accept: restart is stage ", a->flags.restart, " but stages are 0 to ",
                  a->flags.last);
}

inline void check_lists(const std::vector<int64_t>& moves, const std::vector<int64_t>& memory) {
  STD_TORCH_CHECK(moves.size() % 3 == 0, "accept: moves has ", moves.size(),
                  " numbers but (stage, source, target) are three each");
  STD_TORCH_CHECK(moves.size() <= 3 * kMaxMoves, "accept: ", moves.size() / 3,
                  " moves but at most ", kMaxMoves, " are supported");
  STD_TORCH_CHECK(memory.size() != 1 && memory.size() <= kMaxMemory + 1, "accept: memory names ",
                  int64_t(memory.size()) - 1, " targets but 1 to ", kMaxMemory, " are supported");
}

// Sources or targets, one shape and any of the dtypes.
struct AcceptPlanes {
  const std::vector<Tensor>& tensors;
  DType type[kMaxPlanes];
  char* data[kMaxPlanes];

  int64_t count() const { return int64_t(tensors.size()); }
  const char* end(int64_t k, int64_t numel) const { return data[k] + numel * dtype_bytes(type[k]); }
};

inline void set_planes(AcceptPlanes* planes, const char* name, const First& first, int64_t samples,
                       const Tensor& norms) {
  for (size_t k = 0; k < planes->tensors.size(); ++k) {
    const Tensor& t = planes->tensors[k];
    STD_TORCH_CHECK(to_dtype(t.scalar_type(), &planes->type[k]), "accept: ", name, "[", k,
                    "] has dtype ", dtype_text(t),
                    " but only float32, float16, bfloat16 and float64 are supported");
    const bool fits = first.sizes.size() > 0 && first.has_shape_of(t) && first.sizes[0] == samples;
    STD_TORCH_CHECK(fits, "accept: ", name, "[", k, "] has shape ", shape_text(t),
                    " but the first plane has shape ", shape_text(first.tensor), " and there are ",
                    samples, " samples");
    if (!first.is_on_device_of(t) || !t.is_contiguous())
      accept_check_place(name, "[" + std::to_string(k) + "]", t, norms);
    planes->data[k] = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  }
}

inline AcceptMove move_of(int64_t stage, int64_t source, int64_t target,
                          const AcceptPlanes& sources, const AcceptPlanes& targets) {
  STD_TORCH_CHECK(
      source >= 0 && source < sources.count() && target >= 0 && target < targets.count(),
      "accept: a move from source ", source, " to target ", target, " but there are ",
      sources.count(), " sources and ", targets.count(), " targets");
  STD_TORCH_CHECK(sources.type[source] == targets.type[target], "accept: source ", source, " is ",
                  dtype_text(sources.tensors[source]), " but target ", target, " is ",
                  dtype_text(targets.tensors[target]));
  return {sources.data[source], targets.data[target], int32_t(stage),
          int32_t(dtype_bytes(sources.type[source]))};
}

inline void check_planes_overlap(const AcceptPlanes& sources, const AcceptPlanes& targets,
                                 int64_t numel) {
  for (int64_t t = 0; t < targets.count(); ++t) {
    const char* begin = targets.data[t];
    const char* end = targets.end(t, numel);
    for (int64_t k = 0; k < sources.count(); ++k) {
      const bool same = sources.data[k] == begin && sources.type[k] == targets.type[t];
      STD_TORCH_CHECK(same || sources.end(k, numel) <= begin || end <= sources.data[k],
                      "accept: target ", t, " overlaps source ", k,
                      " without being the same tensor");
    }
    for (int64_t k = 0; k < t; ++k)
      STD_TORCH_CHECK(targets.end(k, numel) <= begin || end <= targets.data[k], "accept: target ",
                      t, " overlaps target ", k);
  }
}

// What a move has written no later one of its stage reads: then sources are as they were before.
inline void check_order(const AcceptArgs& a, const std::vector<int64_t>& moves) {
  for (int i = 1; i < a.moves; ++i)
    for (int k = 0; k < i; ++k)
      STD_TORCH_CHECK(a.move[k].stage != a.move[i].stage || a.move[k].to != a.move[i].from ||
                          a.move[k].to == a.move[k].from,
                      "accept: at stage ", a.move[i].stage, " source ", moves[3 * i + 1],
                      " is read after it was written as target ", moves[3 * k + 2]);
}

inline void set_moves(AcceptArgs* a, const std::vector<int64_t>& moves,
                      const std::vector<int64_t>& memory, const AcceptPlanes& sources,
                      const AcceptPlanes& targets) {
  a->moves = int32_t(moves.size() / 3);
  for (int i = 0; i < a->moves; ++i) {
    const int64_t* move = &moves[3 * i];
    STD_TORCH_CHECK(move[0] >= 0 && move[0] <= a->flags.last, "accept: a move at stage ", move[0],
                    " but stages are 0 to ", a->flags.last);
    a->move[i] = move_of(move[0], move[1], move[2], sources, targets);
  }
  for (int k = 0; k < a->slots; ++k)
    a->memory[k] = move_of(0, memory[0], memory[k + 1], sources, targets);
  const int64_t numel = a->samples * a->elements;
  if (numel == 0) return;
  check_planes_overlap(sources, targets, numel);
  check_order(*a, moves);
}

// Moves of a tensor onto itself, which the order above still counted.
inline void drop_idle(AcceptArgs* a) {
  int kept = 0;
  for (int i = 0; i < a->moves; ++i)
    if (a->move[i].from != a->move[i].to) a->move[kept++] = a->move[i];
  a->moves = kept;
}

// `accept`, over a backend's `Run(AcceptArgs*, const Tensor& norms)`, which sets `route`.
template <auto Run>
void accept(Tensor norms, Tensor status, std::vector<double> rule, std::vector<int64_t> flags,
            std::vector<int64_t> moves, std::vector<int64_t> memory, std::vector<Tensor> sources,
            Tensor control, Tensor counts, Tensor streams, std::vector<Tensor> targets) {
  AcceptArgs a;
  STD_TORCH_CHECK(norms.dim() == 2, "accept: norms have shape ", shape_text(norms),
                  " but [samples, 2] is needed");
  set_rule(&a, rule, flags);
  check_lists(moves, memory);
  a.samples = norms.size(0);
  a.slots = memory.empty() ? 0 : int32_t(memory.size()) - 1;
  accept_check_numbers("norms", norms, ScalarType::Double, a.samples, 2, norms);
  accept_check_numbers("control", control, ScalarType::Double, a.samples, kControls + a.slots,
                       norms);
  accept_check_numbers("counts", counts, ScalarType::Long, a.samples, kCounts, norms);
  accept_check_numbers("streams", streams, ScalarType::Long, a.samples, 3, norms);
  accept_check_numbers("status", status, ScalarType::Long, a.samples, 0, norms);
  a.norms = static_cast<const double*>(norms.const_data_ptr());
  a.status = static_cast<const int64_t*>(status.const_data_ptr());
  a.control = static_cast<double*>(control.mutable_data_ptr());
  a.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  a.streams = static_cast<int64_t*>(streams.mutable_data_ptr());
  a.elements = 0;
  AcceptPlanes from{sources}, to{targets};
  STD_TORCH_CHECK(sources.size() <= kMaxPlanes, "accept: ", sources.size(), " sources but at most ",
                  kMaxPlanes, " are supported");
  if (!sources.empty() || !targets.empty()) {
    const First first(sources.empty() ? targets[0] : sources[0]);
    set_planes(&from, "sources", first, a.samples, norms);
    STD_TORCH_CHECK(targets.size() <= kMaxPlanes, "accept: ", targets.size(),
                    " targets but at most ", kMaxPlanes, " are supported");
    set_planes(&to, "targets", first, a.samples, norms);
    a.elements = a.samples == 0 ? 0 : first.tensor.numel() / a.samples;
  }
  set_moves(&a, moves, memory, from, to);
  drop_idle(&a);
  Run(&a, norms);
}

}  // namespace diffast
