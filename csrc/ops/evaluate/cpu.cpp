// `evaluate` on the CPU. The samples of one program are taken in chunks; an instruction is a loop
// over the numbers of a chunk, which lie side by side in each register.
#include "../../cpu/chunks.h"
#include "checks.h"
#include "instructions.h"
#include "programs.h"

namespace diffast::cpu {
namespace {

constexpr int64_t kSamples = 64;  // of a chunk
constexpr int64_t kEvaluateGrain = 1
                                   << 15;  // instructions times samples that a thread has at least

// A chunk: samples of one program. Sample i of it is sample[i] of the batch.
struct Chunk {
  const int64_t* sample;
  int64_t count;
  int64_t program;
};

// Runs a chunk's program. Count is the number of its samples where that is known: a single sample
// pays for no loops.
template <int Count>
void run_chunk(const EvaluateArgs& args, const Chunk& chunk, double* registers) {
  const int64_t n = Count ? Count : chunk.count;
  const int32_t* line = args.code + int64_t(args.starts[chunk.program]) * kInstructionWords;
  const int32_t* end = args.code + int64_t(args.starts[chunk.program + 1]) * kInstructionWords;
  for (; line != end; line += kInstructionWords) {
    double* target = registers + line[1] * n;
    const double* x = registers + line[2] * n;
    const double* y = registers + line[3] * n;
    const double* z = registers + line[4] * n;
    switch (line[0]) {
      // A target may be one of the operands itself: an element is read before it is written.
#define DIFFAST_CASE(name, result)                         \
  case name:                                               \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) { \
      [[maybe_unused]] const double a = x[i];              \
      [[maybe_unused]] const double b = y[i];              \
      [[maybe_unused]] const double c = z[i];              \
      target[i] = result;                                  \
    }                                                      \
    break;
      DIFFAST_EACH_ARITHMETIC(DIFFAST_CASE)
#undef DIFFAST_CASE
      case kConstant: {
        const double value = args.constants[line[2]];
        for (int64_t i = 0; i < n; ++i) target[i] = value;
        break;
      }
      case kInput:
        for (int64_t i = 0; i < n; ++i)
          target[i] = args.inputs[chunk.sample[i] * args.columns + line[2]];
        break;
      case kPiece:
        for (int64_t i = 0; i < n; ++i) target[i] = find_piece(args.edges, args.pieces, x[i]);
        break;
      case kLookup: {
        const double* row = args.table + line[2] * args.pieces * 4;
        for (int64_t i = 0; i < n; ++i)
          target[i] = look_up(args.edges, row, args.pieces, y[i], z[i]);
        break;
      }
      case kStore: {
        const EvaluateOut& out = args.out[line[2]];
        if (out.whole)
          for (int64_t i = 0; i < n; ++i)
            static_cast<int64_t*>(out.data)[chunk.sample[i] * out.elements + line[3]] =
                to_whole(z[i]);
        else
          for (int64_t i = 0; i < n; ++i)
            static_cast<double*>(out.data)[chunk.sample[i] * out.elements + line[3]] = z[i];
        break;
      }
    }
  }
}

void run_chunk(const EvaluateArgs& a, const Chunk& chunk) {
  double registers[kMaxRegisters * kSamples];  // not cleared: programs read what they wrote
  if (chunk.count == 1)
    run_chunk<1>(a, chunk, registers);
  else
    run_chunk<0>(a, chunk, registers);
}

// The samples in the order of their programs, and the chunks of them.
struct Batch {
  std::vector<int64_t> order, next;
  std::vector<Chunk> chunks;

  // Whether all programs that samples name exist and fit.
  bool set(const EvaluateArgs& a) {
    const bool counted = a.count_step > 0;  // `counts` of no samples have no memory
    next.assign(size_t(a.programs), 0);
    for (int64_t b = 0; b < a.samples; ++b) {
      const int64_t program = counted ? a.counts[b * a.count_step] : a.program;
      if (program < 0 || program >= a.programs) return false;
      next[size_t(program)] += 1;
    }
    if (!counted && !program_fits(a, a.program)) return false;
    order.resize(size_t(a.samples));
    chunks.clear();
    int64_t begin = 0;
    for (int64_t p = 0; p < a.programs; ++p) {
      const int64_t count = next[size_t(p)];
      if (count && counted && !program_fits(a, p)) return false;
      for (int64_t done = 0; done < count; done += kSamples)
        chunks.push_back({order.data() + begin + done, std::min(kSamples, count - done), p});
      next[size_t(p)] = begin;
      begin += count;
    }
    for (int64_t b = 0; b < a.samples; ++b)
      order[size_t(next[size_t(counted ? a.counts[b * a.count_step] : a.program)]++)] = b;
    return true;
  }
};

void run(const EvaluateArgs& a, const Tensor&) {
  static thread_local Batch batch;
  need(batch.set(a), "evaluate");
  const std::vector<Chunk>& chunks = batch.chunks;
  const int64_t length = std::max<int64_t>(1, a.instructions / a.programs * kSamples);
  share_out(int64_t(chunks.size()), std::max<int64_t>(1, kEvaluateGrain / length),
            [&](int64_t from, int64_t to) {
              for (int64_t i = from; i < to; ++i) run_chunk(a, chunks[size_t(i)]);
            });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) { m.impl("evaluate", TORCH_BOX(&evaluate<run>)); }

}  // namespace diffast::cpu
