"""Networks as people have them: what they return is found, or refused in one sentence."""

import types
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import diffast as df

SCHEDULE = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
PLAN = df.solvers.ddim(SCHEDULE, df.grids.trailing(SCHEDULE, 4))


class Convolution(nn.Module):
    """A small network of noise; `wrap` makes what it returns of its tensor."""

    def __init__(self, wrap=lambda output: output, out_channels=3):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, out_channels, 3, padding=1)
        self.wrap = wrap

    def forward(self, x, t):
        return self.wrap(self.layer(x) * (1 + t[:, None, None, None] / 1000))


@dataclass
class Output:
    sample: torch.Tensor
    hidden: torch.Tensor | None = None


@dataclass
class Only:
    result: torch.Tensor
    loss: float | None = None


Named = namedtuple("Named", ["loss", "pred"])


class Attributes:
    def __init__(self, sample):
        self.sample = sample


WRAPS = {
    "tuple": lambda y: (y,),
    "tuple of the tensor and more": lambda y: (y, {"hidden": 1}, y * 0),
    "tuple that begins with another thing": lambda y: (None, y),
    "list": lambda y: [y, y * 0],
    "dict with sample": lambda y: {"sample": y, "hidden": y * 0, "x0": y * 0},
    "dict with pred": lambda y: {"loss": y.mean(), "pred": y},
    "dict with the prediction's name": lambda y: {"eps": y, "x0": y * 0},
    "dict with one entry": lambda y: {"anything": y},
    "dict with one tensor": lambda y: {"anything": y, "loss": None, "step": 3},
    "ordered dict": lambda y: OrderedDict(sample=y),
    "dataclass with sample": Output,
    "dataclass with one tensor": Only,
    "named tuple": lambda y: Named(y.mean(), y),
    "object with sample": Attributes,
    "namespace": lambda y: types.SimpleNamespace(sample=y),
}


def run(network, predicts="epsilon", **options):
    denoiser = df.Denoiser(network, SCHEDULE, predicts, **options)
    return df.sample(denoiser, PLAN, (2, 3, 4, 4), seed=1).x


@pytest.mark.parametrize("name", WRAPS)
def test_the_tensor_is_found(name):
    assert torch.equal(run(Convolution(WRAPS[name])), run(Convolution()))


@pytest.mark.parametrize("key", ["x0", "denoised", "pred", "sample"])
def test_an_x0_network_may_call_it_so(key):
    made = run(Convolution(lambda y: {key: y, "other": y * 0}), "x0")
    assert torch.equal(made, run(Convolution(), "x0"))


def test_outputs_of_diffusers_and_transformers_models():
    unet = pytest.importorskip("diffusers.models.unets.unet_2d")
    made = run(Convolution(lambda y: unet.UNet2DOutput(sample=y)))
    assert torch.equal(made, run(Convolution()))
    outputs = pytest.importorskip("transformers.modeling_outputs")
    made = run(Convolution(lambda y: outputs.BaseModelOutput(last_hidden_state=y)))
    assert torch.equal(made, run(Convolution()))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda y: {"a": y, "b": y}, r"dict with the entries \['a', 'b'\].*none of them is it"),
        (lambda y: {"a": 1}, r"entries \['a'\], but one tensor is needed for predicts='epsilon'"),
        (lambda y: {}, r"dict with the entries \[\]"),
        (lambda y: {"pred": y, "eps": y}, "'pred' and 'eps' could each be it"),
        (lambda y: {"x0": y, "loss": None}, r"entries \['loss', 'x0'\].*none of them is it"),
        (lambda y: Only(3), r"an? Only with the entries \['loss', 'result'\]"),
        (lambda y: (1, None), r"a tuple of \(int, NoneType\), but no tensor"),
        (lambda y: [], r"a list of \(\), but no tensor"),
        (lambda y: None, "a NoneType, but a tensor is needed"),
        (lambda y: y.numpy(force=True), "a ndarray, but a tensor is needed"),
        (lambda y: torch.distributions.Normal(y, 1.0), "a Normal, but a tensor is needed"),
        (lambda y: types.SimpleNamespace(sample="no"), "a SimpleNamespace, but a tensor"),
    ],
)
def test_what_holds_no_such_tensor_is_refused(wrap, message):
    with pytest.raises(ValueError, match=f"^Denoiser: the network returned .*{message}") as error:
        run(Convolution(wrap))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y,), Output, lambda y: {"pred": y}])
def test_twice_the_channels_point_to_learned_variances(wrap):
    network = Convolution(wrap, out_channels=6)
    with pytest.raises(ValueError, match=r"twice the channels, \[2, 6, 4, 4\].*LearnedVariance"):
        run(network)
    learned = df.LearnedVariance(
        network, SCHEDULE, df.solvers.ddpm(SCHEDULE, df.grids.trailing(SCHEDULE, 4))
    )
    denoiser = df.Denoiser(learned, SCHEDULE, "epsilon")
    out = df.sample(denoiser, learned.plan, (2, 3, 4, 4), noise=learned.draw(2))
    assert out.x.isfinite().all()
    assert run(lambda x, t: Convolution(out_channels=6)(x, t)[:, :3]).isfinite().all()


def test_the_noise_of_a_learned_variance_needs_a_call_before():
    plan = df.solvers.ddpm(SCHEDULE, df.grids.trailing(SCHEDULE, 4))
    learned = df.LearnedVariance(Convolution(out_channels=6), SCHEDULE, plan)
    with pytest.raises(ValueError, match="stage 0 is asked for, but the network was not called"):
        learned.draw(2)(0)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda y: y[:, :2], r"x of shape \[2, 3, 4, 4\] but returned \[2, 2, 4, 4\]$"),
        (lambda y: y[:1], r"x of shape \[2, 3, 4, 4\] but returned \[1, 3, 4, 4\]$"),
        (lambda y: y.long(), "given torch.float32 but returned torch.int64"),
    ],
)
def test_wrong_shapes_and_dtypes(wrap, message):
    with pytest.raises(ValueError, match=message):
        run(Convolution(wrap))


def test_a_network_in_training_mode_stays_in_it():
    network = Convolution().train()
    run(network)
    assert network.training
