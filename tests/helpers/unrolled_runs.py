"""A plan's unrolled rows against a run of the numpy executor."""

import numpy as np
from numpy_executor import walk

from diffast.plans import unroll
from diffast.plans.unroll import propagate


def everything(plan, x, random):
    """(what a run starts from [1 + S + n S, ...], what each stage writes) of a run with noise."""
    normals = [z for z in ("z1", "z2") if z in plan.columns]
    normals = [z for z in normals if plan.matrix[:, :, plan.columns.index(z)].any()]
    normals = ["z1", "z2"] if "z2" in normals else normals
    z = random.normal(size=(2, plan.stages, *x.shape))
    calls, seen = iter(plan.calls.tolist()), np.zeros((plan.stages, *x.shape))

    def denoise(x, t):
        i = next(calls)
        assert t == plan.times[i]
        seen[i] = np.tanh(3 * x) + t
        return seen[i]

    nothing = {name: lambda x, t: 0.0 * x for name in plan.columns if name[0] == "g"}
    written = walk(plan, denoise, x, lambda i, name: z[int(name == "z2"), i], gradients=nothing)
    assert next(calls, None) is None
    return np.concatenate([x[None], seen, *z[: len(normals)]]), written


def check_unrolled(plan):
    """Asserts that `unroll` says of every row what a run with random numbers gives."""
    random = np.random.default_rng(2)
    sources, written = everything(plan, random.normal(size=4), random)
    rows, stages = unroll(plan), plan.stages
    assert set(rows) == set(plan.rows)
    noise = propagate(plan, estimates=False)
    for register, made in rows.items():
        assert made.shape == (stages, len(sources))
        for i in range(stages):
            want = written[i].get(register, np.zeros(4))
            scale = max(1.0, np.abs(sources * made[i][:, None]).max())
            np.testing.assert_allclose(made[i] @ sources, want, rtol=1e-13, atol=1e-13 * scale)
        for first in range(1, len(sources), stages):  # nothing knows of later stages
            assert (np.triu(made[:, first : first + stages], 1) == 0).all()
        # the noise check's rows: the same columns without the estimates
        kept = np.delete(made, range(1, 1 + stages), axis=1)
        np.testing.assert_allclose(noise[register], kept, rtol=1e-13, atol=1e-15)
