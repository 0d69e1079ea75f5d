// The rows of a chunk of a sample, for `combine`, `combine_error` and `gram`.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "../core/normal.h"
#include "../core/row.h"
#include "chunks.h"

namespace diffast::cpu {

// From so many bytes in and out of one call on, outputs bypass the caches. They would be evicted
// before they are read, and a plain store first reads the line that it overwrites, which takes 10
// to 20 % of the time at 160 MiB. The limit is twice a large L3 cache: for outputs that still lie
// in the cache, bypassing stores took five times as long.
constexpr int64_t kStreamBytes = int64_t(64) << 20;

template <typename T>
constexpr DType kNative = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

// The weights of one sample, rounded to the arithmetic type, columns in summation order:
// inputs, clamped row (absent from row 0), noises.
template <typename T>
struct RowWeights {
  T value[kMaxRows][kMaxColumns];

  RowWeights(const CombineArgs& a, int64_t sample) {
    const int columns = a.inputs + (a.clamp ? 1 : 0);
    const double* weight = a.weight_table ? a.weight_table + sample * a.rows * columns : a.weight;
    const double* noise = a.noise_table ? a.noise_table + sample * a.rows * a.noises : a.noise;
    for (int r = 0; r < a.rows; ++r) {
      const int used = r == 0 ? a.inputs : columns;
      for (int k = 0; k < used; ++k) value[r][k] = T(weight[r * columns + k]);
      for (int m = 0; m < a.noises; ++m) value[r][used + m] = T(noise[r * a.noises + m]);
    }
  }
};

struct Stream {
  uint64_t seed, id;
  uint32_t word;
};

inline Stream stream_of(const CombineArgs& a, int64_t sample) {
  if (a.streams) {
    const int64_t* s = a.streams + 3 * sample;
    return {uint64_t(s[0]), uint64_t(s[1]), uint32_t(s[2])};
  }
  return {a.seed, uint64_t(a.ids ? a.ids[sample] : sample), a.word};
}

inline bool run_rows(const Kernels& kernel, const RowsCall<float>& call) {
  return kernel.rows_float(call);
}
inline bool run_rows(const Kernels& kernel, const RowsCall<double>& call) {
  return kernel.rows_double(call);
}

// Scratch memory of a chunk: prepared columns, and results before they are converted. Each array is
// a cache line longer than a chunk, so that not all of them start in the same cache set.
template <typename T>
struct Scratch {
  static constexpr int64_t kLine = 64 / sizeof(T);
  alignas(64) T input[kMaxInputs][kChunk + kLine];
  alignas(64) T clamped[kChunk + kLine];
  alignas(64) T noise[kMaxNoises][kChunk + kLine];
  alignas(64) T result[kMaxRows][kChunk + kLine];
};

template <typename T>
Scratch<T>& scratch_of_thread() {
  alignas(64) static thread_local Scratch<T> scratch;
  return scratch;
}

// Elements [begin, begin + count) of one sample, or of the whole batch if nothing differs between
// samples. Call `prepare` first, then `rows` in any order, and `store_clamped` last.
template <typename T>
class Chunk {
 public:
  Chunk(const CombineArgs& args, const Kernels& kernel, Scratch<T>* scratch, bool stream)
      : a_(args), kernel_(kernel), scratch_(scratch), stream_(stream) {}

  // Prepares the columns and makes the clamped row; returns whether that row's sums were finite.
  bool prepare(const RowWeights<T>& weights, int64_t sample, int64_t begin, int64_t count) {
    offset_ = sample * a_.elements + begin;
    count_ = count;
    prepare_columns(sample, begin, offset_, count);
    const bool finite = !a_.clamp || clamped_row(weights, count);
    columns_ = a_.inputs;
    if (a_.clamp) column_[columns_++] = scratch_->clamped;
    for (int m = 0; m < a_.noises; ++m) column_[columns_++] = scratch_->noise[m];
    return finite;
  }

  // Column k of the chunk, as it was prepared.
  const T* column(int k) const { return column_[k]; }

  // Makes rows [from, to), none of them the clamped one. Rows without an output stay in `result`.
  bool rows(const RowWeights<T>& weights, int from, int to) {
    bool finite = true;
    // With several groups, a finished row may overwrite an input that a later group reads.
    const bool hold = to - from > kMaxGroup;
    for (int first = from; first < to; first += kMaxGroup)
      finite = row_group(weights, first, std::min<int>(kMaxGroup, to - first), hold) && finite;
    for (int r = from; r < to; ++r) {
      if (a_.y[r] && (hold || a_.y_type[r] != kNative<T>))
        narrow(kernel_, a_.y_type[r], scratch_->result[r], at(a_.y[r], a_.y_type[r], offset_),
               count_);
    }
    return finite;
  }

  // Writes row 0 of a call with a clamp, after all other rows have read their inputs.
  void store_clamped() {
    if (a_.clamp && a_.y[0])
      narrow(kernel_, a_.y_type[0], scratch_->result[0], at(a_.y[0], a_.y_type[0], offset_),
             count_);
  }

 private:
  void prepare_columns(int64_t sample, int64_t begin, int64_t offset, int64_t count) {
    for (int k = 0; k < a_.inputs; ++k) {
      const void* from = at(a_.x[k], a_.x_type[k], offset);
      if (a_.x_type[k] == kNative<T>) {
        column_[k] = static_cast<const T*>(from);
      } else {
        widen(kernel_, a_.x_type[k], from, scratch_->input[k], count);
        column_[k] = scratch_->input[k];
      }
    }
    if (a_.noises == 0) return;
    const Stream s = stream_of(a_, sample);
    for (int m = 0; m < a_.noises; ++m) {
      const uint32_t word = s.word + (uint32_t(m) << kSlotShift);
      if constexpr (sizeof(T) == sizeof(float)) {
        kernel_.normals(scratch_->noise[m], count, uint32_t(begin / 4), word, s.id, s.seed);
      } else {
        float single[kChunk];
        kernel_.normals(single, count, uint32_t(begin / 4), word, s.id, s.seed);
        widen(kernel_, DType::kFloat32, single, scratch_->noise[m], count);
      }
    }
  }

  bool clamped_row(const RowWeights<T>& weights, int64_t count) {
    RowsCall<T> call;
    call.columns = a_.inputs + a_.noises;
    for (int k = 0; k < a_.inputs; ++k) call.x[k] = column_[k];
    for (int m = 0; m < a_.noises; ++m) call.x[a_.inputs + m] = scratch_->noise[m];
    call.y[0] = scratch_->clamped;
    call.weight = weights.value[0];
    call.rows = 1;
    call.count = count;
    call.stream = false;
    const bool finite = run_rows(kernel_, call);
    const T low = T(a_.low);
    const T high = T(a_.high);
    for (int64_t i = 0; i < count; ++i)
      scratch_->clamped[i] = clamp_to(scratch_->clamped[i], low, high);
    if (a_.y[0])  // its output may be an input, which later rows still read
      memcpy(scratch_->result[0], scratch_->clamped, count * sizeof(T));
    return finite;
  }

  bool row_group(const RowWeights<T>& weights, int first, int group, bool hold) {
    T packed[kMaxGroup * kMaxColumns];
    RowsCall<T> call;
    call.columns = columns_;
    call.rows = group;
    call.count = count_;
    call.stream = stream_;
    call.weight = packed;
    for (int k = 0; k < columns_; ++k) call.x[k] = column_[k];
    for (int r = 0; r < group; ++r) {
      const int row = first + r;
      memcpy(packed + r * columns_, weights.value[row], columns_ * sizeof(T));
      const bool direct = a_.y[row] && !hold && a_.y_type[row] == kNative<T>;
      call.y[r] =
          direct ? static_cast<T*>(at(a_.y[row], a_.y_type[row], offset_)) : scratch_->result[row];
      call.stream = call.stream && direct;
    }
    return run_rows(kernel_, call);
  }

  const CombineArgs& a_;
  const Kernels& kernel_;
  Scratch<T>* scratch_;
  const bool stream_;
  const T* column_[kMaxColumns];
  int columns_;
  int64_t offset_;
  int64_t count_;
};

// Writes the stage into a sample's status, unless an earlier stage stands there. Threads that do so
// at once write the same number.
inline void report(const CombineArgs& a, int64_t sample) {
  std::atomic_ref<int64_t> status(a.status[sample]);
  const int64_t stage = a.streams ? a.streams[3 * sample + 2] : int64_t(a.word);
  if (status.load(std::memory_order_relaxed) < 0)
    status.store(stage & (kStageLimit - 1), std::memory_order_relaxed);
}

// Whether an output is an input. Its lines are in the cache then, and stores that bypass the cache
// take up to three times as long.
inline bool writes_over_inputs(const CombineArgs& a) {
  for (int r = 0; r < a.rows; ++r)
    for (int k = 0; k < a.inputs; ++k)
      if (a.y[r] == a.x[k]) return true;
  return false;
}

inline int64_t bytes_moved(const CombineArgs& a) {
  int64_t bytes = 0;
  for (int k = 0; k < a.inputs; ++k) bytes += dtype_bytes(a.x_type[k]);
  for (int r = 0; r < a.rows; ++r) bytes += a.y[r] ? dtype_bytes(a.y_type[r]) : 0;
  return bytes * a.samples * a.elements;
}

}  // namespace diffast::cpu
