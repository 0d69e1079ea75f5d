// The types that tensors of states may have.
#pragma once

#include <cstdint>

namespace diffast {

enum class DType : int8_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

constexpr int64_t dtype_bytes(DType type) {
  return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2;
}

// The type of a C++ number, float or double.
template <typename T>
constexpr DType kNative = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

}  // namespace diffast
