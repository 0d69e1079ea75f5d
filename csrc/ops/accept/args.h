// One call of `accept`, in plain numbers and pointers. No torch header is included here. The
// numbers are named and ordered as in diffast/ops/schema.py.
#pragma once

#include <cstdint>

namespace diffast {

constexpr int kControls = 6;
constexpr int kCounts = 7;
constexpr int kMaxPlanes = 16;
constexpr int kMaxMoves = 48;
constexpr int kMaxMemory = 8;

struct AcceptRule {
  double threshold, safety, error_power, before_power, before2_power, least, most;
  double reject_safety, reject_power, reject_least, reject_most;
  double error_floor, noise_floor, step_min, step_max, error_eps;
};
constexpr int kRule = sizeof(AcceptRule) / sizeof(double);

struct AcceptFlags {
  int64_t last, restart, final, always, balance, calm, by_factor, most_calls;
};
constexpr int kFlags = sizeof(AcceptFlags) / sizeof(int64_t);

// The first numbers of a row of `control`; `slots` more numbers follow them.
struct AcceptControl {
  double at, to, end, error, before, before2;
};
static_assert(sizeof(AcceptControl) == kControls * sizeof(double));

// A row of `counts`.
struct AcceptCounts {
  int64_t status, stage, calls, accepted, rejected, after_reject, forgotten;
};
static_assert(sizeof(AcceptCounts) == kCounts * sizeof(int64_t));

enum AcceptStatus : int64_t { kRunning, kFinished, kFailedFinite, kFailedStep, kFailedCalls };

// A sample's route says what is copied for it: the moves of a stage (the route is the stage, 0 or
// more), a rejected attempt's normals into a slot (the route is kIntoSlot - slot), or nothing.
constexpr int32_t kNoRoute = -1;
constexpr int32_t kIntoSlot = -2;

// One copy of whole rows, made for the samples of a route.
struct AcceptMove {
  const void* from;  // [samples, elements]
  void* to;          // [samples, elements]
  int32_t route;
  int32_t item;  // bytes of an element
};

struct AcceptArgs {
  AcceptRule rule;
  AcceptFlags flags;
  AcceptMove move[kMaxMoves + kMaxMemory];  // of stages, then into slots
  const double* norms;                      // [samples, 2]
  const int64_t* status;                    // [samples]
  double* control;                          // [samples, kControls + slots]
  int64_t* counts;                          // [samples, kCounts]
  int64_t* streams;                         // [samples, 3]
  int32_t* route;                           // [samples]
  int64_t samples;
  int64_t elements;  // of one sample
  int32_t moves;
  int32_t slots;
};

}  // namespace diffast
