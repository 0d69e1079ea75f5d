// `_host`: build information and the shared scalar arithmetic over numpy arrays, so that tables,
// tests and numpy code use the very numbers that the kernels use. No torch header here: pybind11
// and the stable ABI do not mix in one translation unit.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "../core/half.h"
#include "../core/normal.h"
#include "../core/row.h"
#include "../ops/combine/args.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Words [N, 4] for counters [N, 4] and keys [N].
py::array_t<uint32_t> philox(const Array<uint32_t>& counters, const Array<uint64_t>& keys) {
  if (counters.ndim() != 2 || counters.shape(1) != 4 || keys.ndim() != 1 ||
      keys.shape(0) != counters.shape(0))
    throw std::invalid_argument("philox: counters must be [N, 4] and keys [N], with the same N");
  const py::ssize_t count = counters.shape(0);
  py::array_t<uint32_t> out({count, py::ssize_t(4)});
  const uint32_t* c = counters.data();
  uint32_t* to = out.mutable_data();
  for (py::ssize_t i = 0; i < count; ++i) {
    const diffast::Words w = diffast::philox4x32_10(
        {c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]}, keys.data()[i]);
    to[4 * i] = w.x;
    to[4 * i + 1] = w.y;
    to[4 * i + 2] = w.z;
    to[4 * i + 3] = w.w;
  }
  return out;
}

// The first `count` normals of one sample.
py::array_t<float> normals(uint64_t seed, int64_t id, uint32_t word, int64_t count) {
  py::array_t<float> out(count);
  float* to = out.mutable_data();
  for (int64_t block = 0; 4 * block < count; ++block) {
    const diffast::Normals4 z =
        diffast::normals_of_block(uint32_t(block), word, uint64_t(id), seed);
    for (int lane = 0; lane < 4 && 4 * block + lane < count; ++lane)
      to[4 * block + lane] = z.value[lane];
  }
  return out;
}

// The two normals of each pair of words [N], [N] -> [N, 2].
py::array_t<float> to_normals(const Array<uint32_t>& radius, const Array<uint32_t>& angle) {
  if (radius.ndim() != 1 || angle.ndim() != 1 || radius.shape(0) != angle.shape(0))
    throw std::invalid_argument("to_normals: both word arrays must be [N], with the same N");
  const py::ssize_t count = radius.shape(0);
  py::array_t<float> out({count, py::ssize_t(2)});
  for (py::ssize_t i = 0; i < count; ++i) {
    const diffast::NormalPair z = diffast::to_normals(radius.data()[i], angle.data()[i]);
    out.mutable_data()[2 * i] = z.first;
    out.mutable_data()[2 * i + 1] = z.second;
  }
  return out;
}

// One row: weights [K], x [K, N] -> [N], in the arithmetic of `T`.
template <typename T>
py::array_t<T> row(const Array<double>& weights, const Array<T>& x) {
  if (weights.ndim() != 1 || x.ndim() != 2 || weights.shape(0) != x.shape(0) ||
      weights.shape(0) < 1 || weights.shape(0) > diffast::kMaxColumns)
    throw std::invalid_argument("row: weights must be [K] and x [K, N], with 1 <= K <= " +
                                std::to_string(diffast::kMaxColumns));
  const int columns = int(x.shape(0));
  const py::ssize_t count = x.shape(1);
  T weight[diffast::kMaxColumns];
  for (int k = 0; k < columns; ++k) weight[k] = T(weights.data()[k]);
  py::array_t<T> out(count);
  for (py::ssize_t i = 0; i < count; ++i) {
    T column[diffast::kMaxColumns];
    for (int k = 0; k < columns; ++k) column[k] = x.data()[k * count + i];
    out.mutable_data()[i] = diffast::row_dot_n(weight, column, columns);
  }
  return out;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["python"] = PY_VERSION;
  info["max_inputs"] = diffast::kMaxInputs;
  info["max_rows"] = diffast::kMaxRows;
  info["max_noises"] = diffast::kMaxNoises;
  return info;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "The shared scalar arithmetic of diffast's kernels, over numpy arrays.";
  m.def("philox", &philox, py::arg("counters"), py::arg("keys"));
  m.def("normals", &normals, py::arg("seed"), py::arg("id"), py::arg("word"), py::arg("count"));
  m.def("to_normals", &to_normals, py::arg("radius"), py::arg("angle"));
  m.def("to_uniform", py::vectorize([](uint32_t bits) { return diffast::to_uniform(bits); }));
  m.def("log_uniform", py::vectorize([](float u) { return diffast::log_uniform(u); }));
  m.def("row_float", &row<float>, py::arg("weights"), py::arg("x"));
  m.def("row_double", &row<double>, py::arg("weights"), py::arg("x"));
  m.def("half_bits", py::vectorize([](float x) { return diffast::half_bits(x); }));
  m.def("float_of_half", py::vectorize([](uint16_t h) { return diffast::float_of_half(h); }));
  m.def("bfloat_bits", py::vectorize([](float x) { return diffast::bfloat_bits(x); }));
  m.def("build_info", &build_info);
}
