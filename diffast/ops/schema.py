"""The ops' schemas: the one place where their arguments are named.

In `combine.out`, which every step of a plan is, what a plain step needs comes first and the rest
has defaults: an argument that is left out costs nothing, one that is given 0.2 to 0.4 us on its way
through the dispatcher. The others keep to the plain order: with defaults torch's autograd
registration miscounts the gradients of a returning form, and with the outputs before another tensor
its inductor (2.13) calls `combine.table_out` with its arguments shifted.

`xs` are K tensors of one shape [B, ...]; row r of the result is

    y_r = sum_k weights[r, k] * xs[k] (+ weights[r, K] * y_0 with a clamp) + sum_m noise[r, m] * z_m

products and sums rounded one by one in float32 (float64 if any tensor is float64), columns in that
order, and one rounding to the output's type. With `clamp = [low, high]` row 0 is clamped first and
is one more column of the later rows. z_m are the normals of `normal`, slot m of the given stage.
`outs` may leave the clamped row 0 out; `status` [B] keeps, for each sample, the first stage at
which a sum was not finite (fill it with -1 beforehand).
"""

import torch

MAX_INPUTS = 16
MAX_ROWS = 8
MAX_NOISES = 2

SCHEMAS = {
    "combine": "(Tensor[] xs, float[] weights, float[] noise, int seed, int stage, Tensor? ids, "
    "float[] clamp) -> Tensor[]",
    "combine.out": "(Tensor[] xs, float[] weights, Tensor(a!)[] outs, Tensor(b!)? status=None, "
    "int stage=0, float[] noise=[], int seed=0, Tensor? ids=None, float[] clamp=[]) -> ()",
    "combine.table": "(Tensor[] xs, Tensor weights, Tensor? noise, Tensor? streams, "
    "float[] clamp) -> Tensor[]",
    "combine.table_out": "(Tensor[] xs, Tensor weights, Tensor? noise, Tensor? streams, "
    "float[] clamp, Tensor(a!)[] outs, Tensor(b!)? status) -> ()",
    "normal": "(Tensor ids, int[] shape, int seed, int stage, float scale, ScalarType dtype) "
    "-> Tensor",
    "normal.out": "(Tensor ids, int seed, int stage, float scale, Tensor(a!) out) -> ()",
}

library = torch.library.Library("diffast", "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema)
