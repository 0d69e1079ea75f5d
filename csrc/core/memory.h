// The memory of a call: what it reads and what it writes. Every op refuses a written tensor that
// shares memory with another argument; diffast/ops/memory.py says which argument that is.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace diffast {

// How an op goes through a tensor.
enum class Access : int8_t {
  kWhole,    // in any order: no other argument may share memory with it
  kInPlace,  // every element is read before it is written: an output may be an input itself
};

// The bytes of one contiguous tensor. `type` is a number that differs between dtypes.
struct Span {
  const char *begin, *end;
  int8_t type;
  Access access;

  bool overlaps(const Span& other) const { return other.begin < end && begin < other.end; }
  bool may_be(const Span& other) const {
    return access == Access::kInPlace && other.access == Access::kInPlace && begin == other.begin &&
           end == other.end && type == other.type;
  }
};

class Memory {
 public:
  // Notes a tensor. One without elements has no memory.
  void reads(const Span& span) {
    if (span.begin == span.end) return;
    if (read_count_ < kMaxSpans) read_[read_count_] = span;
    ++read_count_;
  }
  void writes(const Span& span) {
    if (span.begin == span.end) return;
    if (written_count_ < kMaxSpans) written_[written_count_] = span;
    ++written_count_;
  }

  // Whether every written tensor is an input itself, where the op allows that, or shares no memory
  // with any other tensor of the call.
  bool is_apart() const {
    if (read_count_ > kMaxSpans || written_count_ > kMaxSpans) return false;
    for (int r = 0; r < written_count_; ++r) {
      const Span& out = written_[r];
      for (int k = 0; k < read_count_; ++k)
        if (out.overlaps(read_[k]) && !out.may_be(read_[k])) return false;
      for (int s = 0; s < r; ++s)
        if (out.overlaps(written_[s])) return false;
    }
    return true;
  }

 private:
  // `accept` has most: 16 planes on either side, and five tables.
  static constexpr int kMaxSpans = 24;

  int read_count_ = 0, written_count_ = 0;
  Span read_[kMaxSpans], written_[kMaxSpans];
};

}  // namespace diffast
