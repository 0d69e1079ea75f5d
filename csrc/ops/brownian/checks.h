// From tensors to BrownianArgs, with every check that `brownian` makes; the same words are in
// ops/checks_brownian.py, and a test compares the two.
#pragma once

#include "../combine/checks.h"
#include "args.h"
#include "tree.h"

namespace diffast {

inline void check_small(const char* name, const Tensor& t, ScalarType type, int64_t samples,
                        int64_t width, const Tensor& increment) {
  const bool fits =
      t.scalar_type() == type && t.dim() == 2 && t.size(0) == samples && t.size(1) == width;
  STD_TORCH_CHECK(fits, "brownian: ", name, " is ", dtype_text(t), " ", shape_text(t), " but ",
                  type == ScalarType::Long ? "int64 [" : "float64 [", samples, ", ", width,
                  "] is needed");
  STD_TORCH_CHECK(same_device(t, increment), "brownian: ", name, " is on ", device_text(t),
                  " but increment is on ", device_text(increment));
  STD_TORCH_CHECK(t.is_contiguous(), "brownian: ", name, " of shape ", shape_text(t),
                  " is not contiguous but the kernel reads it in row-major order");
}

inline void check_like(const char* name, const Tensor& t, const First& increment, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type && increment.has_shape_of(t), "brownian: ", name, " is ",
                  dtype_text(t), " ", shape_text(t), " but increment is ",
                  dtype_text(increment.tensor), " ", shape_text(increment.tensor));
  STD_TORCH_CHECK(increment.is_on_device_of(t), "brownian: ", name, " is on ", device_text(t),
                  " but increment is on ", device_text(increment.tensor));
  STD_TORCH_CHECK(t.is_contiguous(), "brownian: ", name, " of shape ", shape_text(t),
                  " is not contiguous but the kernel walks it in row-major order");
}

// `last` may be an output itself, since every element is read before it is written there.
inline void check_brownian_overlap(const BrownianArgs& a) {
  const int64_t bytes = a.samples * a.elements * (a.wide ? 8 : 4);
  const auto overlaps = [bytes](const void* a, const void* b) {
    const char* x = static_cast<const char*>(a);
    const char* y = static_cast<const char*>(b);
    return x < y + bytes && y < x + bytes;
  };
  STD_TORCH_CHECK(!a.value || !overlaps(a.value, a.increment),
                  "brownian: value overlaps increment but both are written");
  if (!a.last) return;
  STD_TORCH_CHECK(a.last == a.increment || !overlaps(a.last, a.increment),
                  "brownian: increment overlaps last without being the same tensor");
  STD_TORCH_CHECK(!a.value || a.last == a.value || !overlaps(a.last, a.value),
                  "brownian: value overlaps last without being the same tensor");
}

// `brownian` into given tensors [samples, ...].
template <auto Run>
void brownian_out(Tensor streams, Tensor nodes, Tensor weights, int64_t depth, OptionalTensor last,
                  Tensor increment, OptionalTensor value) {
  STD_TORCH_CHECK(depth >= 1 && depth <= kMaxDepth, "brownian: depth ", depth, " but 1 to ",
                  kMaxDepth, " are supported");
  const ScalarType type = increment.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "brownian: increment has dtype ", dtype_text(increment),
                  " but float32 or float64 is needed");
  STD_TORCH_CHECK(increment.dim() > 0, "brownian: increment has no batch dimension but ",
                  "[samples, ...] is needed");
  BrownianArgs a = {};
  a.samples = increment.size(0);
  check_small("streams", streams, ScalarType::Long, a.samples, 3, increment);
  check_small("nodes", nodes, ScalarType::Long, a.samples, 2, increment);
  check_small("weights", weights, ScalarType::Double, a.samples, 2, increment);
  const First like(increment);
  check_like("increment", increment, like, type);
  if (last.has_value()) check_like("last", *last, like, type);
  if (value.has_value()) check_like("value", *value, like, type);
  a.streams = static_cast<const int64_t*>(streams.const_data_ptr());
  a.nodes = static_cast<const int64_t*>(nodes.const_data_ptr());
  a.weights = static_cast<const double*>(weights.const_data_ptr());
  a.last = last.has_value() ? last->const_data_ptr() : nullptr;
  a.increment = increment.mutable_data_ptr();
  a.value = value.has_value() ? value->mutable_data_ptr() : nullptr;
  a.elements = a.samples == 0 ? 0 : increment.numel() / a.samples;
  a.depth = int32_t(depth);
  a.wide = type == ScalarType::Double;
  check_brownian_overlap(a);
  Run(a, increment);
}

}  // namespace diffast
