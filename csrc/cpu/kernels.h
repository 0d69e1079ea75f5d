// The inner loops of the CPU ops. The same source (kernels.inc) is compiled for the baseline
// instruction set and for AVX2; `kernels()` chooses when it is first called. Both give the same
// bits, since they differ in the width of the vectors only.
#pragma once

#include <cstdint>

#include "../ops/combine_error/args.h"
#include "../ops/gram/args.h"
#include "../ops/quantile/keys.h"
#include "../ops/sweep/args.h"

namespace diffast::cpu {

// Philox blocks (of four normals) that are computed at a time; their words lie on the stack.
constexpr int kNormalBlocks = 64;

constexpr int kMaxGroup = 4;  // rows of one call at most

template <typename T>
struct RowsCall {
  const T* x[kMaxColumns];  // columns, `count` elements each
  T* y[kMaxGroup];          // rows
  const T* weight;          // [rows, columns]
  int columns;
  int rows;
  int64_t count;
  bool stream;  // non-temporal stores
};

// Up to so many inputs and later rows, a clamped row is made together with the rows that weigh it.
constexpr int kClampedColumns = 6;
constexpr int kLaterRows = 2;

// A row, clamped, and rows that have it as their last column.
template <typename T>
struct ClampedCall {
  const T* x[kClampedColumns];  // columns, `count` elements each
  T* y[1 + kLaterRows];         // the clamped row, or null; the later rows
  const T* first;               // weights of the clamped row: [columns]
  const T* weight;              // of the later rows: [rows, columns + 1]
  T low, high;
  int columns;
  int rows;  // later ones: 1 or more
  int64_t count;
  bool stream;  // non-temporal stores
};

// The norm of a row, divided element by element by the tolerance that `form` describes, or as it
// is.
template <typename T>
struct NormCall {
  const T* row;     // `count` elements
  const T* before;  // likewise; read for the forms max and sum
  const T* after;
  T atol;
  T rtol;
  int64_t count;
  ErrorForm form;
  bool scaled;
  bool largest;  // the largest magnitude instead of the sum of squares; only where scaled
};

constexpr int kMaxPathSteps = 25;  // the middle, an end, and 23 levels

// The steps to a node of a Brownian path, one normal each: the middle, an end, then values between.
template <typename T>
struct DescentCall {
  T* out;  // `count` values
  int64_t count;
  uint64_t seed, id;
  uint32_t first_block;
  int steps;  // 1 or more
  uint32_t word[kMaxPathSteps];
  T keep[kMaxPathSteps], fresh[kMaxPathSteps];
  bool up[kMaxPathSteps];  // whether the new value is the interval's lower end in the next step
};

// Up to so many columns and rows, a call of `gram` makes the rows itself.
constexpr int kFusedColumns = 4;
constexpr int kFusedRows = 2;

// Inner products of rows, every pair (i, j) with i <= j in order; then, with `totals`, the sum of
// each row.
template <typename T>
struct GramCall {
  const T* column[kMaxGramRows];   // `count` elements each
  const T (*weight)[kMaxColumns];  // of each row, finite
  double* sums;
  int columns;  // 0: the columns are the rows themselves
  int rows;
  bool totals;
  int64_t count;
};

constexpr int kTallies = 2;  // tables of counts that elements take in turns

// Counts the magnitudes of a row by their first digits.
template <typename T>
struct TallyCall {
  const T* row;
  uint32_t* counts;  // [kTallies, kDigits], added to
  int64_t count;
};

// Gathers the keys of a row's magnitudes from `first` to `last`.
template <typename T>
struct GatherCall {
  const T* row;
  Key<T>* to;
  Key<T> first, last;
  int64_t count;
};

constexpr int kMaxAhead = 1 + kMaxOutputs;

// One stage of a sweep's job: p is copied to the point, and each row is a weighted sum of columns
// and the change with p - x.
template <typename T>
struct WalkCall {
  const T* column[kMaxWalkColumns];  // `count` elements each
  T* row[kMaxMade];                  // may be columns
  const T* p;                        // one of the columns
  const T* x;                        // where the network was called
  T* point;                          // may be x
  const T* weight;                   // [rows, columns]
  T change[kMaxMade];                // added to a row for each unit of p - x
  const void* ahead[kMaxAhead];      // what is read next, to be prefetched: `count` elements each,
  int64_t ahead_bytes[kMaxAhead];    // of so many bytes
  int aheads;
  int columns;
  int rows;
  int64_t count;
  bool changes;  // otherwise `change` is not read
  bool stream;   // a non-temporal store of the point; the caller makes the fence
};

// The loops over numbers of one type.
template <typename T>
struct TypedKernels {
  bool (*rows)(const RowsCall<T>&);  // whether every sum was finite
  bool (*clamped_rows)(const ClampedCall<T>&);
  double (*norm)(const NormCall<T>&);  // as NormCall says, in float64; NaN if an element is
  void (*descend)(const DescentCall<T>&);
  double (*walk)(const WalkCall<T>&);  // the sum of (p - x)^2 in float64
  void (*gram)(const GramCall<T>&);
  void (*tally)(const TallyCall<T>&);
  int64_t (*gather)(const GatherCall<T>&);  // how many keys were written
};

struct Kernels {
  const char* name;
  void (*normals)(float* out, int64_t count, uint32_t first_block, uint32_t word, uint64_t id,
                  uint64_t seed);
  void (*widen_half)(const uint16_t* in, float* out, int64_t count);
  void (*widen_bfloat)(const uint16_t* in, float* out, int64_t count);
  void (*narrow_half)(const float* in, uint16_t* out, int64_t count);
  void (*narrow_bfloat)(const float* in, uint16_t* out, int64_t count);
  TypedKernels<float> floats;
  TypedKernels<double> doubles;

  template <typename T>
  const TypedKernels<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float))
      return floats;
    else
      return doubles;
  }
};

const Kernels& kernels_base();
const Kernels* kernels_avx2();  // null where the compiler target has no AVX2
const Kernels& kernels();       // the best that runs here; DIFFAST_CPU_ISA=base|avx2 overrides

}  // namespace diffast::cpu
