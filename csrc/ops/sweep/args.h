// One call of `sweep`, in plain numbers and pointers. No torch header is included here.
//
// diffast/ops/sweep/reference.py specifies the op. In short: a job walks through stages of a plan,
// from a point p to the next. A state is all that it needs to go on: p, the anchor, the remembered
// entries, and the line (an x0 estimate and its noise) that stages without network outputs follow.
#pragma once

#include "../combine/args.h"

namespace diffast {

constexpr int kMaxOutputs = 2;
constexpr int kMaxEntries = 7;
constexpr int kMaxMade = 3;  // rows of a stage that are kept: entry, anchor, next p
// Anchor, p, outputs, entries, clamped x0, noises; a tail stage has no outputs.
constexpr int kMaxWalkColumns = 2 + kMaxOutputs + kMaxEntries + 1 + kMaxNoises;

// Planes of a state: p, anchor, entries (newest first), and the line's x0 and noise.
constexpr int kPlanesBesideEntries = 4;

// One row of `jobs`, as it lies in memory.
struct SweepJob {
  int32_t sample;     // whose id the noise has
  int32_t from;       // the row of x that it begins at; -1: it begins at a state
  int32_t state_in;   // that state; -1: none
  int32_t state_out;  // the state that it ends in; -1: its end is dropped
  int32_t first;      // stage
  int32_t real;       // stages with outputs
  int32_t tail;       // stages without outputs, after the others
  int32_t write;      // whether points are written
};
static_assert(sizeof(SweepJob) == 8 * sizeof(int32_t));

// One row of `line`.
struct SweepLine {
  double alpha, sigma, inverse, gain;
};
static_assert(sizeof(SweepLine) == 4 * sizeof(double));

struct SweepArgs {
  const void* x;                    // [rows, elements]
  const void* output[kMaxOutputs];  // [rows, elements] each
  const double* slopes;             // [rows], or null: no change
  const double* weights;            // [stages, 1 + made, columns]: the x0 estimate's row first
  const double* changes;            // [stages, 1 + made]
  const double* tails;              // [stages, made, tail_columns]
  const SweepLine* line;            // [stages]
  const SweepJob* jobs;             // [job_count]
  const int32_t* walk;              // [job_count, length]
  const int64_t* ids;               // [samples]
  void* points;                     // [rows, elements]; may be x itself
  void* states;                     // [state_count, planes, elements]
  double* norms;                    // [job_count, length + 1], or null
  double* partials;                 // on a GPU: partial sums of the norms; otherwise null
  void* ends;                       // on a GPU: where each chunk began and ended,
                                    // [job_count, chunks - 1, 2, elements]
  void* gains;  // [job_count, chunks - 1]: by how much a chunk's end moves with its beginning
  uint64_t seed;
  int64_t rows;
  int64_t elements;  // of one row
  int64_t stages;
  int64_t job_count;
  int64_t length;
  int64_t samples;
  int64_t state_count;
  int64_t chunk;  // stages of a chunk; 0: a job is one chunk
  double low;
  double high;
  DType output_type[kMaxOutputs];
  int8_t outputs;
  int8_t entries;
  int8_t noises;
  bool parts;  // the anchor is a tensor of its own, and a column
  bool clamp;  // the x0 estimate is clamped to [low, high] and is one more column
  bool wide;   // x, points and states are float64; otherwise float32
};

// Rows of a stage that are kept: all but the x0 estimate.
constexpr int sweep_made(const SweepArgs& a) {
  return 1 + (a.parts ? 1 : 0) + (a.entries > 0 ? 1 : 0);
}

// Columns of the x0 estimate: neither the clamped x0 nor noise.
constexpr int sweep_x0_columns(const SweepArgs& a) {
  return 1 + (a.parts ? 1 : 0) + a.outputs + a.entries;
}

constexpr int sweep_columns(const SweepArgs& a) {
  return sweep_x0_columns(a) + (a.clamp ? 1 : 0) + a.noises;
}

constexpr int sweep_tail_columns(const SweepArgs& a) {
  return 2 + (a.parts ? 1 : 0) + a.entries + a.noises;
}

constexpr int sweep_planes(const SweepArgs& a) { return kPlanesBesideEntries + a.entries; }

constexpr int64_t sweep_chunks(const SweepArgs& a) {
  return a.chunk > 0 && a.length > a.chunk ? (a.length + a.chunk - 1) / a.chunk : 1;
}

// Threads of a block on a GPU. They depend on the number of elements alone, which fixes the order
// of sums. A job takes long: small blocks spread a short row over more multiprocessors.
constexpr int kSweepThreads = 128;
constexpr int kSweepWarp = 32;

constexpr int64_t sweep_groups(int64_t elements) { return (elements + 3) / 4; }

// Their logarithm, so that kernels shift and do not divide.
constexpr int sweep_shift(int64_t elements) {
  const int64_t groups = sweep_groups(elements);
  return groups <= kSweepWarp ? 5 : groups <= int64_t(1) << 14 ? 6 : 7;
}

constexpr int sweep_threads(int64_t elements) { return 1 << sweep_shift(elements); }

constexpr int64_t sweep_blocks(int64_t elements) {
  return (sweep_groups(elements) + sweep_threads(elements) - 1) >> sweep_shift(elements);
}

// How many partial sums a norm has: one for each warp.
constexpr int64_t sweep_sums(int64_t elements) {
  return sweep_blocks(elements) << (sweep_shift(elements) - 5);
}

}  // namespace diffast
