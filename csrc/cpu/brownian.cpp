// `brownian` on the CPU: a descent through the tree for each piece of a sample. The two values that
// bracket the node stay in the L1 cache, and each level writes over one of them.
#include <algorithm>

#include "../brownian_tensors.h"
#include "pieces.h"

namespace diffast::cpu {
namespace {

// Elements [begin, begin + count) of one sample.
struct Piece {
  uint64_t seed, id;
  int64_t begin, count;
};

// The path between the two nodes nearest to the wanted one, as far as a descent has come.
template <typename T>
struct Bracket {
  alignas(64) T left[kPiece];
  alignas(64) T right[kPiece];
};

template <typename T>
class Descent {
 public:
  Descent(const Kernels& kernel, const BrownianArgs& args, const Piece& piece)
      : kernel_(kernel), depth_(args.depth), piece_(piece) {}

  // V at a node, which lies in the bracket until the next call with the same one.
  const T* value(int64_t node, Bracket<T>* at) {
    node = node_within(node, depth_);
    if (node < 0) return std::fill_n(at->left, piece_.count, T(0)), at->left;
    const int64_t last = int64_t(1) << depth_;
    const bool above = node > last / 2;
    T* middle = above ? at->left : at->right;
    T* end = above ? at->right : at->left;
    draw(kMiddleWord);
    for (int64_t i = 0; i < piece_.count; ++i) middle[i] = T(z_[i]);
    if (node == last / 2) return middle;
    draw(above ? kHighEndWord : kLowEndWord);
    const T keep = T(kBrownianLevels[0].keep), fresh = T(kBrownianLevels[0].fresh);
    for (int64_t i = 0; i < piece_.count; ++i) end[i] = middle[i] * keep + T(z_[i]) * fresh;
    return node == 0 || node == last ? end : descend(node, at);
  }

 private:
  void draw(uint32_t word) {
    kernel_.normals(z_, piece_.count, uint32_t(piece_.begin / 4), word, piece_.id, piece_.seed);
  }

  void bridge(const Bracket<T>& at, const BrownianLevel& level, T* to) const {
    if constexpr (sizeof(T) == sizeof(double))
      kernel_.bridge_double({at.left, at.right, z_, to, level.keep, level.fresh, piece_.count});
    else
      kernel_.bridge_float(
          {at.left, at.right, z_, to, float(level.keep), float(level.fresh), piece_.count});
  }

  const T* descend(int64_t node, Bracket<T>* at) {
    const int last = level_of_node(node, depth_);
    T* middle = nullptr;
    for (int level = 2; level <= last; ++level) {
      draw(word_of_level(node, depth_, level));
      middle = lies_above(node, depth_, level) ? at->left : at->right;
      bridge(*at, kBrownianLevels[level], middle);
    }
    return middle;
  }

  const Kernels& kernel_;
  int depth_;
  Piece piece_;
  alignas(64) float z_[kPiece];
};

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
void run_piece(const Kernels& kernel, const BrownianArgs& a, int64_t sample, const Piece& piece) {
  Bracket<T> here, before;
  Descent<T> descent(kernel, a, piece);
  const int64_t from = a.nodes[2 * sample], to = a.nodes[2 * sample + 1];
  const int64_t offset = sample * a.elements + piece.begin;
  const T* v = descent.value(to, &here);
  const T* start = v;
  if (a.last && from >= 0)
    start = static_cast<const T*>(a.last) + offset;
  else if (from != to)
    start = descent.value(from, &before);
  T* increment = static_cast<T*>(a.increment) + offset;
  mix(kernel, a.weights + 2 * sample, v, start, increment, piece.count);
  if (a.value) memcpy(static_cast<T*>(a.value) + offset, v, piece.count * sizeof(T));
}

void run(const BrownianArgs& a, const Tensor&) {
  if (a.samples * a.elements == 0) return;
  const Kernels& kernel = kernels();
  const int64_t pieces = (a.elements + kPiece - 1) / kPiece;
  const int64_t average = std::max<int64_t>(1, a.elements / pieces) * a.depth;
  const auto work = [&](int64_t first, int64_t end) {
    for (int64_t item = first; item < end; ++item) {
      const int64_t sample = item / pieces;
      const int64_t begin = item % pieces * kPiece;
      const int64_t* stream = a.streams + 3 * sample;
      const Piece piece = {uint64_t(stream[0]), uint64_t(stream[1]), begin,
                           std::min(kPiece, a.elements - begin)};
      if (a.wide)
        run_piece<double>(kernel, a, sample, piece);
      else
        run_piece<float>(kernel, a, sample, piece);
    }
  };
  share_out(a.samples * pieces, std::max<int64_t>(1, kNoiseGrain / average), work);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) {
  m.impl("brownian.out", TORCH_BOX(&brownian_out<run>));
}

}  // namespace diffast::cpu
