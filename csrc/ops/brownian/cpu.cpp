// `brownian` on the CPU: a chunk of a sample goes down the tree, 256 elements at a time. The values
// at both ends of the current interval stay in the L1 cache.
#include <algorithm>

#include "../../cpu/chunks.h"
#include "checks.h"

namespace diffast::cpu {
namespace {

static_assert(kMaxPathSteps == kMaxDepth + 1);

// The steps from the tree's root to a node of one sample's path; none to a node below 0.
template <typename T>
DescentCall<T> way_to(int64_t node, const BrownianArgs& a, int64_t sample) {
  DescentCall<T> call = {};
  call.seed = uint64_t(a.streams[3 * sample]);
  call.id = uint64_t(a.streams[3 * sample + 1]);
  node = node_within(node, a.depth);
  if (node < 0) return call;
  const int64_t last = int64_t(1) << a.depth;
  const bool above = node > last / 2;
  call.steps = node == 0 || node == last ? 2
               : node == last / 2        ? 1
                                         : level_of_node(node, a.depth) + 1;
  for (int step = 0; step < call.steps; ++step) {
    const BrownianLevel& level = kBrownianLevels[step == 1 ? 0 : step];
    call.word[step] = step > 1    ? word_of_level(node, a.depth, step)
                      : step == 0 ? kMiddleWord
                      : above     ? kHighEndWord
                                  : kLowEndWord;
    call.up[step] = step > 1 ? lies_above(node, a.depth, step) : (step == 0) == above;
    call.keep[step] = T(level.keep);
    call.fresh[step] = T(level.fresh);
  }
  return call;
}

// V for elements [begin, begin + count) of the sample.
template <typename T>
void path_values(const Kernels& kernel, DescentCall<T>* way, int64_t begin, int64_t count, T* out) {
  if (way->steps == 0) {
    std::fill_n(out, count, T(0));
    return;
  }
  way->out = out;
  way->count = count;
  way->first_block = uint32_t(begin / 4);
  if constexpr (sizeof(T) == sizeof(double))
    kernel.descend_double(*way);
  else
    kernel.descend_float(*way);
}

// increment = weights[0] V(to) + weights[1] V(from), as one row of two columns.
template <typename T>
void mix(const Kernels& kernel, const double* weights, const T* to, const T* from, T* increment,
         int64_t count) {
  const T weight[2] = {T(weights[0]), T(weights[1])};
  RowsCall<T> call = {};
  call.x[0] = to;
  call.x[1] = from;
  call.y[0] = increment;
  call.weight = weight;
  call.columns = 2;
  call.rows = 1;
  call.count = count;
  if constexpr (sizeof(T) == sizeof(double))
    kernel.rows_double(call);
  else
    kernel.rows_float(call);
}

template <typename T>
void run_chunk(const Kernels& kernel, const BrownianArgs& a, int64_t sample, int64_t begin) {
  alignas(64) T here[kChunk], before[kChunk];
  const int64_t count = std::min(kChunk, a.elements - begin);
  const int64_t from = a.nodes[2 * sample], to = a.nodes[2 * sample + 1];
  const int64_t offset = sample * a.elements + begin;
  DescentCall<T> way = way_to<T>(to, a, sample);
  path_values(kernel, &way, begin, count, here);
  const T* start = here;
  if (a.last && from >= 0) {
    start = static_cast<const T*>(a.last) + offset;
  } else if (from != to) {
    way = way_to<T>(from, a, sample);
    path_values(kernel, &way, begin, count, before);
    start = before;
  }
  T* increment = static_cast<T*>(a.increment) + offset;
  mix(kernel, a.weights + 2 * sample, here, start, increment, count);
  if (a.value) memcpy(static_cast<T*>(a.value) + offset, here, count * sizeof(T));
}

void run(const BrownianArgs& a, const Tensor&) {
  if (a.samples * a.elements == 0) return;
  const Kernels& kernel = kernels();
  const int64_t chunks = (a.elements + kChunk - 1) / kChunk;
  const int64_t average = std::max<int64_t>(1, a.elements / chunks) * a.depth;
  const auto work = [&](int64_t first, int64_t end) {
    for (int64_t item = first; item < end; ++item) {
      const int64_t sample = item / chunks, begin = item % chunks * kChunk;
      if (a.wide)
        run_chunk<double>(kernel, a, sample, begin);
      else
        run_chunk<float>(kernel, a, sample, begin);
    }
  };
  share_out(a.samples * chunks, std::max<int64_t>(1, kNoiseGrain / average), work);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) {
  m.impl("brownian.out", TORCH_BOX(&brownian_out<run>));
}

}  // namespace diffast::cpu
