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
#include "memory.h"
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

// A tensor that the call's other tensors are compared with, and the memory of all of them. Its
// sizes and device are asked for once: each question is a call through the stable ABI.
class First {
 public:
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

  // The memory of a tensor of `count` elements, each of so many bytes, that the op reads or writes.
  // An op gets every pointer here, so that `is_apart` knows all memory of the call.
  const void* reads(const Tensor& t, int64_t count, int64_t bytes, ScalarType type,
                    Access access = Access::kWhole) {
    const void* data = t.const_data_ptr();
    memory_.reads(span(data, count * bytes, type, access));
    return data;
  }
  void* writes(const Tensor& t, int64_t count, int64_t bytes, ScalarType type,
               Access access = Access::kWhole) {
    void* data = t.mutable_data_ptr();
    memory_.writes(span(data, count * bytes, type, access));
    return data;
  }

  // Whether no written tensor shares memory with another argument, see Memory.
  bool is_apart() const { return memory_.is_apart(); }

  // Sets `data` to the memory of `t`, a table or one number a sample. Memory of constant numbers is
  // read, other memory is written. Returns whether `t` has the type of `data` and this shape.
  template <typename T>
  bool bind(T** data, const Tensor& t, std::initializer_list<int64_t> shape) {
    using Number = std::remove_const_t<T>;
    constexpr ScalarType type = kScalar<Number>;
    const auto other = t.sizes();
    if (t.scalar_type() != type || other.size() != shape.size()) return false;
    size_t d = 0;
    int64_t count = 1;
    for (const int64_t size : shape) {
      if (other[d++] != size) return false;
      count *= size;
    }
    constexpr int64_t bytes = type == ScalarType::Int ? 4 : 8;
    static_assert(sizeof(Number) % bytes == 0);
    if constexpr (std::is_const_v<T>)
      *data = static_cast<T*>(reads(t, count, bytes, type));
    else
      *data = static_cast<T*>(writes(t, count, bytes, type));
    return is_beside(t);
  }

  // Sets `data` to null if the call goes without the tensor.
  template <typename T>
  bool bind(T** data, const OptionalTensor& t, std::initializer_list<int64_t> shape) {
    *data = nullptr;
    return !t.has_value() || bind(data, *t, shape);
  }

 private:
  static Span span(const void* data, int64_t size, ScalarType type, Access access) {
    const char* begin = static_cast<const char*>(data);
    return {begin, begin + size, int8_t(type), access};
  }

  Memory memory_;
};

// The first input of a call, which has to have one.
inline First first_of(const std::vector<Tensor>& xs, const char* op) {
  need(!xs.empty(), op);
  return First(xs[0]);
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
