// The instructions of `evaluate`, for the CPU and the CUDA code.
// diffast/ops/evaluate/reference.py specifies them; opcodes are places in INSTRUCTIONS of
// diffast/ops/schema.py.
#pragma once

#include <cmath>

#include "../../core/hd.h"

namespace diffast {

// Instructions that make a number of numbers a, b, c: name and result, in the order of the opcodes
// from kAdd on. Of two equal numbers, a minimum or maximum is b; a NaN on the right is taken since
// the comparison is false.
#define DIFFAST_EACH_ARITHMETIC(X)      \
  X(kAdd, a + b)                        \
  X(kSub, a - b)                        \
  X(kMul, a* b)                         \
  X(kDiv, a / b)                        \
  X(kNeg, -a)                           \
  X(kAbs, fabs(a))                      \
  X(kSqrt, sqrt(a))                     \
  X(kExp, exp(a))                       \
  X(kExpm1, expm1(a))                   \
  X(kLog, log(a))                       \
  X(kLog1p, log1p(a))                   \
  X(kSin, sin(a))                       \
  X(kCos, cos(a))                       \
  X(kTan, tan(a))                       \
  X(kAtan, atan(a))                     \
  X(kAtan2, atan2(a, b))                \
  X(kSinh, sinh(a))                     \
  X(kAsinh, asinh(a))                   \
  X(kFloor, floor(a))                   \
  X(kRound, rint(a))                    \
  X(kMinimum, a < b || a != a ? a : b)  \
  X(kMaximum, a > b || a != a ? a : b)  \
  X(kLt, a < b ? 1.0 : 0.0)             \
  X(kLe, a <= b ? 1.0 : 0.0)            \
  X(kGt, a > b ? 1.0 : 0.0)             \
  X(kGe, a >= b ? 1.0 : 0.0)            \
  X(kEq, a == b ? 1.0 : 0.0)            \
  X(kAnd, a != 0 && b != 0 ? 1.0 : 0.0) \
  X(kOr, a != 0 || b != 0 ? 1.0 : 0.0)  \
  X(kNot, a == 0 ? 1.0 : 0.0)           \
  X(kWhere, a != 0 ? b : c)

enum Opcode : int32_t {
  kConstant,
  kInput,
#define DIFFAST_NAME(name, result) name,
  DIFFAST_EACH_ARITHMETIC(DIFFAST_NAME)
#undef DIFFAST_NAME
      kPiece,
  kLookup,
  kStore,
  kOpcodes
};

// The piece of the table that holds x: torch.searchsorted(edges, x) - 1, kept within the table.
DIFFAST_HD double find_piece(const double* edges, int64_t pieces, double x) {
  int64_t first = 0, end = pieces + 1;
  while (first < end) {
    const int64_t middle = first + (end - first) / 2;
    if (!(edges[middle] >= x))
      first = middle + 1;
    else
      end = middle;
  }
  return double(first < 1 ? 0 : first > pieces ? pieces - 1 : first - 1);
}

// The cubic of a piece at x; `row` is the table's row. Knots and scales are those of schema.py.
DIFFAST_HD double look_up(const double* edges, const double* row, int64_t pieces, double piece,
                          double x) {
  const double last = double(pieces - 1);
  const int64_t p = int64_t(piece > 0 ? (piece < last ? piece : last) : 0);  // NaN: 0
  const double low = edges[p], high = edges[p + 1];
  const double part = (x - low) / (high - low);
  const double g0 = part - 0.03806023374435663, g1 = part - 0.3086582838174551;
  const double g2 = part - 0.6913417161825448, g3 = part - 0.9619397662556434;
  const double* y = row + 4 * p;
  return y[0] * (-6.122934917841438 * g1 * g2 * g3) + y[1] * (14.782072520180593 * g0 * g2 * g3) +
         y[2] * (-14.782072520180588 * g0 * g1 * g3) + y[3] * (6.122934917841435 * g0 * g1 * g2);
}

// The nearest whole number, the lowest one for NaN.
DIFFAST_HD int64_t to_whole(double value) {
  if (!(value >= -0x1p63)) return INT64_MIN;
  return value < 0x1p63 ? int64_t(rint(value)) : INT64_MAX;
}

}  // namespace diffast
