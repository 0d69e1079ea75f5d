"""Gradients through the network: what they leave behind, and networks of every kind."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from linear_gaussian import FULL, MEAN, SIZE, VP, network, numbers

import diffast as df
from diffast.executors import guided

GRID = df.grids.uniform_logsnr(VP, 5)
EULER = df.solvers.euler(VP, GRID)


class Net(torch.nn.Module):
    """A small network of images with a condition, and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = (torch.nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
        self.dropout = torch.nn.Dropout(dropout)
        self.calls = 0

    def forward(self, x, t, shift=None):
        self.calls += 1
        shift = 0.0 if shift is None else shift[:, :, None, None].to(x.dtype)
        return self.last(self.dropout(torch.tanh(self.first(x) + shift)))


def far(x0, t):
    return (x0 - 0.3).square().flatten(1).sum(1)


def images(rows=3):
    return numbers(rows, 2, 4, 4, seed=5).float()


def denoiser_of(network, **options):
    guides = options.pop("guides", [df.guidance.loss(far, 0.02)])
    return df.Denoiser(network, VP, "epsilon", guides=guides, **options)


def test_nothing_is_left_on_the_network():
    net = Net()
    made = df.sample(denoiser_of(net), EULER, x=images())
    assert net.calls == EULER.nfe  # the gradient shares the call of the estimate
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not made.x.requires_grad
    assert made.nfe.tolist() == [EULER.nfe] * 3


def test_the_graph_dies_with_its_stage(monkeypatch):
    alive, seen = [], []
    whole = guided.Pulled.__init__

    def noted(self, *args):
        gc.collect()
        seen.append(sum(one() is not None for one in alive))
        whole(self, *args)
        alive.append(weakref.ref(self.graph))

    monkeypatch.setattr(guided.Pulled, "__init__", noted)
    df.sample(denoiser_of(Net()), EULER, x=images())
    gc.collect()
    assert seen == [0] * EULER.nfe
    assert not any(one() is not None for one in alive)


def test_in_inference_mode():
    shift = {"shift": torch.ones(3, 2)}, {"shift": torch.zeros(1, 2)}
    own = denoiser_of(Net(), conditions=shift[0], unconditional=shift[1], guidance=2.0)
    want = df.sample(own, EULER, x=images()).x
    with torch.inference_mode():
        got = df.sample(own, EULER, x=images()).x
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(df.sample(own, EULER, x=images()).x, want, rtol=0, atol=0)


def test_conditions_of_each_sample():
    shift = numbers(3, 2, seed=6).float()
    options = {"unconditional": {"shift": torch.zeros(1, 2)}, "guidance": 1.5}
    whole = df.sample(denoiser_of(Net(), conditions={"shift": shift}, **options), EULER, x=images())
    for b in range(3):
        own = denoiser_of(Net(), conditions={"shift": shift[b : b + 1]}, **options)
        one = df.sample(own, EULER, x=images()[b : b + 1]).x
        torch.testing.assert_close(one, whole.x[b : b + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_channels_last(guidance):
    shift = {"shift": torch.ones(3, 2)}, {"shift": torch.zeros(1, 2)}
    options = {"conditions": shift[0], "unconditional": shift[1], "guidance": guidance}
    want = df.sample(denoiser_of(Net(), **options), EULER, x=images()).x
    net = Net().to(memory_format=torch.channels_last)
    own = denoiser_of(net, memory_format=torch.channels_last, **options)
    for terms in (own.guides, [df.guidance.loss(far, 0.02), df.guidance.descent(far, 0.01)]):
        want = df.sample(denoiser_of(Net(), guides=terms, **options), EULER, x=images()).x
        got = df.sample(replace(own, guides=terms), EULER, x=images()).x
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_networks_of_half_precision():
    half = Net().to(torch.bfloat16)
    own = denoiser_of(half, dtype=torch.bfloat16)
    got = df.sample(own, EULER, x=images()).x
    want = df.sample(denoiser_of(Net()), EULER, x=images()).x
    assert got.dtype == torch.float32
    assert 0 < float((got - want).abs().max()) < 0.05 * float(want.abs().max())


def test_dropout_is_the_same_for_the_estimate_and_its_gradient():
    """One call serves both, so that the gradient is that of the estimate that was made."""
    seen = []

    def noted(at):
        unit = torch.zeros_like(at.x0)
        unit[:, 0, 0, 0] = 1.0
        seen.append((at.x0, at.pull(unit), at.pull(unit)))
        return torch.zeros_like(at.x)

    net = Net(dropout=0.5).train()
    guide = df.guidance.Guide(noted, 1.0, "network")
    torch.manual_seed(3)
    df.sample(denoiser_of(net, guides=[guide]), EULER, x=images())
    torch.manual_seed(3)
    x = images()
    first = df.sample(denoiser_of(net, guides=()), EULER, x=x).x
    assert net.training
    assert first.isfinite().all()
    for _, one, other in seen:
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_network_without_a_graph_is_refused():
    """Its x0 estimate would still depend on x, by the part that is not the network's."""
    net = Net()
    with pytest.raises(ValueError, match="guidance.loss takes its gradient through the network, b"):
        df.sample(denoiser_of(torch.no_grad()(net.forward)), EULER, x=images())
    with pytest.raises(ValueError, match="is it called under torch.no_grad, or its output detach"):
        df.sample(denoiser_of(lambda x, t: net(x, t).detach()), EULER, x=images())


@pytest.mark.parametrize("through", ["x", "x0", "network"])
def test_a_gradient_that_is_nan_fails_its_sample_at_its_stage(through):
    def broken(x0, t):
        made = far(x0, t)
        factor = torch.ones_like(made)
        if float(t[0]) < GRID[2]:
            factor[1] = torch.nan
        return made * factor

    own = denoiser_of(Net(), guides=[df.guidance.loss(broken, 0.02, through=through)])
    with pytest.raises(
        df.NonFiniteError,
        match=r"failed: 1 \(id 4\): the gradient of guidance term 1 is not finite at stage 3",
    ):
        df.sample(own, EULER, x=images(), ids=[2, 4, 6])
    made = df.sample(own, EULER, x=images(), throw=False)
    assert made.status.tolist() == [-1, 3, -1]
    fine = denoiser_of(Net(), guides=[df.guidance.loss(far, 0.02, through=through)])
    want = df.sample(fine, EULER, x=images()).x
    torch.testing.assert_close(made.x[[0, 2]], want[[0, 2]], rtol=0, atol=0)


def test_other_constructors_take_guides():
    term = df.guidance.loss(far, 0.02, through="x0")
    schedule = df.schedules.flow()
    plan = df.solvers.euler(schedule, df.grids.uniform_time(schedule, 4))
    field = df.Denoiser.from_velocity(lambda x, t: -x, guides=[term])
    assert field.guides == (term,)
    plain = df.Denoiser.from_velocity(lambda x, t: -x)
    assert not torch.equal(*(df.sample(one, plan, x=images()).x for one in (field, plain)))
    model = df.Denoiser.from_sigma_model(lambda x, s: x / 2, predicts="x0", guides=[term])
    assert model.guides == (term,)


def test_a_probe_looks_at_the_network_alone():
    def never(x0, t):
        raise AssertionError("called")

    def exact(x, t):
        return network(MEAN, FULL)(x.double(), t).to(x.dtype)

    own = df.Denoiser(exact, VP, "x0", guides=[df.guidance.loss(never)])
    plain = df.Denoiser(exact, VP, "x0")
    found, want = (one.probe((64, SIZE), warn=False) for one in (own, plain))
    assert found == want


def test_plans_made_for_other_terms_warn():
    net = Net()
    plain = replace(EULER, made_for={"predicts": "epsilon", "guidance": 1.0})
    df.sample(denoiser_of(net, guides=()), plain, x=images())
    facts = "was made for no guidance terms, but the denoiser has the guidance terms guidance.loss"
    with pytest.warns(UserWarning, match=facts):
        df.sample(denoiser_of(net), plain, x=images())
    df.sample(denoiser_of(net), plain, x=images())  # once
    tuned = replace(EULER, made_for={"predicts": "epsilon", "guides": ["guidance.loss"]})
    df.sample(denoiser_of(net), tuned, x=images())
    with pytest.warns(UserWarning, match=r"terms guidance.loss, but the denoiser has no guidance"):
        df.sample(denoiser_of(net, guides=()), tuned, x=images())


def test_tuning_refuses_terms():
    """Learning needs how a run depends on its weights, which is not known of a term."""
    own = denoiser_of(Net(), guides=[df.guidance.loss(far, 0.02, through="x0")])
    with pytest.raises(ValueError, match="tune: the denoiser has 1 guidance terms, but a plan is"):
        df.tune(own, 2, (4, 2, 4, 4), iterations=1)


def test_branches_of_networks_of_their_own():
    """Autoguidance: the gradient is that of the estimate that both networks make."""
    strong, weak = Net(), Net()
    with torch.no_grad():
        for p in weak.parameters():
            p.mul_(0.5)
    rule = df.guidance.autoguidance(weak, 2.5)
    own = denoiser_of(strong, guidance=rule)

    def both(x, t):
        return weak(x, t) + 2.5 * (strong(x, t) - weak(x, t))

    want = df.sample(denoiser_of(both), EULER, x=images()).x
    got = df.sample(own, EULER, x=images()).x
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    term = df.guidance.gradient(lambda x, t: -0.1 * x)
    stages = df.solvers.ltsp(VP, GRID)
    for guides in ([term], [df.guidance.loss(far, 0.02)]):
        got, want = (
            df.sample(one, stages, x=images()).x
            for one in (replace(own, guides=guides), denoiser_of(both, guides=guides))
        )
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
