// What the checks of every op are made of. The checks here keep a kernel inside its tensors'
// memory and refuse a call in one sentence that names the op only. The Python checks
// (diffast/ops/<op>/checks.py) make the same tests; diffast.ops runs them after a refusal, and they
// say which arguments disagree.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "dtype.h"
#include "normal.h"

namespace diffast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

[[noreturn]] __attribute__((noinline)) inline void refuse(const char* op) {
  throw std::runtime_error(std::string("diffast::") + op +
                           ": the arguments do not fit together");  // REFUSAL of ops/explain.py
}

inline void need(bool fits, const char* op) {
  if (!fits) refuse(op);
}

inline bool to_dtype(ScalarType type, DType* out) {
  // In the order of DType.
  constexpr ScalarType types[] = {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16,
                                  ScalarType::Double};
  for (int i = 0; i < 4; ++i)
    if (types[i] == type) {
      *out = DType(i);
      return true;
    }
  return false;
}

// The type of a table's numbers.
template <typename T>
constexpr ScalarType kScalar = torch::headeronly::CppTypeToScalarType<T>::value;

// A tensor that the call's other tensors are compared with. Its sizes and device are asked for
// once: each question is a call through the stable ABI.
struct First {
  const Tensor& tensor;
  torch::headeronly::IntHeaderOnlyArrayRef sizes;
  bool cpu;

  explicit First(const Tensor& t) : tensor(t), sizes(t.sizes()), cpu(t.is_cpu()) {}

  int64_t samples() const { return sizes.size() == 0 ? 1 : sizes[0]; }

  // Elements of one sample, all dimensions but the first; 0 where there are no samples.
  int64_t elements() const {
    int64_t product = samples() == 0 ? 0 : 1;
    for (size_t d = 1; d < sizes.size(); ++d) product *= sizes[d];
    return product;
  }

  // Whether `t` is on the same device and contiguous.
  bool is_beside(const Tensor& t) const {
    const bool same =
        cpu ? t.is_cpu()
            : t.is_cuda() && tensor.is_cuda() && t.get_device_index() == tensor.get_device_index();
    return same && t.is_contiguous();
  }

  // Whether `t` has the same shape, too.
  bool is_like(const Tensor& t) const {
    const auto other = t.sizes();
    if (other.size() != sizes.size()) return false;
    for (size_t d = 0; d < sizes.size(); ++d)
      if (other[d] != sizes[d]) return false;
    return is_beside(t);
  }

  // Sets `data` to the memory of `t`, a table or one number a sample. Returns whether `t` has the
  // type of `data` and this shape.
  template <typename T>
  bool bind(T** data, const Tensor& t, std::initializer_list<int64_t> shape) const {
    const auto other = t.sizes();
    if (t.scalar_type() != kScalar<std::remove_const_t<T>> || other.size() != shape.size())
      return false;
    size_t d = 0;
    for (const int64_t size : shape)
      if (other[d++] != size) return false;
    if constexpr (std::is_const_v<T>)
      *data = static_cast<T*>(t.const_data_ptr());
    else
      *data = static_cast<T*>(t.mutable_data_ptr());
    return is_beside(t);
  }

  // Sets `data` to null if the call goes without the tensor.
  template <typename T>
  bool bind(T** data, const OptionalTensor& t, std::initializer_list<int64_t> shape) const {
    *data = nullptr;
    return !t.has_value() || bind(data, *t, shape);
  }
};

// The first input of a call, which has to have one.
inline First first_of(const std::vector<Tensor>& xs, const char* op) {
  need(!xs.empty(), op);
  return First(xs[0]);
}

// A tensor's memory.
struct Span {
  const char *begin, *end;
  DType type;

  Span(const void* data, int64_t numel, DType of)
      : begin(static_cast<const char*>(data)), end(begin + numel * dtype_bytes(of)), type(of) {}
  bool overlaps(const Span& other) const { return other.begin < end && begin < other.end; }
  bool is(const Span& other) const { return begin == other.begin && type == other.type; }
};

// Whether each output is an input itself (every element is read before it is written) or overlaps
// neither an input nor another output; `input` and `output` give the spans.
template <typename Input, typename Output>
bool are_apart(int64_t inputs, const Input& input, int64_t outputs, const Output& output) {
  for (int64_t r = 0; r < outputs; ++r) {
    const Span out = output(r);
    for (int64_t k = 0; k < inputs; ++k)
      if (const Span in = input(k); !in.is(out) && in.overlaps(out)) return false;
    for (int64_t s = 0; s < r; ++s)
      if (out.overlaps(output(s))) return false;
  }
  return true;
}

// Whether a counter word leaves the slot bits free and has 32 bits.
inline bool is_word(int64_t stage) {
  return stage >= 0 && (stage >> 32) == 0 && (stage >> kSlotShift & 3) == 0;
}

// Sets the limits if there are any; returns whether they are none or an ordered pair.
inline bool set_limits(const std::vector<double>& clamp, bool* used, double* low, double* high) {
  *used = !clamp.empty();
  if (!*used) return true;
  if (clamp.size() != 2 || !(clamp[0] <= clamp[1])) return false;
  *low = clamp[0];
  *high = clamp[1];
  return true;
}

}  // namespace diffast
