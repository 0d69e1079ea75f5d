// From tensors to AcceptArgs, and `accept`. Shared by the CPU and the CUDA glue.
#pragma once

#include <algorithm>
#include <cstring>

#include "../../core/checks.h"
#include "args.h"

namespace diffast {

inline bool set_rule(AcceptArgs* a, const std::vector<double>& rule,
                     const std::vector<int64_t>& flags) {
  if (rule.size() != kRule || flags.size() != kFlags) return false;
  memcpy(&a->rule, rule.data(), sizeof a->rule);
  memcpy(&a->flags, flags.data(), sizeof a->flags);
  for (const double number : rule)
    if (number != number) return false;
  const AcceptFlags& f = a->flags;
  return a->rule.noise_floor > 0 && f.last >= 1 && f.last < int64_t(1) << 31 && f.restart >= 0 &&
         f.restart <= f.last;
}

// Sources or targets, one shape and any of the dtypes.
struct AcceptPlanes {
  const std::vector<Tensor>& tensors;
  DType type[kMaxPlanes];
  char* data[kMaxPlanes];

  int64_t count() const { return int64_t(tensors.size()); }
};

// `first` is the first of all planes, which has the batch's samples and is beside `norms`. A target
// may be a source itself.
template <bool written>
bool set_planes(AcceptPlanes* planes, const First& first, First& norms) {
  const int64_t count = first.samples() * first.elements();
  if (planes->tensors.size() > kMaxPlanes || first.sizes.size() == 0) return false;
  if (first.sizes[0] != norms.samples() || !norms.is_beside(first.tensor)) return false;
  for (size_t k = 0; k < planes->tensors.size(); ++k) {
    const Tensor& t = planes->tensors[k];
    const ScalarType type = t.scalar_type();
    if (!to_dtype(type, &planes->type[k]) || !first.is_like(t)) return false;
    const int64_t bytes = dtype_bytes(planes->type[k]);
    if constexpr (written)
      planes->data[k] = static_cast<char*>(norms.writes(t, count, bytes, type, Access::kInPlace));
    else
      planes->data[k] = static_cast<char*>(
          const_cast<void*>(norms.reads(t, count, bytes, type, Access::kInPlace)));
  }
  return true;
}

inline bool set_move(AcceptMove* move, int64_t route, int64_t source, int64_t target,
                     const AcceptPlanes& sources, const AcceptPlanes& targets) {
  if (source < 0 || source >= sources.count() || target < 0 || target >= targets.count())
    return false;
  if (sources.type[source] != targets.type[target]) return false;
  *move = {sources.data[source], targets.data[target], int32_t(route),
           int32_t(dtype_bytes(sources.type[source]))};
  return true;
}

// Whether no move reads what an earlier move of its stage has written: then all sources are read
// as they were before the call. A move of a tensor onto itself writes nothing.
inline bool moves_are_ordered(const AcceptArgs& a) {
  for (int i = 1; i < a.moves; ++i)
    for (int k = 0; k < i; ++k)
      if (a.move[k].route == a.move[i].route && a.move[k].to == a.move[i].from &&
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
    if (!set_move(&a->move[a->moves + k], kIntoSlot - k, memory[0], memory[k + 1], sources,
                  targets))
      return false;
  return a->samples * a->elements == 0 || moves_are_ordered(*a);
}

inline bool set_accept(AcceptArgs* a, const Tensor& norms, const Tensor& status,
                       const std::vector<double>& rule, const std::vector<int64_t>& flags,
                       const std::vector<int64_t>& moves, const std::vector<int64_t>& memory,
                       const std::vector<Tensor>& sources, const Tensor& control,
                       const Tensor& counts, const Tensor& streams,
                       const std::vector<Tensor>& targets) {
  if (moves.size() % 3 != 0 || moves.size() > 3 * kMaxMoves) return false;
  if (memory.size() == 1 || memory.size() > kMaxMemory + 1) return false;
  First first(norms);
  a->moves = int32_t(moves.size() / 3);
  a->slots = memory.empty() ? 0 : int32_t(memory.size()) - 1;
  a->samples = first.samples();
  if (!set_rule(a, rule, flags) || !first.bind(&a->norms, norms, {a->samples, 2}) ||
      !first.bind(&a->control, control, {a->samples, kControls + a->slots}) ||
      !first.bind(&a->counts, counts, {a->samples, kCounts}) ||
      !first.bind(&a->streams, streams, {a->samples, 3}) ||
      !first.bind(&a->status, status, {a->samples}))
    return false;
  a->elements = 0;
  AcceptPlanes from{sources}, to{targets};
  if (!sources.empty() || !targets.empty()) {
    const First plane(sources.empty() ? targets[0] : sources[0]);
    if (!set_planes<false>(&from, plane, first) || !set_planes<true>(&to, plane, first))
      return false;
    a->elements = plane.elements();
  }
  if (!set_moves(a, moves, memory, from, to) || !first.is_apart()) return false;
  // Moves of a tensor onto itself are taken out, now that the check of the order has counted them.
  const auto idle = [](const AcceptMove& move) { return move.from == move.to; };
  AcceptMove* end = a->move + a->moves + a->slots;
  a->moves = int32_t(std::remove_if(a->move, end, idle) - a->move);
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
