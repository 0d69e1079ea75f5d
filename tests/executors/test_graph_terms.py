"""Guidance terms in graphs of whole runs, with capture and replay played on the CPU."""

import pytest
import torch
from op_cases import assert_same_bits
from replay_cases import GRID, SHAPE, VP, denoiser_of, pull

import diffast as df

PLAN = df.solvers.dpmpp_2m(VP, GRID)


def far(x0, t):
    return (x0 - 0.3).square().flatten(1).sum(1)


@pytest.mark.parametrize("through", ["x", "x0", "network"])
def test_a_replay_has_the_terms_and_their_scales_may_change(through, made):
    scales = [0.05]
    term = df.guidance.loss(far, lambda t: scales[0] * (1 + t), through=through)
    denoiser = denoiser_of(guides=[term])
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE)
    for seed in (1, 2):
        scales[0] *= 2.0  # a function may say something else: its values are weights
        want = df.sample(denoiser, PLAN, SHAPE, seed=seed).x
        assert_same_bits(sampler(seed=seed).x, want)
        assert_same_bits(df.sample(denoiser, PLAN, SHAPE, seed=seed, executor="graph").x, want)


def test_denoisers_that_differ_by_their_terms_have_graphs_of_their_own(made):
    def push(x, t):
        return -pull(x, t)

    one, two = (denoiser_of(guides=[df.guidance.gradient(f, 0.2)]) for f in (pull, push))
    for denoiser in (one, two, one):
        got = df.sample(denoiser, PLAN, SHAPE, seed=1, executor="graph").x
        assert_same_bits(got, df.sample(denoiser, PLAN, SHAPE, seed=1).x)
    assert len(df.graph_cache) == 2
    stronger = denoiser_of(guides=[df.guidance.Guide(one.guides[0].function, 0.4)])
    got = df.sample(stronger, PLAN, SHAPE, seed=1, executor="graph").x
    assert_same_bits(got, df.sample(stronger, PLAN, SHAPE, seed=1).x)
    assert len(df.graph_cache) == 2  # another scale is another weight


def test_tensors_of_a_term_are_read_where_they_lie(made):
    target = torch.zeros(SHAPE)
    term = df.guidance.gradient(lambda x, t: target - x, 0.2)
    denoiser = denoiser_of(guides=[term])
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE)
    target.fill_(1.0)
    assert_same_bits(sampler(seed=3).x, df.sample(denoiser, PLAN, SHAPE, seed=3).x)
