"""Networks that compute in channels_last: the same pictures, and nothing transposed in a stage."""

import pytest
import torch
from device_double import Device, host

import diffast as df

SCHEDULE = df.schedules.vp_linear()
FORMATS = {torch.channels_last: (3, 4, 5, 6), torch.channels_last_3d: (2, 3, 2, 4, 5)}
PLANS = ("dpmpp_2m", "heun")


def plan_of(name, steps=6):
    return df.solvers.get(name)(SCHEDULE, df.grids.uniform_time(SCHEDULE, steps))


def elementwise(x, t, shift=None):
    shape = (-1, *[1] * (x.dim() - 1))
    out = torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(shape))
    return out if shift is None else out + 0.1 * shift.reshape(shape)


class Watched:
    """Notes how its input lies, and returns an output in its own format."""

    def __init__(self, wanted):
        self.wanted, self.inputs = wanted, []

    def __call__(self, x, t, **conditions):
        self.inputs.append(x.is_contiguous(memory_format=self.wanted))
        return elementwise(x, t, **conditions).contiguous(memory_format=self.wanted)


def sample(name, wanted, shape, network=elementwise, guidance=1.0, place="cpu", **options):
    given = {"memory_format": wanted} if wanted else {}
    if guidance != 1.0:
        shift = torch.arange(float(shape[0]), device=place)
        given |= {"conditions": {"shift": shift}, "unconditional": {"shift": shift[:1]}}
    if "dtype" in options:
        given["dtype"] = options.pop("dtype")
    denoiser = df.Denoiser(network, SCHEDULE, "epsilon", **given, guidance=guidance)
    shape = None if "x" in options else shape
    return df.sample(denoiser, plan_of(name), shape, seed=3, device=place, **options)


@pytest.mark.parametrize("wanted", FORMATS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clamp": (-0.5, 0.5)},
        {"guidance": 2.5},
        {"dtype": torch.bfloat16},
        {"on_x0": lambda x0, info: x0 * torch.linspace(0.5, 1.0, x0.shape[-2])[:, None]},
    ],
    ids=["plain", "clamp", "guided", "half", "hook"],
)
@pytest.mark.parametrize("name", PLANS)
def test_the_same_picture_to_the_bit(name, options, wanted):
    shape = FORMATS[wanted]
    plain = sample(name, None, shape, **options)
    network = Watched(wanted)
    made = sample(name, wanted, shape, network, **options)
    assert torch.equal(made.x, plain.x) and made.x.shape == shape
    assert all(network.inputs)
    assert made.x.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("name", ["euler_ancestral", "ddpm", "dpmpp_2m_sde"])
def test_fresh_noise_is_numbered_as_ever(name):
    """Plans that draw noise keep contiguous states: their pictures are the same too."""
    shape = FORMATS[torch.channels_last]
    made = sample(name, torch.channels_last, shape, Watched(torch.channels_last))
    assert torch.equal(made.x, sample(name, None, shape).x)


def test_a_stage_copies_nothing():
    shape, copies = FORMATS[torch.channels_last], {}
    for wanted in (None, torch.channels_last):
        with Device() as device:
            network = device.network(Watched(torch.channels_last))
            made = sample("dpmpp_2m", wanted, shape, network, place=device.place)
            copies[wanted] = device.kernels["clone"] + device.kernels["copy_"]
            assert host(made.x).isfinite().all()
    # The output of each of 6 calls; the initial state, once.
    assert copies == {None: 6, torch.channels_last: 1}


def test_other_executors_take_such_a_network():
    shape = FORMATS[torch.channels_last]
    network = Watched(torch.channels_last)
    plain = df.Denoiser(elementwise, SCHEDULE, "epsilon")
    last = df.Denoiser(network, SCHEDULE, "epsilon", memory_format=torch.channels_last)
    for name in ("euler", "ddpm"):
        runs = [df.sample_parallel(d, plan_of(name), shape, seed=1).x for d in (plain, last)]
        assert torch.equal(*runs)
    runs = [df.sample_adaptive(d, "dpm_12", shape, seed=1, rtol=0.1).x for d in (plain, last)]
    assert torch.equal(*runs)


def test_a_given_state_and_a_callback():
    shape = FORMATS[torch.channels_last]
    x = torch.linspace(-1.0, 1.0, 360).reshape(shape)

    def states(wanted, x):
        seen = []
        options = {"x": x, "callback": lambda p: seen.extend((p.x.clone(), p.x0.clone()))}
        sample("dpmpp_2m", wanted, shape, **options)
        return seen

    plain = states(None, x)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert all(map(torch.equal, states(torch.channels_last, given), plain))


def test_refusals():
    with pytest.raises(ValueError, match="memory_format is torch.preserve_format but must be one"):
        df.Denoiser(elementwise, SCHEDULE, "x0", memory_format=torch.preserve_format)
    with pytest.raises(ValueError, match=r"channels_last, for 4 dimensions, but .* is \[2, 3\]"):
        sample("euler", torch.channels_last, (2, 3))
    wanted = df.Denoiser(elementwise, SCHEDULE, "x0", memory_format=torch.channels_last)
    for run in (
        lambda: df.sample_parallel(wanted, plan_of("euler"), (2, 3)),
        lambda: df.sample_adaptive(wanted, df.embedded.PEC(), (2, 3)),
    ):
        with pytest.raises(ValueError, match=r"sample_\w+: memory_format is .*_last, for 4"):
            run()
