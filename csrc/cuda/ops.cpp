// Registers the CUDA ops. Each call goes through the op's checks, then the kernels are launched on
// the tensors' device and its current stream.
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "../ops/accept/checks.h"
#include "../ops/brownian/checks.h"
#include "../ops/combine/checks.h"
#include "../ops/combine_error/checks.h"
#include "../ops/evaluate/checks.h"
#include "../ops/gram/checks.h"
#include "../ops/normal/checks.h"
#include "../ops/quantile/checks.h"
#include "../ops/quantile/keys.h"
#include "../ops/sweep/checks.h"
#include "launch.h"
#include "layout.cuh"

namespace diffast::cuda {
namespace {

// torch's current stream, by the function of the stable ABI that torch 2.11 has.
cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// A kernel's name in C++, where the runtime tells it.
std::string name_of(const void* kernel) {
  const char* name = nullptr;
#if CUDART_VERSION >= 12030
  if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = nullptr;
#endif
  if (name == nullptr) return "a kernel";
  int status = 0;
  char* plain = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string text = plain ? plain : name;
  std::free(plain);
  return text;
}

// torch's own macro would put this file's path and line into the message.
[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

template <typename Args>
void run(const char* op, cudaError_t (*launch)(const Args&, cudaStream_t), const Args& args,
         const Tensor& first) {
  const int32_t device = first.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaError_t error = launch(args, current_stream(device));
  if (error == cudaSuccess) return;
  const std::string what =
      std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  const std::string place = " on cuda:" + std::to_string(device);
  if (!is_debugged())
    fail(std::string(op) + ": the CUDA kernel was not launched" + place + ": " + what +
         "; with DIFFAST_SYNC=1 the kernel that fails is named");
  const auto by = [](const dim3& size) {
    return std::to_string(size.x) + " x " + std::to_string(size.y);
  };
  fail(std::string(op) + ": " + name_of(last_launched.kernel) + " failed" + place + " with " +
       by(last_launched.grid) + " blocks of " + by(last_launched.block) + " threads: " + what);
}

void run_brownian(const BrownianArgs& args, const Tensor& first) {
  run("brownian", launch_brownian, args, first);
}

void run_combine(const CombineArgs& args, const Tensor& first) {
  run("combine", launch_combine, args, first);
}

// The partial sums may be freed right after the launch: torch's allocator hands their memory out
// again in the stream's order.
void run_combine_error(const ErrorArgs& args, const Tensor& first) {
  ErrorArgs e = args;
  const int64_t chunks = error_chunks(e.rows);
  Tensor partials = torch::stable::new_empty(first, {e.rows.samples, chunks > 1 ? chunks : 0, 2},
                                             ScalarType::Double);
  e.partials = static_cast<double*>(partials.mutable_data_ptr());
  run("combine_error", launch_combine_error, e, first);
}

// Allocates partial sums, as for `combine_error`.
void run_gram(const GramArgs& args, const Tensor& first) {
  GramArgs g = args;
  const int64_t chunks = gram_chunks(g.rows);
  Tensor partials = torch::stable::new_empty(
      first, {g.rows.samples, chunks > 1 ? chunks : 0, gram_sums(g)}, ScalarType::Double);
  g.partials = static_cast<double*>(partials.mutable_data_ptr());
  run("gram", launch_gram, g, first);
}

void run_quantile(const QuantileArgs& args, const Tensor& first) {
  QuantileArgs q = args;
  const int64_t words[] = {quantile_words(q.rows.samples, kDigits)};
  Tensor scratch = torch::stable::new_empty(first, {words, 1}, ScalarType::Long);
  q.scratch = scratch.mutable_data_ptr();
  run("quantile", launch_quantile, q, first);
}

// Whether no index of jobs and walk, which are on the device, leads out of the tensors. The host
// waits for them; nothing is looked at while the stream is captured.
bool device_jobs_are_inside(const SweepArgs& args, const Tensor& x) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess ||
      status != cudaStreamCaptureStatusNone)
    return true;
  std::vector<SweepJob> jobs(args.job_count);
  std::vector<int32_t> walk(args.job_count * args.length);
  const auto fetch = [&](auto& host, const void* from) {
    const size_t bytes = host.size() * sizeof host[0];
    return cudaMemcpyAsync(host.data(), from, bytes, cudaMemcpyDeviceToHost, stream);
  };
  const bool copied = fetch(jobs, args.jobs) == cudaSuccess &&
                      fetch(walk, args.walk) == cudaSuccess &&
                      cudaStreamSynchronize(stream) == cudaSuccess;
  if (!copied)
    fail("sweep: jobs and walk cannot be read from cuda:" + std::to_string(device) +
         ": an earlier kernel failed");
  SweepArgs a = args;
  a.jobs = jobs.data();
  a.walk = walk.data();
  return jobs_are_inside(a);
}

void run_sweep(const SweepArgs& args, const Tensor& x) {
  SweepArgs a = args;
  if (is_debugged()) need(device_jobs_are_inside(a, x), "sweep");
  Tensor partials = torch::stable::new_empty(
      x, {a.norms ? a.job_count * (a.length + 1) : 0, sweep_sums(a.elements)}, ScalarType::Double);
  if (a.norms) a.partials = static_cast<double*>(partials.mutable_data_ptr());
  run("sweep", launch_sweep, a, x);
}

void run_normal(const NormalArgs& args, const Tensor& first) {
  run("normal", launch_normal, args, first);
}

void run_evaluate(const EvaluateArgs& args, const Tensor& inputs) {
  run("evaluate", launch_evaluate, args, inputs);
}

void run_accept(AcceptArgs* args, const Tensor& norms) {
  const int64_t samples[] = {args->samples};
  const Tensor route = torch::stable::new_empty(norms, {samples, 1}, ScalarType::Int);
  args->route = static_cast<int32_t*>(route.mutable_data_ptr());
  run("accept", launch_accept, *args, norms);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CUDA, m) {
  m.impl("brownian.out", TORCH_BOX(&brownian_out<run_brownian>));
  m.impl("combine", TORCH_BOX(&combine<run_combine>));
  m.impl("combine.out", TORCH_BOX(&combine_out<run_combine>));
  m.impl("combine.table", TORCH_BOX(&combine_table<run_combine>));
  m.impl("combine.table_out", TORCH_BOX(&combine_table_out<run_combine>));
  m.impl("combine_error", TORCH_BOX(&combine_error<run_combine_error>));
  m.impl("combine_error.out", TORCH_BOX(&combine_error_out<run_combine_error>));
  m.impl("evaluate", TORCH_BOX(&evaluate<run_evaluate>));
  m.impl("gram", TORCH_BOX(&gram<run_gram>));
  m.impl("sweep", TORCH_BOX(&sweep<run_sweep>));
  m.impl("normal.out", TORCH_BOX(&normal_out<run_normal>));
  m.impl("quantile", TORCH_BOX(&quantile<run_quantile>));
  m.impl("accept", TORCH_BOX(&accept<run_accept>));
}

}  // namespace diffast::cuda
