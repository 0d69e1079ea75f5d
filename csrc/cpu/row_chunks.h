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

// Whether a clamped row and the rows that weigh it are made in one loop.
inline bool is_clamped_at_once(const CombineArgs& a) {
  return a.clamp && a.noises == 0 && a.inputs <= kClampedColumns && a.rows > 1 &&
         a.rows <= 1 + kLaterRows;
}

// Elements [begin, begin + count) of one sample, or of the whole batch if nothing differs between
// samples. Call `prepare` first, then `rows` in any order, and `store_clamped` last.
template <typename T>
class Chunk {
 public:
  Chunk(const CombineArgs& args, bool stream)
      : a_(args), kernel_(kernels()), scratch_(&scratch_of_thread<T>()), stream_(stream) {}

  // Prepares the columns and makes the clamped row; returns whether that row's sums were finite.
  bool prepare(const RowWeights<T>& weights, int64_t sample, int64_t begin, int64_t count) {
    prepare_inputs(sample, begin, count);
    if (a_.noises > 0) draw_noises(stream_of(a_, sample), begin);
    return !a_.clamp || clamped_row(weights);
  }

  // The same without the clamped row, for `clamped_rows`.
  void prepare_inputs(int64_t sample, int64_t begin, int64_t count) {
    offset_ = sample * a_.elements + begin;
    count_ = count;
    columns_ = a_.inputs + a_.noises;
    for (int k = 0; k < a_.inputs; ++k) {
      const void* from = at(a_.x[k], a_.x_type[k], offset_);
      const bool native = a_.x_type[k] == kNative<T>;
      if (!native) widen(kernel_, a_.x_type[k], from, scratch_->input[k], count);
      column_[k] = native ? static_cast<const T*>(from) : scratch_->input[k];
    }
  }

  // Makes and writes the clamped row and all others, where is_clamped_at_once says so.
  bool clamped_rows(const RowWeights<T>& weights) {
    ClampedCall<T> call;
    T packed[kLaterRows * (kClampedColumns + 1)];
    std::copy_n(column_, columns_, call.x);
    call.first = weights.value[0];
    call.weight = packed;
    call.low = T(a_.low);
    call.high = T(a_.high);
    call.columns = columns_;
    call.rows = a_.rows - 1;
    call.count = count_;
    call.stream = stream_;
    for (int r = 0; r < a_.rows; ++r) {
      if (r > 0) std::copy_n(weights.value[r], columns_ + 1, packed + (r - 1) * (columns_ + 1));
      const bool direct = a_.y[r] && a_.y_type[r] == kNative<T>;
      call.y[r] = direct    ? static_cast<T*>(at(a_.y[r], a_.y_type[r], offset_))
                  : a_.y[r] ? scratch_->result[r]
                            : nullptr;  // the clamped row alone may go without an output
      call.stream = call.stream && (direct || !a_.y[r]);
    }
    const bool finite = kernel_.of<T>().clamped_rows(call);
    for (int r = 0; r < a_.rows; ++r)
      if (a_.y_type[r] != kNative<T>) store(r);
    return finite;
  }

  int64_t count() const { return count_; }
  // Column k of the chunk, as it was prepared.
  const T* column(int k) const { return column_[k]; }
  // A row that was made and has no output.
  const T* result(int r) const { return scratch_->result[r]; }

  // Makes rows [from, to), none of them the clamped one. Rows without an output stay in `result`.
  bool rows(const RowWeights<T>& weights, int from, int to) {
    bool finite = true;
    // With several groups, a finished row may overwrite an input that a later group reads.
    const bool hold = to - from > kMaxGroup;
    for (int first = from; first < to; first += kMaxGroup)
      finite = row_group(weights, first, std::min<int>(kMaxGroup, to - first), hold) && finite;
    for (int r = from; r < to; ++r)
      if (hold || a_.y_type[r] != kNative<T>) store(r);
    return finite;
  }

  // Writes row 0 of a call with a clamp, after all other rows have read their inputs.
  void store_clamped() {
    if (a_.clamp) store(0);
  }

 private:
  // Writes a row that is in the scratch memory to its output, if it has one.
  void store(int r) {
    const DType type = a_.y_type[r];
    if (a_.y[r]) narrow(kernel_, type, scratch_->result[r], at(a_.y[r], type, offset_), count_);
  }

  void draw_noises(const Stream& s, int64_t begin) {
    for (int m = 0; m < a_.noises; ++m) {
      const uint32_t word = s.word + (uint32_t(m) << kSlotShift);
      draw(kernel_, scratch_->noise[m], count_, begin, word, s.id, s.seed);
      column_[a_.inputs + m] = scratch_->noise[m];
    }
  }

  // A call for `rows` rows of all columns.
  RowsCall<T> call_of(const T* weight, int rows, bool stream) const {
    RowsCall<T> call;
    std::copy_n(column_, columns_, call.x);
    call.weight = weight;
    call.columns = columns_;
    call.rows = rows;
    call.count = count_;
    call.stream = stream;
    return call;
  }

  // Makes the clamped row and puts it between the inputs and the noises.
  bool clamped_row(const RowWeights<T>& weights) {
    RowsCall<T> call = call_of(weights.value[0], 1, false);
    call.y[0] = scratch_->clamped;
    const bool finite = kernel_.of<T>().rows(call);
    const T low = T(a_.low), high = T(a_.high);
    for (int64_t i = 0; i < count_; ++i)
      scratch_->clamped[i] = clamp_to(scratch_->clamped[i], low, high);
    if (a_.y[0])  // its output may be an input, which later rows still read
      memcpy(scratch_->result[0], scratch_->clamped, count_ * sizeof(T));
    std::copy_backward(column_ + a_.inputs, column_ + columns_, column_ + columns_ + 1);
    column_[a_.inputs] = scratch_->clamped;
    ++columns_;
    return finite;
  }

  bool row_group(const RowWeights<T>& weights, int first, int group, bool hold) {
    T packed[kMaxGroup * kMaxColumns];
    RowsCall<T> call = call_of(packed, group, stream_);
    for (int r = 0; r < group; ++r) {
      const int row = first + r;
      memcpy(packed + r * columns_, weights.value[row], columns_ * sizeof(T));
      const bool direct = a_.y[row] && !hold && a_.y_type[row] == kNative<T>;
      call.y[r] =
          direct ? static_cast<T*>(at(a_.y[row], a_.y_type[row], offset_)) : scratch_->result[row];
      call.stream = call.stream && direct;
    }
    return kernel_.of<T>().rows(call);
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
  if (status.load(std::memory_order_relaxed) < 0)
    status.store(stream_of(a, sample).word & (kStageLimit - 1), std::memory_order_relaxed);
}

// Prepares all chunks of a call, of `size` elements, on torch's threads. For each of them
// make(chunk, weights, item, sample) makes the rows and returns whether every sum was finite; with
// `at_once` the clamped row, too.
template <typename T, typename Make>
void make_chunks(const CombineArgs& a, int64_t size, bool stream, const Make& make,
                 bool at_once = false) {
  const int64_t grain = a.noises > 0 ? kNoiseGrain : kGrain;
  share_chunks(a.samples, a.elements, size, grain, [&](const auto& each) {
    Chunk<T> chunk(a, stream);
    RowWeights<T> weights(a, 0);
    int64_t known = 0;
    each([&](int64_t item, int64_t sample, int64_t begin, int64_t count) {
      if (a.weight_table && sample != known) weights = RowWeights<T>(a, sample);
      known = sample;
      bool finite = true;
      if (at_once)
        chunk.prepare_inputs(sample, begin, count);
      else
        finite = chunk.prepare(weights, sample, begin, count);
      finite = make(chunk, weights, item, sample) && finite;
      if (a.status && !finite) report(a, sample);
    });
  });
}

// Whether outputs bypass the caches. If an output is an input, its lines are in the cache, and such
// stores take up to three times as long.
inline bool bypasses_caches(const CombineArgs& a) {
  int64_t bytes = 0;
  for (int k = 0; k < a.inputs; ++k) bytes += dtype_bytes(a.x_type[k]);
  for (int r = 0; r < a.rows; ++r) {
    bytes += a.y[r] ? dtype_bytes(a.y_type[r]) : 0;
    for (int k = 0; k < a.inputs; ++k)
      if (a.y[r] == a.x[k]) return false;
  }
  return bytes * a.samples * a.elements >= kStreamBytes;
}

}  // namespace diffast::cpu
