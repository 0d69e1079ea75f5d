// A job of `sweep` for four neighbouring elements: its state, and how a stage changes it.
#pragma once

#include "../../cuda/rows.cuh"
#include "../../cuda/warps.cuh"
#include "args.h"

namespace diffast::cuda {
namespace {

// Stages whose weights are in shared memory at a time.
constexpr int kBatch = 32;

// What a kernel is compiled for: the most outputs and entries, whether there may be an anchor and
// noise, and how many stages ahead x and outputs are loaded. A row of weights in shared memory has
// the columns in their order (-0 for absent ones), and last the change with the distance p - x.
template <int Outputs, int Entries, bool Parts, bool Noise, int Ahead>
struct Kind {
  static constexpr int kOutputs = Outputs, kEntries = Entries, kAhead = Ahead;
  static constexpr bool kParts = Parts, kNoise = Noise;
  static constexpr int kPoint = 1;  // column; the anchor is column 0
  static constexpr int kOutput = 1 + (Parts ? 1 : 0);
  static constexpr int kEntry = kOutput + Outputs;  // oldest first
  static constexpr int kClamped = kEntry + Entries;
  static constexpr int kNormal = kClamped + 1;
  static constexpr int kChange = kNormal + (Noise ? kMaxNoises : 0);
  static constexpr int kStride = (kChange + 1 + 3) / 4 * 4;
  // Rows of a stage: the x0 estimate (for a stage without outputs the four numbers of the line),
  // entry, anchor, next p.
  static constexpr int kAnchorRow = 1 + (Entries > 0 ? 1 : 0);
  static constexpr int kPointRow = kAnchorRow + (Parts ? 1 : 0);
  static constexpr int kStage = (kPointRow + 1) * kStride;
  static_assert(kStride >= 4 && kBatch % Ahead == 0);
};

// Which column of a table's row goes to slot `slot` of a kernel's row; -1: none. In a tail, the
// column of the clamped x0 is the x0 estimate.
template <typename K>
__device__ __forceinline__ int column_of(const SweepArgs& a, int slot, bool tail) {
  const int parts = a.parts ? 1 : 0;
  const int outputs = tail ? 0 : a.outputs;
  const int clamped = tail || a.clamp ? 1 : 0;
  const int known = 1 + parts + outputs + a.entries;
  if (slot == 0) return 0;
  if (K::kParts && slot == K::kPoint) return parts ? 1 : -1;
  if (slot < K::kEntry) return slot - K::kOutput < outputs ? 1 + parts + slot - K::kOutput : -1;
  if (slot < K::kClamped) {
    const int age = K::kClamped - 1 - slot;
    return age < a.entries ? known - 1 - age : -1;
  }
  if (slot == K::kClamped) return clamped ? known : -1;
  const int noise = slot - K::kNormal;
  return K::kNoise && noise < a.noises ? known + clamped + noise : -1;
}

// Where a number of a stage's weights is: `number`, times `factor` if there is one; -0 if it is
// null.
struct Source {
  const double* number;
  const double* factor;
};

// The source of number `i` of stages [first, ...) of a job; `rows` are the stages' rows of x.
template <typename K>
__device__ __forceinline__ Source source_of(const SweepArgs& a, int64_t first, int i,
                                            const int32_t* rows, bool tail) {
  const int made = sweep_made(a);
  const int64_t stage = first + i / K::kStage;
  const int kind = i % K::kStage / K::kStride;
  const int slot = i % K::kStride;
  const bool later = kind > 0;
  // The table's row. It may have none for the entry and the anchor.
  int row = kind == 0 ? 0 : kind == K::kPointRow ? made : -1;
  if (K::kEntries > 0 && kind == 1 && a.entries > 0) row = 1;
  if (K::kParts && kind == K::kAnchorRow && a.parts) row = made - 1;
  if (tail && !later) return {slot < 4 ? &a.line[stage].alpha + slot : nullptr, nullptr};
  if (row < 0) return {nullptr, nullptr};
  if (slot == K::kChange) {
    if (tail || !a.slopes) return {nullptr, nullptr};
    return {a.changes + stage * (made + 1) + row, a.slopes + rows[i / K::kStage]};
  }
  const int column = column_of<K>(a, slot, tail);
  if (column < 0 || (!later && slot >= K::kClamped)) return {nullptr, nullptr};
  const int width = tail ? sweep_tail_columns(a) : sweep_columns(a);
  const double* table = tail ? a.tails + (stage * made + row - 1) * width
                             : a.weights + (stage * (made + 1) + row) * width;
  return {table + column, nullptr};
}

// Puts the numbers of stages [first, first + count) of a job into shared memory, rounded to the
// arithmetic type. A thread asks for four numbers before it waits for the first.
template <typename T, typename K>
__device__ __forceinline__ void fill_stages(const SweepArgs& a, int64_t first, int count,
                                            const int32_t* rows, bool tail, T* shared) {
  constexpr int kLoads = 4;
  const int total = count * K::kStage, step = int(blockDim.x);
#pragma unroll 1
  for (int begin = int(threadIdx.x); begin < total; begin += kLoads * step) {
    Source source[kLoads];
    double number[kLoads], factor[kLoads];
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int i = begin + n * step;
      source[n] = i < total ? source_of<K>(a, first, i, rows, tail) : Source{nullptr, nullptr};
    }
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      number[n] = source[n].number ? *source[n].number : -0.0;
      factor[n] = source[n].factor ? *source[n].factor : 1.0;
    }
#pragma unroll
    for (int n = 0; n < kLoads; ++n)
      if (begin + n * step < total) shared[begin + n * step] = T(number[n] * factor[n]);
  }
}

// y + factor * distance; y itself where the distance is 0, whatever the factor.
template <typename T>
__device__ __forceinline__ T with_change(T y, T factor, T distance) {
  const T moved = y + factor * distance;
  return distance == T(0) ? y : moved;
}

template <typename T, typename K, bool Aligned>
struct Walk {
  static constexpr DType kType = kNative<T>;
  static constexpr int kHeld = K::kEntries > 0 ? K::kEntries : 1;
  static constexpr int kRead = K::kOutputs > 0 ? K::kOutputs : 1;

  const SweepArgs& a;
  const SweepJob job;   // a copy: the compiler would assume that stores change it
  const int32_t* rows;  // the job's walk
  const int64_t norms;  // index of the first partial sum that this thread's warp writes
  const Limits<T> limits;
  int64_t begin;   // first element
  uint32_t group;  // of four elements
  int count;       // how many of the four exist
  T p[kPerThread], anchor[kPerThread], entry[kHeld][kPerThread] = {};
  T x0[kPerThread] = {}, noise[kPerThread] = {};  // the line
  // What the next stages read, by stage modulo kAhead.
  Raw<T> x[K::kAhead], output[K::kAhead][kRead];
  int row[K::kAhead];  // of x
  int next;            // the row that is loaded next

  __device__ __forceinline__ Walk(const SweepArgs& args, int64_t j, int64_t block)
      : a(args),
        job(args.jobs[j]),
        rows(args.walk + j * args.length),
        norms(j * (args.length + 1) * sweep_sums(args.elements) +
              (block * blockDim.x + threadIdx.x) / kWarp),
        limits{T(args.low), T(args.high)} {
    const int64_t at = block * blockDim.x + threadIdx.x;
    begin = at * kPerThread;
    group = uint32_t(at);
    const int64_t left = a.elements - begin;
    count = left <= 0 ? 0 : Aligned || left >= kPerThread ? kPerThread : int(left);
  }

  __device__ __forceinline__ Raw<T> load_raw(const void* base, DType type, int64_t row) const {
    if (count == 0) return Raw<T>{};
    return load4<T, Aligned>(base, type, row * a.elements + begin, count);
  }

  __device__ __forceinline__ void load(const void* base, int64_t row,
                                       T (&value)[kPerThread]) const {
    widen4(load_raw(base, kType, row), kType, value);
  }

  __device__ __forceinline__ void store(void* base, int64_t row,
                                        const T (&value)[kPerThread]) const {
    if (count > 0) store4<T, Aligned>(base, kType, row * a.elements + begin, count, value);
  }

  // Sets the state in which the job begins: from a row of x, or a stored state.
  __device__ __forceinline__ void start() {
    const int64_t state = int64_t(job.state_in) * sweep_planes(a);
    const bool known = job.from < 0;
    if (known)
      load(a.states, state, p);
    else
      load(a.x, job.from, p);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) anchor[i] = p[i];
    if (K::kParts && a.parts && known) load(a.states, state + 1, anchor);
#pragma unroll
    for (int e = 0; e < K::kEntries; ++e)
      if (known && e < a.entries) load(a.states, state + 2 + e, entry[e]);
    if (known && job.real == 0) {
      load(a.states, state + 2 + a.entries, x0);
      load(a.states, state + 3 + a.entries, noise);
    }
  }

  __device__ __forceinline__ void request(int slot, int of) {
    row[slot] = of;
    x[slot] = load_raw(a.x, kType, of);
#pragma unroll
    for (int o = 0; o < K::kOutputs; ++o)
      output[slot][o] = o < a.outputs ? load_raw(a.output[o], a.output_type[o], of) : Raw<T>{};
  }

  // Loads what the first stages read.
  __device__ __forceinline__ void request_first() {
#pragma unroll
    for (int s = 0; s < K::kAhead; ++s)
      if (s < job.real) request(s, rows[s]);
    next = K::kAhead < job.real ? rows[K::kAhead] : 0;
  }

  __device__ __forceinline__ void draw(int64_t stage, float (&z)[kMaxNoises][kPerThread]) const {
    if (!K::kNoise || a.noises == 0) return;
    const Stream stream = {a.seed, uint64_t(a.ids[job.sample]), uint32_t(stage)};
    draw_noises(a.noises, stream.word, group, z, DrawOfStream{stream});
  }

  // A row's sum over all columns but the clamped x0 and the noises.
  __device__ __forceinline__ void known_columns(const T* weight, const T (&read)[kRead][kPerThread],
                                                T (&y)[kPerThread]) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      y[i] = weight[0] * anchor[i];
      if (K::kParts && a.parts) y[i] = y[i] + weight[K::kPoint] * p[i];
#pragma unroll
      for (int o = 0; o < K::kOutputs; ++o) y[i] = y[i] + weight[K::kOutput + o] * read[o][i];
#pragma unroll
      for (int e = K::kEntries - 1; e >= 0; --e)
        y[i] = y[i] + weight[K::kClamped - 1 - e] * entry[e][i];
    }
  }

  __device__ __forceinline__ void other_columns(const T* weight, bool clamped,
                                                const float (&z)[kMaxNoises][kPerThread],
                                                T (&y)[kPerThread]) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (clamped) y[i] = y[i] + weight[K::kClamped] * x0[i];
      if constexpr (K::kNoise) {
        if (a.noises > 0) y[i] = y[i] + weight[K::kNormal] * T(z[0][i]);
        if (a.noises > 1) y[i] = y[i] + weight[K::kNormal + 1] * T(z[1][i]);
      }
    }
  }

  // Moves on to the next stage. `row(number, y)` makes a row.
  template <typename Row>
  __device__ __forceinline__ void move(Row&& row) {
    T newest[kPerThread], point[kPerThread], held[kPerThread];
    if (K::kEntries > 0 && a.entries > 0) row(1, newest);
    if (K::kParts && a.parts) row(K::kAnchorRow, held);
    row(K::kPointRow, point);
#pragma unroll
    for (int e = K::kEntries - 1; e >= 0; --e)
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const T younger = e > 0 ? entry[e > 0 ? e - 1 : 0][i] : newest[i];
        entry[e][i] = e < a.entries ? younger : T(0);
      }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      p[i] = point[i];
      anchor[i] = K::kParts && a.parts ? held[i] : point[i];
    }
  }

  // Writes the warp's sum of squares of a distance. Every thread of the block calls it.
  __device__ __forceinline__ void add_squares(const T (&distance)[kPerThread], int k) const {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
      if (i < count) sum = sum + double(distance[i]) * double(distance[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) a.partials[norms + k * sweep_sums(a.elements)] = sum;
  }

  // Does stage k, which has outputs. What it reads is in `slot`, which is then loaded for stage
  // k + kAhead.
  __device__ __forceinline__ void take(const T* weights, int slot, int k) {
    T distance[kPerThread], read[kRead][kPerThread] = {};
    widen4(x[slot], kType, distance);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) distance[i] = p[i] - distance[i];
#pragma unroll
    for (int o = 0; o < K::kOutputs; ++o)
      if (o < a.outputs) widen4(output[slot][o], a.output_type[o], read[o]);
    const int here = row[slot];
    if (k + K::kAhead < job.real) request(slot, next);
    if (k + K::kAhead + 1 < job.real) next = rows[k + K::kAhead + 1];
    float z[kMaxNoises][kPerThread] = {};
    draw(int64_t(job.first) + k, z);
    if (a.partials) add_squares(distance, k);
    if (job.write) store(a.points, here, p);
    if (a.clamp || k + 1 == job.real) {
      known_columns(weights, read, x0);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        if (a.slopes) x0[i] = with_change(x0[i], weights[K::kChange], distance[i]);
        if (a.clamp) x0[i] = clamp_to(x0[i], limits.low, limits.high);
      }
    }
    if (k + 1 == job.real) {
      const SweepLine& line = a.line[int64_t(job.first) + k];
      const T alpha = T(line.alpha), inverse = T(line.inverse);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) noise[i] = (p[i] - alpha * x0[i]) * inverse;
    }
    move([&](int number, T(&y)[kPerThread]) {
      const T* weight = weights + number * K::kStride;
      known_columns(weight, read, y);
      other_columns(weight, a.clamp, z, y);
      if (a.slopes) {
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
          y[i] = with_change(y[i], weight[K::kChange], distance[i]);
      }
    });
  }

  // Does stage k, which has no outputs.
  __device__ __forceinline__ void take_tail(const T* weights, int k) {
    if (job.write) store(a.points, rows[k], p);
    const T alpha = weights[0], sigma = weights[1], gain = weights[3];
    float z[kMaxNoises][kPerThread] = {};
    draw(int64_t(job.first) + k, z);
    T line[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      line[i] = x0[i];
      x0[i] = line[i] + gain * (p[i] - (alpha * line[i] + sigma * noise[i]));
      if (a.clamp) x0[i] = clamp_to(x0[i], limits.low, limits.high);
    }
    const T read[kRead][kPerThread] = {};
    move([&](int number, T(&y)[kPerThread]) {
      const T* weight = weights + number * K::kStride;
      known_columns(weight, read, y);
      other_columns(weight, true, z, y);
    });
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) x0[i] = line[i];
  }

  // Stores the state in which the job ends.
  __device__ __forceinline__ void leave() const {
    if (job.state_out < 0) return;
    const int64_t state = int64_t(job.state_out) * sweep_planes(a);
    if (a.partials && job.tail == 0) {
      T distance[kPerThread];
      load(a.states, state, distance);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) distance[i] = p[i] - distance[i];
      add_squares(distance, job.real);
    }
    store(a.states, state, p);
    store(a.states, state + 1, anchor);
#pragma unroll
    for (int e = 0; e < K::kEntries; ++e)
      if (e < a.entries) store(a.states, state + 2 + e, entry[e]);
    store(a.states, state + 2 + a.entries, x0);
    store(a.states, state + 3 + a.entries, noise);
  }
};

}  // namespace
}  // namespace diffast::cuda
