"""The adaptive executor: batches, faults, options. Laws are in test_adaptive_laws.py."""

import inspect

import numpy as np
import pytest
import torch
from adaptive_cases import METHODS, Gaussian, denoiser, run, spectrum

import diffast as df

VP = df.schedules.vp_linear()
each_method = pytest.mark.parametrize("name", METHODS)


@each_method
def test_a_sample_is_the_same_in_any_batch(name):
    whole = run(name, (7, 3), seed=5)
    assert whole.fine.all()
    alone = run(name, (1, 3), seed=5, ids=[3])
    assert torch.equal(alone.x[0], whole.x[3])
    assert alone.nfe[0] == whole.nfe[3]
    turned = run(name, (3, 3), seed=5, ids=[6, 1, 4])
    assert torch.equal(turned.x, whole.x[[6, 1, 4]])
    kept = run(name, (7, 3), seed=5, compact=False)
    assert torch.equal(kept.x, whole.x)
    assert torch.equal(kept.nfe, whole.nfe)


@each_method
def test_no_call_is_wasted(name):
    network = Gaussian(VP, spectrum(2))
    out = run(name, (40, 2), network=network)
    assert out.wasted == 0
    assert network.rows == int(out.nfe.sum())
    assert out.rounds == int(out.nfe.max())
    assert len(set(out.nfe.tolist())) > 1 or name.startswith("pec")


def test_calls_are_counted_by_what_they_are():
    pec = run("pec, tight", (30, 2))
    assert pec.rejected.sum() > 0
    assert torch.equal(pec.nfe, 1 + pec.accepted + pec.rejected)
    ggf = run("ggf", (30, 2))
    assert ggf.rejected.sum() > 0
    # The call at the state is not made again after a rejection; the last one denoises.
    assert torch.equal(ggf.nfe, 1 + 2 * ggf.accepted + ggf.rejected)
    assert torch.equal(run("ggf", (30, 2), denoise=False).nfe, ggf.nfe - 1)
    bosh3 = run("bosh3", (30, 2))
    assert torch.equal(bosh3.nfe, 1 + 3 * (bosh3.accepted + bosh3.rejected))


@pytest.mark.parametrize("method", ["pec", "ggf", "dpm_23", "bosh3"])
@pytest.mark.parametrize("shape", [(3, 1), (2, 3, 5, 7), (1, 4097), (0, 2), (2, 0)])
def test_odd_shapes(method, shape):
    network = Gaussian(VP, 0.1)
    given = df.Denoiser(network, VP, predicts="x0")
    out = df.sample_adaptive(given, method, shape, max_calls=2000)
    assert out.x.shape == shape
    assert out.fine.all()
    assert out.x.isfinite().all()


SCHEDULES = {
    "vp": df.schedules.vp_linear(),
    "cosine": df.schedules.vp_cosine(),
    "sub_vp": df.schedules.sub_vp(),
    "ve": df.schedules.ve(),
    "edm": df.schedules.edm(),
    "flow": df.schedules.flow(),
    "trig": df.schedules.trig(),
    "betas": df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)),
}


@pytest.mark.parametrize("method", ["pec", "ggf", "euler_heun", "dpm_12", "dpm_23", "bosh3"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_ends_near_the_data(method, schedule):
    tight = {"ggf": {"rtol": 0.02, "atol": 0.002}, "euler_heun": {"rtol": 1e-3, "atol": 1e-4}}
    options = tight.get(method, {})
    given = df.Denoiser(Gaussian(schedule, [0.04, 0.04, 0.04]), schedule, predicts="x0")
    out = df.sample_adaptive(given, method, (400, 3), max_calls=3000, **options)
    assert out.fine.all()
    x = out.x.double()
    assert (x.mean(0) - 0.3).abs().max() < 0.06
    assert 0.8 < x.var() / 0.04 < 1.25


@pytest.mark.parametrize("predicts", ["x0", "epsilon", "v", "flow", "score"])
def test_predictions_agree(predicts):
    schedule = VP
    network = Gaussian(schedule, spectrum(4))

    def convert(x, t):
        x0 = network(x, t)
        alpha, sigma = network.levels(x, t)
        noise = (x - alpha * x0) / sigma
        if predicts == "x0":
            return x0
        if predicts == "epsilon":
            return noise
        if predicts == "score":
            return -noise / sigma
        if predicts == "v":
            return alpha * noise - sigma * x0
        slopes = schedule.derivatives(t.double().numpy())
        dalpha, dsigma = (torch.from_numpy(s).to(x.dtype)[:, None] for s in slopes)
        return dalpha * x0 + dsigma * noise

    given = df.Denoiser(convert, schedule, predicts=predicts)
    state = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = df.sample_adaptive(denoiser(schedule, 4), "dpm_23", x=state).x
    assert torch.allclose(df.sample_adaptive(given, "dpm_23", x=state).x, wanted, atol=1e-9)


def test_guidance_conditions_and_compaction():
    """Labels go with their samples, however the batch shrinks; guidance is that of two networks."""
    network = Gaussian(VP, spectrum(3))

    def labelled(x, t, label):
        return network(x, t) + label[:, None].to(x.dtype)

    labels = torch.linspace(-1, 1, 9)
    conditions = {"conditions": {"label": labels}, "unconditional": {"label": torch.zeros(1)}}
    for scale in (1.0, 0.0, 2.5, lambda t: 2.5):
        given = df.Denoiser(labelled, VP, predicts="x0", guidance=scale, **conditions)
        out = df.sample_adaptive(given, "ggf", (9, 3), rtol=0.1, atol=0.1)
        number = scale(0.0) if callable(scale) else scale
        for b in (0, 4, 8):
            shift = number * float(labels[b])
            plain = df.Denoiser(lambda x, t, shift=shift: network(x, t) + shift, VP, predicts="x0")
            alone = df.sample_adaptive(plain, "ggf", (1, 3), ids=[b], rtol=0.1, atol=0.1)
            assert torch.allclose(alone.x[0], out.x[b], atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision(dtype):
    def network(x, t):
        assert x.dtype == dtype
        return Gaussian(VP, spectrum(64))(x.float(), t).to(dtype)

    given = df.Denoiser(network, VP, predicts="x0", dtype=dtype)
    out = df.sample_adaptive(given, "pec", (8, 64))
    assert out.x.dtype == torch.float32
    assert out.fine.all()
    wanted = df.sample_adaptive(denoiser(VP, 64), "pec", (8, 64))
    assert (out.x - wanted.x).abs().mean() < 0.05


def test_clamp_and_hook():
    wide = Gaussian(VP, [4.0, 4.0])
    given = df.Denoiser(wide, VP, predicts="x0")
    out = df.sample_adaptive(given, "pec", (50, 2), clamp=(-0.5, 0.5))
    free = df.sample_adaptive(given, "pec", (50, 2))
    assert free.x.abs().max() > 1.0
    assert out.x.abs().max() < 0.75  # the carried estimate moves by kappa, after the clamp
    hooked = df.sample_adaptive(given, "pec", (50, 2), on_x0=lambda x0, t: x0.clamp(-0.5, 0.5))
    assert torch.allclose(hooked.x, out.x, atol=1e-5)
    seen = []

    def look(x0, info):
        seen.append((len(x0), len(info.time)))
        return x0

    looked = df.sample_adaptive(given, "pec", (50, 2), on_x0=look, clamp=(-0.5, 0.5))
    assert torch.allclose(looked.x, out.x, atol=1e-5)
    assert all(a == b for a, b in seen)
    with pytest.raises(ValueError, match=r"on_x0 was given \[50, 2\] but returned \[1\]"):
        df.sample_adaptive(given, "pec", (50, 2), on_x0=lambda x0, t: torch.zeros(1))


def test_a_given_state_is_kept_and_float64_stays():
    state = torch.randn(4, 2, dtype=torch.float64)
    before = state.clone()
    out = df.sample_adaptive(denoiser(VP), "dopri5", x=state, rtol=1e-6, atol=1e-6)
    assert torch.equal(state, before)
    assert out.x.dtype == torch.float64


def test_the_trace_tells_every_trial_step():
    out = run("pec, tight", (6, 2), trace=True)
    steps = out.steps
    for b in range(6):
        mine = steps.sample == b
        assert steps.accepted[mine].sum() == out.accepted[b]
        assert (~steps.accepted[mine]).sum() == out.rejected[b]
        taken = mine & steps.accepted
        assert np.allclose(steps.lam[taken][1:], steps.lam_to[taken][:-1])
        assert np.allclose(steps.lam_to[taken][-1], VP.lam(VP.t_min))
        assert np.allclose(steps.time[taken][0], 1.0)
        assert (steps.error[taken] <= 0.7).all()
        assert (steps.error[mine & ~steps.accepted] > 0.7).all()
    assert run("pec", (2, 2)).steps is None


# Faults.


class Faulty:
    """A good network but for one sample, known by its label, from some time on."""

    def __init__(self, fault, bad=2, below=0.4):
        self.network, self.fault, self.bad, self.below = (
            Gaussian(VP, spectrum(3)),
            fault,
            bad,
            below,
        )

    def __call__(self, x, t, label):
        out = self.network(x, t)
        hit = (label == self.bad) & (t < self.below)
        return torch.where(hit[:, None], self.fault, out)


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
@each_method
def test_a_sample_that_is_not_finite_fails_alone(name, fault):
    labels = {"label": torch.arange(5)}
    method, options = name.split(",")[0], METHODS[name]

    def samples(network):
        given = df.Denoiser(network, VP, predicts="x0", conditions=labels)
        return df.sample_adaptive(given, method, (5, 3), seed=1, **options)

    good = samples(Faulty(fault, bad=-1))
    message = r"1 of 5 samples failed: 2 \(id 2\): not finite"
    with pytest.raises(df.NonFiniteError, match=message) as caught:
        samples(Faulty(fault))
    out = caught.value.result
    others = [0, 1, 3, 4]
    assert torch.equal(out.x[others], good.x[others])
    assert torch.equal(out.nfe[others], good.nfe[others])
    assert out.fine.tolist() == [True, True, False, True, True]
    assert out.status[2] == out.nfe[2] - 1
    assert out.outcomes == ("finished", "finished", "not finite", "finished", "finished")
    assert out.x[others].isfinite().all() and out.x[2].isnan().all()
    assert out.nfe[2] < good.nfe[2]
    assert out.wasted == 0


@each_method
def test_a_fault_at_the_first_call(name):
    labels = {"label": torch.arange(3)}
    given = df.Denoiser(Faulty(float("nan"), bad=1, below=2.0), VP, "x0", conditions=labels)
    with pytest.raises(df.NonFiniteError, match="not finite") as caught:
        df.sample_adaptive(given, name.split(",")[0], (3, 3), **METHODS[name])
    out = caught.value.result
    assert out.status.tolist() == [-1, 0, -1]
    assert out.outcomes == ("finished", "not finite", "finished")
    assert out.nfe[1] == 1


def test_a_network_that_raises_or_answers_wrongly():
    def samples(network):
        return df.sample_adaptive(df.Denoiser(network, VP, predicts="x0"), "pec", (3, 2))

    calls = []

    def raises(x, t):
        calls.append(1)
        if len(calls) == 4:
            raise KeyError("weights")
        return x

    with pytest.raises(KeyError, match="weights"):
        samples(raises)
    with pytest.raises(ValueError, match=r"x of shape \[3, 2\] but returned \[3, 1\]"):
        samples(lambda x, t: x[:, :1])
    with pytest.raises(ValueError, match=r"given torch.float32 but returned torch.int64"):
        samples(lambda x, t: x.long())


def test_sample_fails_when_its_step_or_calls_run_out():
    with pytest.raises(df.StepLimitError, match="too many calls") as caught:
        run("pec", (3, 2), max_calls=10)
    out = caught.value.result
    assert out.outcomes == ("too many calls",) * 3 and out.status.tolist() == [9] * 3
    assert out.nfe.tolist() == [10] * 3
    with pytest.raises(df.StepLimitError, match="step too small") as caught:
        run("pec, tight", (3, 2), rtol=1e-3, h_min=0.1)
    assert caught.value.result.outcomes == ("step too small",) * 3


def test_a_first_step_beyond_the_end():
    for method in ("pec", "ggf", "dpm_23", "dopri5"):
        out = df.sample_adaptive(denoiser(VP), method, (5, 2), h_init=1e3)
        assert out.fine.all()
    out = df.sample_adaptive(denoiser(VP), "pec", (5, 2), h_init=1e3, h_max=1e3)
    assert out.fine.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "pec: rtol = 0.0, but it must be above 0"),
        ({"rtol": -1.0}, "pec: rtol = -1.0, but it must be above 0"),
        ({"rtol": float("nan")}, "pec: rtol = nan, but it must be above 0"),
        ({"method": "ggf", "rtol": 0.0, "atol": 0.0}, "ggf: rtol = 0 and atol = 0"),
        ({"method": "dopri5", "atol": -1.0}, "dopri5: atol = -1.0, but it must be finite"),
        ({"noise": "redraw"}, "noise is 'redraw' but pec is never run"),
        ({"noise": "fresh"}, "noise is 'fresh' but must be one of counter, path, bridge, redraw"),
        ({"method": "dpm_23", "noise": "bridge"}, "noise is 'bridge' but dpm_23 draws none"),
        ({"method": "heun"}, "embedded solver 'heun' is not known"),
        ({"h_init": 0.0}, "h_init is 0.0 but must be above 0"),
        ({"h_min": 0.5, "h_max": 0.1}, "h_min is 0.5 but h_max is 0.1"),
        ({"max_calls": 0}, "max_calls is 0 but must be a whole number from 1"),
        ({"until": 1.0}, "the end t = 1 has log-SNR"),
        ({"until": 0.0}, "the end t = 0 has log-SNR inf"),
        ({"controller": {"saftey": 1.0}}, r"the controller has \['saftey'\] but knows"),
        ({"controller": "pid"}, "controller 'pid' is not known"),
        ({"clamp": (1.0, -1.0)}, r"clamp is \(1, -1\)"),
        ({"ids": [1]}, "there are 3 samples"),
        ({"shape": None}, "neither shape nor"),
    ],
)
def test_refusals(options, message):
    call = {"method": "pec", "shape": (3, 2)} | options
    with pytest.raises(ValueError, match=message):
        df.sample_adaptive(denoiser(VP), **call)


def test_a_solver_is_not_changed_by_a_run():
    solver = df.embedded.PEC(rtol=0.2)
    rule = dict(solver.controller)
    df.sample_adaptive(denoiser(VP), solver, (2, 2), h_max=0.1)
    assert solver.controller == rule
    message = r"the method is an embedded solver made before, but options \['rtol'\]"
    with pytest.raises(ValueError, match=message):
        df.sample_adaptive(denoiser(VP), solver, (2, 2), rtol=0.1)


def test_the_signature_names_all_options():
    names = list(inspect.signature(df.sample_adaptive).parameters)
    assert names[:5] == ["denoiser", "method", "shape", "seed", "ids"]
    assert names[-2:] == ["executor", "options"]
    described = inspect.getdoc(df.AdaptiveOptions)
    for name in names[4:-1]:
        assert f"\n    {name}: " in described
        assert name in df.sample_adaptive.__doc__
