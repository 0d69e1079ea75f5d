// `evaluate` on CUDA. A block is one warp, and a thread takes a sample. The samples' registers lie
// in shared memory, register by register. The warp puts its program there too, some lines at a
// time, in wide loads; each thread then reads the same line. Programs are not checked here: they
// are the encoder's (diffast/ops/evaluate/encode.py).

#include "../../cuda/elements.cuh"
#include "../../cuda/launch.h"
#include "args.h"
#include "instructions.h"

namespace diffast::cuda {
namespace {

constexpr int kLines = 128;     // of a program, in shared memory at a time
constexpr int kMostFull = 160;  // registers that 32 samples may have; with more, a block has 16

struct EvaluateCall {
  EvaluateArgs args;
  int32_t lanes;  // samples of a block
};

struct Line {
  int32_t opcode, target, a, b, c;
};
static_assert(sizeof(Line) == kInstructionWords * sizeof(int32_t));

// A block's shared memory: registers [registers, lanes], lines, and the number of each sample's
// program.
struct Shared {
  double* registers;
  Line* lines;
  int32_t* programs;
};

int64_t shared_bytes(const EvaluateCall& call) {
  return int64_t(call.args.registers) * call.lanes * int64_t(sizeof(double)) +
         (kLines + 1) * int64_t(sizeof(Line)) + kWarp * int64_t(sizeof(int32_t));
}

__device__ __forceinline__ void store(const EvaluateOut& out, int64_t at, double value) {
  if (out.whole)
    static_cast<int64_t*>(out.data)[at] = to_whole(value);
  else
    static_cast<double*>(out.data)[at] = value;
}

// A sample's registers: register r is first[r * lanes].
struct Registers {
  double* first;
  int lanes;
  __device__ __forceinline__ double& operator[](int32_t r) const { return first[r * lanes]; }
};

// Most lines are sums and products, which are not sent through the jump tables.
__device__ __forceinline__ bool is_quick(const Line& line) {
  static_assert(kSub == kAdd + 1 && kMul == kAdd + 2);
  return uint32_t(line.opcode - kAdd) <= uint32_t(kMul - kAdd);
}

// Runs a quick line: sum, difference and product are all made, side by side.
__device__ __forceinline__ void run_quick(const Line& line, const Registers& r) {
  const double a = r[line.a], b = r[line.b];
  const double sum = a + b, difference = a - b, product = a * b;
  r[line.target] = line.opcode == kAdd ? sum : line.opcode == kSub ? difference : product;
}

// Runs one line for a sample. What is frequent comes before the switch, which the compiler makes a
// tree of comparisons.
__device__ __forceinline__ void run_line(const EvaluateArgs& args, const Line& line, int64_t sample,
                                         const Registers& r) {
  if (line.opcode == kStore) {
    const EvaluateOut& out = args.out[line.a];
    store(out, sample * out.elements + line.b, r[line.c]);
    return;
  }
  if (line.opcode == kConstant) {
    r[line.target] = args.constants[line.a];
    return;
  }
  switch (line.opcode) {
#define DIFFAST_CASE(name, result)               \
  case name: {                                   \
    [[maybe_unused]] const double a = r[line.a]; \
    [[maybe_unused]] const double b = r[line.b]; \
    [[maybe_unused]] const double c = r[line.c]; \
    r[line.target] = result;                     \
    break;                                       \
  }
    DIFFAST_EACH_ARITHMETIC(DIFFAST_CASE)
#undef DIFFAST_CASE
    case kInput:
      r[line.target] = args.inputs[sample * args.columns + line.a];
      break;
    case kPiece:
      r[line.target] = find_piece(args.edges, args.pieces, r[line.a]);
      break;
    case kLookup:
      r[line.target] = look_up(args.edges, args.table + line.a * args.pieces * 4, args.pieces,
                               r[line.b], r[line.c]);
      break;
  }
}

// Runs a program for the samples of the threads that are `mine`; all threads of the block call it.
__device__ __forceinline__ void run_program(const EvaluateArgs& args, int64_t program, bool mine,
                                            int64_t sample, const Shared& shared, int lanes) {
  const Registers r = {shared.registers + threadIdx.x, lanes};
  const int64_t end = args.starts[program + 1];
  for (int64_t first = args.starts[program]; first < end; first += kLines) {
    const int count = int(min(int64_t(kLines), end - first));
    __syncthreads();  // the lines before are done
    const int32_t* words = args.code + first * kInstructionWords;
    int32_t* to = reinterpret_cast<int32_t*>(shared.lines);
#pragma unroll 10
    for (int i = threadIdx.x; i < count * kInstructionWords; i += kWarp) to[i] = words[i];
    __syncthreads();
    if (!mine) continue;
    // The next line is fetched while this one runs. Of two quick lines in a row, the second swaps
    // places with the first, so that nothing waits for a line that is under way. Behind the last
    // line there is room for one that is read and not run.
    const Line* last = shared.lines + count - 1;
    const Line* at = shared.lines;
    Line line = *at;
#pragma unroll 1
    while (true) {
      const Line next = at[1];
      if (is_quick(line)) {
        run_quick(line, r);
        if (at++ == last) break;
        if (is_quick(next)) {
          line = at[1];
          run_quick(next, r);
          if (at++ == last) break;
          continue;
        }
      } else {
        run_line(args, line, sample, r);
        if (at++ == last) break;
      }
      line = next;
    }
  }
}

// The least number above `than` among the programs of the block, or INT32_MAX.
__device__ __forceinline__ int32_t least_above(const int32_t* programs, int32_t than) {
  int32_t least = INT32_MAX;
  for (int i = 0; i < kWarp; ++i)
    if (programs[i] > than && programs[i] < least) least = programs[i];
  return least;
}

// Runs the programs of the samples from `first` on, as many as a block has: one program after
// another, for the samples that have it.
__device__ __forceinline__ void run_samples(const EvaluateCall& call, const Shared& in,
                                            int64_t first) {
  const EvaluateArgs& args = call.args;
  const int64_t sample = first + threadIdx.x;
  int64_t program = -1;  // none
  if (int(threadIdx.x) < call.lanes && sample < args.samples)
    program = args.counts ? args.counts[sample * args.count_step] : args.program;
  if (program < 0 || program >= args.programs) program = -1;
  int32_t running = int32_t(args.program);
  if (args.counts) {
    __syncthreads();  // the programs of the samples before are read
    in.programs[threadIdx.x] = int32_t(program);
    __syncthreads();
    running = least_above(in.programs, -1);
  }
#pragma unroll 1
  while (running != INT32_MAX) {
    run_program(args, running, program == running, sample, in, call.lanes);
    running = args.counts ? least_above(in.programs, running) : INT32_MAX;
  }
}

__global__ void __launch_bounds__(kWarp)
    evaluate_kernel(const __grid_constant__ EvaluateCall call) {
  extern __shared__ __align__(16) unsigned char shared[];
  const EvaluateArgs& args = call.args;
  Shared in;
  in.registers = reinterpret_cast<double*>(shared);
  in.lines = reinterpret_cast<Line*>(in.registers + args.registers * call.lanes);
  in.programs = reinterpret_cast<int32_t*>(in.lines + kLines + 1);
  for (int64_t first = int64_t(blockIdx.x) * call.lanes; first < args.samples;
       first += int64_t(gridDim.x) * call.lanes)
    run_samples(call, in, first);
}

}  // namespace

cudaError_t launch_evaluate(const EvaluateArgs& args, cudaStream_t stream) {
  if (args.samples == 0) return cudaSuccess;
  const EvaluateCall call = {args, args.registers > kMostFull ? kWarp / 2 : kWarp};
  const int64_t blocks = std::min((args.samples + call.lanes - 1) / call.lanes, kBlocks);
  const Layout layout = {dim3(unsigned(blocks)), dim3(kWarp)};
  return launch(evaluate_kernel, layout, size_t(shared_bytes(call)), stream, call);
}

}  // namespace diffast::cuda
