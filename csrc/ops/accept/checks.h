// From tensors to AcceptArgs, and `accept`. Shared by the CPU and the CUDA glue.
#pragma once

#include <cstring>

#include "../../core/checks.h"
#include "args.h"

namespace diffast {

inline bool set_rule(AcceptArgs* a, const std::vector<double>& rule,
                     const std::vector<int64_t>& flags) {
  if (rule.size() != kRule || flags.size() != kFlags) return false;
  memcpy(&a->rule, rule.data(), sizeof a->rule);
  memcpy(&a->flags, flags.data(), sizeof a->flags);
  bool numbers = true;
  for (const double number : rule) numbers = numbers && number == number;
  const AcceptFlags& f = a->flags;
  return numbers && a->rule.noise_floor > 0 && f.last >= 1 && f.last < int64_t(1) << 31 &&
         f.restart >= 0 && f.restart <= f.last;
}

// Sources or targets, one shape and any of the dtypes.
struct AcceptPlanes {
  const std::vector<Tensor>& tensors;
  DType type[kMaxPlanes];
  char* data[kMaxPlanes];

  int64_t count() const { return int64_t(tensors.size()); }
  Span span(int64_t k, int64_t numel) const { return Span(data[k], numel * dtype_bytes(type[k])); }
};

// `first` is the first of all planes, which has the batch's samples and is beside `norms`.
inline bool set_planes(AcceptPlanes* planes, const First& first, const First& norms) {
  if (planes->tensors.size() > kMaxPlanes || first.sizes.size() == 0) return false;
  if (first.sizes[0] != norms.samples() || !norms.is_beside(first.tensor)) return false;
  for (size_t k = 0; k < planes->tensors.size(); ++k) {
    const Tensor& t = planes->tensors[k];
    if (!to_dtype(t.scalar_type(), &planes->type[k]) || !first.is_like(t)) return false;
    planes->data[k] = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  }
  return true;
}

inline bool set_move(AcceptMove* move, int64_t stage, int64_t source, int64_t target,
                     const AcceptPlanes& sources, const AcceptPlanes& targets) {
  if (source < 0 || source >= sources.count() || target < 0 || target >= targets.count())
    return false;
  if (sources.type[source] != targets.type[target]) return false;
  *move = {sources.data[source], targets.data[target], int32_t(stage),
           int32_t(dtype_bytes(sources.type[source]))};
  return true;
}

// Whether every target is a source itself or overlaps neither a source nor another target.
inline bool targets_are_apart(const AcceptPlanes& sources, const AcceptPlanes& targets,
                              int64_t numel) {
  for (int64_t t = 0; t < targets.count(); ++t) {
    const Span target = targets.span(t, numel);
    for (int64_t k = 0; k < sources.count(); ++k) {
      const bool same = sources.data[k] == targets.data[t] && sources.type[k] == targets.type[t];
      if (!same && target.overlaps(sources.span(k, numel))) return false;
    }
    for (int64_t k = 0; k < t; ++k)
      if (target.overlaps(targets.span(k, numel))) return false;
  }
  return true;
}

// Whether no move reads what an earlier move of its stage has written: then all sources are read
// as they were before the call. A move of a tensor onto itself writes nothing.
inline bool moves_are_ordered(const AcceptArgs& a) {
  for (int i = 1; i < a.moves; ++i)
    for (int k = 0; k < i; ++k)
      if (a.move[k].stage == a.move[i].stage && a.move[k].to == a.move[i].from &&
          a.move[k].to != a.move[k].from)
        return false;
  return true;
}

inline bool set_moves(AcceptArgs* a, const std::vector<int64_t>& moves,
                      const std::vector<int64_t>& memory, const AcceptPlanes& sources,
                      const AcceptPlanes& targets) {
  for (int i = 0; i < a->moves; ++i) {
    const int64_t* move = &moves[3 * i];
    if (move[0] < 0 || move[0] > a->flags.last) return false;
    if (!set_move(&a->move[i], move[0], move[1], move[2], sources, targets)) return false;
  }
  for (int k = 0; k < a->slots; ++k)
    if (!set_move(&a->memory[k], 0, memory[0], memory[k + 1], sources, targets)) return false;
  const int64_t numel = a->samples * a->elements;
  return numel == 0 || (targets_are_apart(sources, targets, numel) && moves_are_ordered(*a));
}

// Takes out the moves of a tensor onto itself, which the order above still counted.
inline void drop_idle(AcceptArgs* a) {
  int kept = 0;
  for (int i = 0; i < a->moves; ++i)
    if (a->move[i].from != a->move[i].to) a->move[kept++] = a->move[i];
  a->moves = kept;
}

inline bool set_accept(AcceptArgs* a, const Tensor& norms, const Tensor& status,
                       const std::vector<double>& rule, const std::vector<int64_t>& flags,
                       const std::vector<int64_t>& moves, const std::vector<int64_t>& memory,
                       const std::vector<Tensor>& sources, const Tensor& control,
                       const Tensor& counts, const Tensor& streams,
                       const std::vector<Tensor>& targets) {
  if (moves.size() % 3 != 0 || moves.size() > 3 * kMaxMoves) return false;
  if (memory.size() == 1 || memory.size() > kMaxMemory + 1) return false;
  const First first(norms);
  a->moves = int32_t(moves.size() / 3);
  a->slots = memory.empty() ? 0 : int32_t(memory.size()) - 1;
  a->samples = first.samples();
  const ScalarType wide = ScalarType::Double, whole = ScalarType::Long;
  if (!set_rule(a, rule, flags) || !first.has_beside(norms, wide, {a->samples, 2}) ||
      !first.has_beside(control, wide, {a->samples, kControls + a->slots}) ||
      !first.has_beside(counts, whole, {a->samples, kCounts}) ||
      !first.has_beside(streams, whole, {a->samples, 3}) ||
      !first.has_beside(status, whole, {a->samples}))
    return false;
  a->norms = data_of<double>(norms);
  a->status = data_of<int64_t>(status);
  a->control = mutable_data_of<double>(control);
  a->counts = mutable_data_of<int64_t>(counts);
  a->streams = mutable_data_of<int64_t>(streams);
  a->elements = 0;
  AcceptPlanes from{sources}, to{targets};
  if (!sources.empty() || !targets.empty()) {
    const First plane(sources.empty() ? targets[0] : sources[0]);
    if (!set_planes(&from, plane, first) || !set_planes(&to, plane, first)) return false;
    a->elements = plane.elements();
  }
  if (!set_moves(a, moves, memory, from, to)) return false;
  drop_idle(a);
  return true;
}

// `accept`, over a backend's `Run(AcceptArgs*, const Tensor& norms)`, which sets `route`.
template <auto Run>
void accept(Tensor norms, Tensor status, std::vector<double> rule, std::vector<int64_t> flags,
            std::vector<int64_t> moves, std::vector<int64_t> memory, std::vector<Tensor> sources,
            Tensor control, Tensor counts, Tensor streams, std::vector<Tensor> targets) {
  AcceptArgs a;
  need(set_accept(&a, norms, status, rule, flags, moves, memory, sources, control, counts, streams,
                  targets),
       "accept");
  Run(&a, norms);
}

}  // namespace diffast
