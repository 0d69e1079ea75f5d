// The launchers that ops.cpp calls: one for each op, with plain structs and no torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "../ops/accept/args.h"
#include "../ops/brownian/args.h"
#include "../ops/combine/args.h"
#include "../ops/combine_error/args.h"
#include "../ops/evaluate/args.h"
#include "../ops/gram/args.h"
#include "../ops/normal/args.h"
#include "../ops/quantile/args.h"
#include "../ops/sweep/args.h"

namespace diffast::cuda {

cudaError_t launch_brownian(const BrownianArgs& args, cudaStream_t stream);
cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream);
cudaError_t launch_combine_error(const ErrorArgs& args, cudaStream_t stream);
cudaError_t launch_evaluate(const EvaluateArgs& args, cudaStream_t stream);
cudaError_t launch_gram(const GramArgs& args, cudaStream_t stream);
cudaError_t launch_normal(const NormalArgs& args, cudaStream_t stream);
cudaError_t launch_quantile(const QuantileArgs& args, cudaStream_t stream);
cudaError_t launch_sweep(const SweepArgs& args, cudaStream_t stream);
cudaError_t launch_accept(const AcceptArgs& args, cudaStream_t stream);  // sets and reads `route`

}  // namespace diffast::cuda
