// What the CUDA glue calls: one function an op, in plain structs, without any torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "../accept.h"
#include "../brownian_args.h"
#include "../combine_args.h"
#include "../error_args.h"
#include "../gram_args.h"
#include "../sweep_args.h"

namespace diffast {

cudaError_t launch_brownian(const BrownianArgs& args, cudaStream_t stream);
cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream);
cudaError_t launch_combine_error(const ErrorArgs& args, cudaStream_t stream);
cudaError_t launch_gram(const GramArgs& args, cudaStream_t stream);
cudaError_t launch_normal(const NormalArgs& args, cudaStream_t stream);
cudaError_t launch_sweep(const SweepArgs& args, cudaStream_t stream);
cudaError_t launch_accept(const AcceptArgs& args, cudaStream_t stream);  // sets and reads `route`

}  // namespace diffast
