// The scalar arithmetic that all compiled kernels share, over arrays: for shared_arithmetic.py.
#include "../../csrc/core/half.h"
#include "../../csrc/core/normal.h"
#include "../../csrc/core/row.h"
#include "../../csrc/ops/combine/args.h"

namespace {

template <typename T>
void row(const double* weights, const T* x, int columns, int64_t count, T* out) {
  T weight[diffast::kMaxColumns], column[diffast::kMaxColumns];
  for (int k = 0; k < columns; ++k) weight[k] = T(weights[k]);
  for (int64_t i = 0; i < count; ++i) {
    for (int k = 0; k < columns; ++k) column[k] = x[k * count + i];
    out[i] = diffast::row_dot_n(weight, column, columns);
  }
}

template <typename From, typename To, typename Function>
void each(const From* in, int64_t count, To* out, Function function) {
  for (int64_t i = 0; i < count; ++i) out[i] = function(in[i]);
}

}  // namespace

extern "C" {

// Inputs, rows, noises and columns of one call at most.
void limits(int32_t* out) {
  out[0] = diffast::kMaxInputs;
  out[1] = diffast::kMaxRows;
  out[2] = diffast::kMaxNoises;
  out[3] = diffast::kMaxColumns;
}

// Words [count, 4] for counters [count, 4] and keys [count].
void philox(const uint32_t* c, const uint64_t* keys, int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < count; ++i, c += 4, out += 4) {
    const diffast::Words w = diffast::philox4x32_10({c[0], c[1], c[2], c[3]}, keys[i]);
    out[0] = w.x;
    out[1] = w.y;
    out[2] = w.z;
    out[3] = w.w;
  }
}

// The first `count` normals of one sample.
void normals(uint64_t seed, int64_t id, uint32_t word, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = diffast::normals_of_block(uint32_t(i / 4), word, uint64_t(id), seed).value[i % 4];
}

// The two normals of each pair of words, [count, 2].
void to_normals(const uint32_t* radius, const uint32_t* angle, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const diffast::NormalPair z = diffast::to_normals(radius[i], angle[i]);
    out[2 * i] = z.first;
    out[2 * i + 1] = z.second;
  }
}

// One row: weights [columns], x [columns, count].
void row_float(const double* weights, const float* x, int columns, int64_t count, float* out) {
  row(weights, x, columns, count, out);
}
void row_double(const double* weights, const double* x, int columns, int64_t count, double* out) {
  row(weights, x, columns, count, out);
}

void to_uniform(const uint32_t* in, int64_t count, float* out) {
  each(in, count, out, [](uint32_t bits) { return diffast::to_uniform(bits); });
}
void log_uniform(const float* in, int64_t count, float* out) {
  each(in, count, out, [](float u) { return diffast::log_uniform(u); });
}
void half_bits(const float* in, int64_t count, uint16_t* out) {
  each(in, count, out, [](float x) { return diffast::half_bits(x); });
}
void float_of_half(const uint16_t* in, int64_t count, float* out) {
  each(in, count, out, [](uint16_t h) { return diffast::float_of_half(h); });
}
void bfloat_bits(const float* in, int64_t count, uint16_t* out) {
  each(in, count, out, [](float x) { return diffast::bfloat_bits(x); });
}

}  // extern "C"
