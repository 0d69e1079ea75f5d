// What `accept` decides for one sample: plain arithmetic in double, shared by CPU and CUDA. The
// specification is diffast/ops/accept/reference.py.
#pragma once

#include <cmath>
#include <limits>

#include "../../core/hd.h"
#include "args.h"

namespace diffast {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The numbers of one sample, read and written in place.
struct AcceptSample {
  AcceptControl* control;
  double* slot;  // [slots]
  AcceptCounts* counts;
  int64_t* attempts;
  int slots;
};

// pow(x, 0) is 1 for every x: leaving the call out saves time and changes no result.
DIFFAST_HD double accept_power(double base, double exponent) {
  return exponent == 0.0 ? 1.0 : pow(base, exponent);
}

// If either number is NaN these return the first, as Python's min and max do.
DIFFAST_HD double accept_min(double a, double b) { return b < a ? b : a; }
DIFFAST_HD double accept_max(double a, double b) { return b > a ? b : a; }

// Sets where the next attempt leads: a step of length `step`, unless a limit or the end shortens
// it.
DIFFAST_HD void accept_aim(double step, bool accepted, const AcceptRule& r, const AcceptFlags& f,
                           AcceptControl* c, AcceptCounts* n) {
  step = accept_min(step, r.step_max);
  if (step < r.step_min) {
    step = r.step_min;
    if (!accepted) n->status = kFailedStep;
  }
  const double rest = c->end - c->at;
  if (step >= rest) {
    c->to = c->end;  // the very number: `at == end` is how a finished sample is found
  } else {
    if (f.balance && rest < 2.0 * step) step = 0.5 * rest;
    c->to = c->at + step;
  }
  if (!(c->to > c->at && c->to <= c->end)) n->status = kFailedStep;
}

// Remembers a rejected point. Returns its slot, or kMaxMemory if it gets none. A free slot holds
// infinity, so the search for the farthest point finds a free slot if there is one. With no free
// slot the farthest point is forgotten.
DIFFAST_HD int32_t accept_remember(double position, const AcceptSample& s) {
  int far = 0;
  for (int k = 0; k < s.slots; ++k) {
    if (s.slot[k] == position)
      return kMaxMemory;  // a rejected attempt that ended here is remembered already
    if (s.slot[k] > s.slot[far]) far = k;
  }
  if (s.slots == 0) return kMaxMemory;
  const bool full = s.slot[far] != kInfinity;
  if (full) s.counts->forgotten += 1;
  if (full && s.slot[far] < position) return kMaxMemory;  // this one is the farthest
  s.slot[far] = position;
  return far;
}

// Accepts or rejects an attempt whose scaled error is finite. Returns -1 if it was accepted, else
// the slot that remembers it, or kMaxMemory if none does.
DIFFAST_HD int32_t accept_judge(double error, const AcceptRule& r, const AcceptFlags& f,
                                const AcceptSample& s) {
  AcceptControl* c = s.control;
  AcceptCounts* n = s.counts;
  const double before = c->before >= 0.0 ? c->before : error;
  const double before2 = c->before2 >= 0.0 ? c->before2 : before;
  bool good = error <= r.threshold;
  double factor;
  if (f.by_factor || good || f.always) {
    factor = accept_power(error, -r.error_power) * r.safety;
    factor =
        factor * (accept_power(before, r.before_power) * accept_power(before2, -r.before2_power));
    if (!(factor == factor)) factor = kInfinity;  // an error of 0 after one of 0
    if (f.by_factor) {
      factor = 1.0 + atan(factor - 1.0);
      good = factor >= r.threshold;
    }
    factor = accept_min(accept_max(factor, r.least), r.most);
  } else {
    factor = accept_power(error, -r.reject_power) * r.reject_safety;
    factor = accept_min(accept_max(factor, r.reject_least), r.reject_most);
  }
  const bool accepted = good || f.always;
  int32_t slot = -1;
  const double step = c->to - c->at;
  c->error = error;
  if (accepted) {
    if (f.calm && n->after_reject) factor = accept_min(factor, 1.0);
    c->before2 = before;
    c->before = accept_max(error, r.error_floor);
    c->at = c->to;
    for (int k = 0; k < s.slots; ++k)
      if (s.slot[k] <= c->at) s.slot[k] = kInfinity;
    n->accepted += 1;
  } else {
    if (f.by_factor) {
      c->before = before;
      c->before2 = before2;
    }
    slot = accept_remember(c->to, s);
    n->rejected += 1;
  }
  n->stage = accepted ? f.restart : 1;
  n->after_reject = !accepted;
  if (!accepted || c->at != c->end)
    accept_aim(step * factor, accepted, r, f, c, n);
  else if (f.restart != 0 || !f.final)
    n->status = kFinished;
  return slot;
}

// Updates one sample after one network call; returns its route.
DIFFAST_HD int32_t accept_sample(const AcceptArgs& a, int64_t b) {
  const AcceptRule& r = a.rule;
  const AcceptFlags& f = a.flags;
  double* control = a.control + b * (kControls + a.slots);
  AcceptCounts* n = reinterpret_cast<AcceptCounts*>(a.counts + b * kCounts);
  if (n->status != kRunning) return kNoRoute;
  const AcceptSample s = {reinterpret_cast<AcceptControl*>(control), control + kControls, n,
                          a.streams + 3 * b + 2, a.slots};
  double error = a.norms[2 * b];
  const double noise = a.norms[2 * b + 1];
  n->calls += 1;
  const int64_t stage = n->stage;
  // A stage that is not one of the run's has no moves.
  int32_t route = stage >= 0 && stage <= f.last ? int32_t(stage) : kNoRoute;
  bool finite = a.status[b] < 0;
  if (finite && stage < f.last) {
    n->stage = stage + 1;
    if (stage == 0 && s.control->at == s.control->end) n->status = kFinished;
  } else if (finite) {
    error = error / accept_max(r.noise_floor, noise) + r.error_eps;
    finite = error >= 0.0 && error < kInfinity && noise < kInfinity;
    if (finite) {
      const int32_t slot = accept_judge(error, r, f, s);
      if (slot >= 0) route = slot < kMaxMemory ? kIntoSlot - slot : kNoRoute;
      *s.attempts += 1;
    }
  }
  if (!finite) {
    n->status = kFailedFinite;
    return kNoRoute;
  }
  if (n->status == kRunning && n->calls >= f.most_calls) n->status = kFailedCalls;
  return route;
}

}  // namespace diffast
