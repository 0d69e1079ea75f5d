// `combine` on the CPU: pieces of samples handed to the row kernels of kernels.inc.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "../row.h"
#include "../tensors.h"
#include "pieces.h"

namespace diffast::cpu {
namespace {

// Above this many bytes in and out of one call, outputs bypass the caches: they would be evicted
// before anyone reads them, and a plain store first reads the line it overwrites (10 to 20 % of the
// time at 160 MiB). Twice a large L3 on purpose: where the outputs still lie in the cache, two rows
// of bypassing stores took five times as long, and the reader after us would have to fetch them.
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

Stream stream_of(const CombineArgs& a, int64_t sample) {
  if (a.streams) {
    const int64_t* s = a.streams + 3 * sample;
    return {uint64_t(s[0]), uint64_t(s[1]), uint32_t(s[2])};
  }
  return {a.seed, uint64_t(a.ids ? a.ids[sample] : sample), a.word};
}

bool run_rows(const Kernels& kernel, const RowsCall<float>& call) {
  return kernel.rows_float(call);
}
bool run_rows(const Kernels& kernel, const RowsCall<double>& call) {
  return kernel.rows_double(call);
}

// What a piece needs in the cache: prepared columns and results on their way to another type. One
// cache line more than a piece each, or all of them would start in the same cache set.
template <typename T>
struct Scratch {
  static constexpr int64_t kLine = 64 / sizeof(T);
  alignas(64) T input[kMaxInputs][kPiece + kLine];
  alignas(64) T clamped[kPiece + kLine];
  alignas(64) T noise[kMaxNoises][kPiece + kLine];
  alignas(64) T result[kMaxRows][kPiece + kLine];
};

// Pieces [begin, begin + count) of one sample (or of the whole batch, when nothing is per sample).
template <typename T>
class Piece {
 public:
  Piece(const CombineArgs& args, const Kernels& kernel, Scratch<T>* scratch, bool stream)
      : a_(args), kernel_(kernel), scratch_(scratch), stream_(stream) {}

  bool run(const RowWeights<T>& weights, int64_t sample, int64_t begin, int64_t count) {
    const int64_t offset = sample * a_.elements + begin;
    prepare_columns(sample, begin, offset, count);
    bool finite = true;
    int row = 0;
    if (a_.clamp) {
      finite = clamped_row(weights, count);
      row = 1;
    }
    if (row == a_.rows) return finite;
    int columns = a_.inputs;
    if (a_.clamp) column_[columns++] = scratch_->clamped;
    for (int m = 0; m < a_.noises; ++m) column_[columns++] = scratch_->noise[m];
    // With several groups, a finished row may overwrite an input that a later group reads.
    const bool hold = a_.rows - row > kMaxGroup;
    for (int first = row; first < a_.rows; first += kMaxGroup) {
      const int group = std::min<int>(kMaxGroup, a_.rows - first);
      finite = row_group(weights, first, group, columns, offset, count, hold) && finite;
    }
    for (int r = row; r < a_.rows; ++r) {
      if (hold || a_.y_type[r] != kNative<T>)
        narrow(kernel_, a_.y_type[r], scratch_->result[r], at(a_.y[r], a_.y_type[r], offset),
               count);
    }
    return finite;
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
        float single[kPiece];
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
    if (a_.y[0])  // rows > 0 still read the inputs: an aliased output waits in `result`
      memcpy(scratch_->result[0], scratch_->clamped, count * sizeof(T));
    return finite;
  }

  bool row_group(const RowWeights<T>& weights, int first, int group, int columns, int64_t offset,
                 int64_t count, bool hold) {
    T packed[kMaxGroup * kMaxColumns];
    RowsCall<T> call;
    call.columns = columns;
    call.rows = group;
    call.count = count;
    call.stream = stream_;
    call.weight = packed;
    for (int k = 0; k < columns; ++k) call.x[k] = column_[k];
    for (int r = 0; r < group; ++r) {
      const int row = first + r;
      memcpy(packed + r * columns, weights.value[row], columns * sizeof(T));
      const bool direct = !hold && a_.y_type[row] == kNative<T>;
      call.y[r] =
          direct ? static_cast<T*>(at(a_.y[row], a_.y_type[row], offset)) : scratch_->result[row];
      call.stream = call.stream && direct;
    }
    return run_rows(kernel_, call);
  }

 public:
  // Row 0 of a clamped call is written last, when every other row has read its inputs.
  void store_clamped(int64_t offset, int64_t count) {
    if (a_.clamp && a_.y[0])
      narrow(kernel_, a_.y_type[0], scratch_->result[0], at(a_.y[0], a_.y_type[0], offset), count);
  }

 private:
  const CombineArgs& a_;
  const Kernels& kernel_;
  Scratch<T>* scratch_;
  const bool stream_;
  const T* column_[kMaxColumns];
};

// Stages run in order and -1 means none yet, so the first bad one stays. Two threads can only
// race to write the same number.
void report(const CombineArgs& a, int64_t sample) {
  std::atomic_ref<int64_t> status(a.status[sample]);
  const int64_t stage = a.streams ? a.streams[3 * sample + 2] : int64_t(a.word);
  if (status.load(std::memory_order_relaxed) < 0)
    status.store(stage & (kStageLimit - 1), std::memory_order_relaxed);
}

bool runs_in_place(const CombineArgs& a) {
  if (a.clamp || a.noises > 0 || a.rows > kMaxGroup) return false;
  const DType native = a.wide ? DType::kFloat64 : DType::kFloat32;
  for (int k = 0; k < a.inputs; ++k)
    if (a.x_type[k] != native) return false;
  for (int r = 0; r < a.rows; ++r)
    if (a.y_type[r] != native) return false;
  return true;
}

// An output that is an input has its lines in the cache: bypassing it costs up to three times.
bool writes_over_inputs(const CombineArgs& a) {
  for (int r = 0; r < a.rows; ++r)
    for (int k = 0; k < a.inputs; ++k)
      if (a.y[r] == a.x[k]) return true;
  return false;
}

int64_t bytes_moved(const CombineArgs& a) {
  int64_t bytes = 0;
  for (int k = 0; k < a.inputs; ++k) bytes += dtype_bytes(a.x_type[k]);
  for (int r = 0; r < a.rows; ++r) bytes += a.y[r] ? dtype_bytes(a.y_type[r]) : 0;
  return bytes * a.samples * a.elements;
}

template <typename T>
void run_typed(CombineArgs a) {
  const bool per_sample = a.weight_table || a.noises > 0 || a.status;
  if (!per_sample) {
    a.elements *= a.samples;
    a.samples = 1;
  }
  const Kernels& kernel = kernels();
  const bool in_place = runs_in_place(a);
  const bool stream = bytes_moved(a) >= kStreamBytes && !writes_over_inputs(a);
  const int64_t piece = in_place ? kLongPiece : kPiece;
  const int64_t pieces = (a.elements + piece - 1) / piece;
  const int64_t average = std::max<int64_t>(1, a.elements / std::max<int64_t>(1, pieces));
  const auto work = [&](int64_t from, int64_t to) {
    alignas(64) static thread_local Scratch<T> scratch;
    Piece<T> run(a, kernel, &scratch, stream);
    int64_t known = -1;
    RowWeights<T> weights(a, 0);
    for (int64_t item = from; item < to; ++item) {
      const int64_t sample = item / pieces;
      const int64_t begin = item % pieces * piece;
      const int64_t count = std::min(piece, a.elements - begin);
      if (a.weight_table && sample != known) weights = RowWeights<T>(a, sample);
      known = sample;
      const bool finite = run.run(weights, sample, begin, count);
      run.store_clamped(sample * a.elements + begin, count);
      if (a.status && !finite) report(a, sample);
    }
  };
  const int64_t grain = a.noises > 0 ? kNoiseGrain : kGrain;
  share_out(a.samples * pieces, std::max<int64_t>(1, grain / average), work);
}

void run(const CombineArgs& a, const Tensor&) {
  if (a.samples * a.elements == 0) return;
  if (a.wide)
    run_typed<double>(a);
  else
    run_typed<float>(a);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) {
  m.impl("combine", TORCH_BOX(&combine<run>));
  m.impl("combine.out", TORCH_BOX(&combine_out<run>));
  m.impl("combine.table", TORCH_BOX(&combine_table<run>));
  m.impl("combine.table_out", TORCH_BOX(&combine_table_out<run>));
}

}  // namespace diffast::cpu
