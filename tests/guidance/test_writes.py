"""Terms and networks that write where they must not, or hand the same memory back twice."""

import pytest
import torch

import diffast as df

VP = df.schedules.vp_linear()
PLAN = df.solvers.ddim(VP, df.grids.karras(VP, 3))
X = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))


def network(x, t):
    return 0.5 * torch.tanh(x) + 0.1 * t.reshape(-1, 1).to(x.dtype)


def model(**options):
    return df.Denoiser(network, VP, "x0", **options)


RUNS = {
    "sample": lambda d: df.sample(d, PLAN, x=X),
    "adaptive": lambda d: df.sample_adaptive(d, "pec", x=X),
    "parallel": lambda d: df.sample_parallel(d, PLAN, x=X),
    "particles": lambda d: df.sample_particles(
        d,
        df.solvers.ddim(VP, df.grids.karras(VP, 3), eta=1.0),
        reward=lambda x0, t: x0.sum(1),
        particles=1,
        x=X[:, None],
    ),
}


@pytest.mark.parametrize("through", ["x0", "network"])
@pytest.mark.parametrize("name", RUNS)
def test_a_term_that_writes_into_the_estimate_is_refused(name, through):
    def greedy(at):
        at.x0.clamp_(-0.1, 0.1)
        return 0.01 * at.x0.clone()

    with pytest.raises(ValueError, match=r"guidance term 1 \(greedy\) wrote into a tensor"):
        RUNS[name](model(guides=[df.guidance.Guide(greedy, 1.0, through, "greedy")]))


@pytest.mark.parametrize("name", RUNS)
def test_terms_that_share_a_buffer_are_refused(name):
    """The second gradient would stand in for the first."""
    buffer = torch.zeros(64, 5)

    def filled(value):
        return df.guidance.gradient(lambda x, t: buffer[: len(x)].fill_(value), 0.1)

    with pytest.raises(ValueError, match="guidance term 2 .* the gradient of a term before it"):
        RUNS[name](model(guides=[filled(0.1), filled(0.2)]))
    RUNS[name](model(guides=[filled(0.1)]))  # by itself it is a gradient like any other


@pytest.mark.parametrize("name", ["sample", "adaptive", "parallel"])
def test_networks_of_two_branches_that_share_their_output_are_refused(name):
    """As a network does whose outputs are those of a graph."""
    kept = torch.zeros(12, 5)

    def shared(x, t, factor=1.0):
        return kept[: len(x)].copy_(factor * network(x, t))

    rule = df.guidance.autoguidance(lambda x, t: shared(x, t, 0.5), 2.0)
    with pytest.raises(ValueError, match="networks of two branches returned the same tensor"):
        RUNS[name](df.Denoiser(shared, VP, "x0", guidance=rule))
