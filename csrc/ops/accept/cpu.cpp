// `accept` on the CPU: all samples are decided first, then rows are copied.
#include "../../cpu/chunks.h"
#include "checks.h"
#include "decision.h"

namespace diffast::cpu {
namespace {

constexpr int64_t kDecideGrain = 2048;   // samples a thread should have at least, 50 ns each
constexpr int64_t kCopyChunk = 1 << 14;  // elements copied by a thread at a time

// Copies one chunk of a sample, for all moves in their order.
void copy_chunk(const AcceptArgs& a, int64_t sample, int64_t begin, int64_t count) {
  for (int i = 0; i < a.moves; ++i) {
    const AcceptMove& move = a.move[i];
    if (move.route != a.route[sample]) continue;
    const int64_t offset = (sample * a.elements + begin) * move.item;
    memcpy(static_cast<char*>(move.to) + offset, static_cast<const char*>(move.from) + offset,
           size_t(count * move.item));
  }
}

// Whether a route copies anything: most calls of a run copy nothing.
bool copies(const AcceptArgs& a, int32_t route) {
  for (int i = 0; i < a.moves; ++i)
    if (a.move[i].route == route) return true;
  return false;
}

void run(AcceptArgs* args, const Tensor&) {
  AcceptArgs& a = *args;
  static thread_local std::vector<int32_t> routes;
  static thread_local std::vector<int64_t> moving;
  routes.resize(size_t(a.samples));
  a.route = routes.data();
  share_out(a.samples, kDecideGrain, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) a.route[b] = accept_sample(a, b);
  });
  if (a.elements == 0) return;
  moving.clear();
  for (int64_t b = 0; b < a.samples; ++b)
    if (copies(a, a.route[b])) moving.push_back(b);
  // This thread's list: `moving` would be another one in the threads that copy.
  const int64_t* samples = moving.data();
  share_chunks(int64_t(moving.size()), a.elements, kCopyChunk, kGrain, [&](const auto& each) {
    each([&](int64_t, int64_t i, int64_t begin, int64_t count) {
      copy_chunk(a, samples[i], begin, count);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) { m.impl("accept", TORCH_BOX(&accept<run>)); }

}  // namespace diffast::cpu
