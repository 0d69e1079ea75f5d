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
  call.steps = steps_to(node, a.depth);
  for (int step = 0; step < call.steps; ++step) {
    const BrownianLevel& level = kBrownianLevels[step == 1 ? 0 : step];
    call.word[step] = word_of_step(node, a.depth, step);
    call.up[step] = is_lower_end(node, a.depth, step);
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
  kernel.of<T>().descend(*way);
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
  kernel.of<T>().rows(call);
}

template <typename T>
void run_chunk(const Kernels& kernel, const BrownianArgs& a, int64_t sample, int64_t begin,
               int64_t count) {
  alignas(64) T here[kChunk], before[kChunk];
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
  const auto chunk = a.wide ? run_chunk<double> : run_chunk<float>;
  share_chunks(a.samples, a.elements, kChunk, kNoiseGrain / a.depth, [&](const auto& each) {
    each([&](int64_t, int64_t sample, int64_t begin, int64_t count) {
      chunk(kernel, a, sample, begin, count);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) {
  m.impl("brownian.out", TORCH_BOX(&brownian_out<run>));
}

}  // namespace diffast::cpu
