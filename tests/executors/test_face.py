"""What `sample`, `sample_adaptive`, `sample_parallel` and `Stepper` have in common for callers."""

import pickle

import numpy as np
import pytest
import torch
from numpy_executor import walk
from op_cases import assert_same_bits

import diffast as df
from diffast import ops
from diffast.executors.results import FINE

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 5)
DETERMINISTIC = df.solvers.heun(VP, GRID)
STOCHASTIC = df.solvers.ddim(VP, GRID, eta=1.0)
IDS = [7, -3, 2**40]
LIMITS = (-0.4, 0.3)
RUNS = ("sample", "sample_adaptive", "sample_parallel", "together", "each")
each_run = pytest.mark.parametrize("name", RUNS)


def network(x, t):
    """The same bits a sample whatever the batch."""
    t = t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return (0.8 * x + 0.1 - t) / (1 + 0.3 * x * x + t * t)


def denoiser_of(call=network, **options):
    return df.Denoiser(call, VP, predicts="x0", **options)


def initial(batch=3, dtype=torch.float32):
    return ops.normal((batch, 4), seed=4, dtype=dtype)


def run(name, x, denoiser=None, plan=DETERMINISTIC, **options):
    """Any of the executors as one function of the initial state; the same words for all."""
    denoiser = denoiser_of() if denoiser is None else denoiser
    if name == "sample_adaptive":
        return df.sample_adaptive(denoiser, "dpm_12", x=x, **options)
    if name == "sample_parallel":
        return df.sample_parallel(denoiser, plan, x=x, tol=0.0, **options)
    if name == "sample":
        return df.sample(denoiser, plan, x=x, **options)
    kept = {k: options.pop(k) for k in ("seed", "ids") if k in options}
    throw = options.pop("throw", True)
    stepper = df.Stepper(plan, denoiser, dtype=denoiser.dtype, **options)
    state, given, t = stepper.start(x, each=name == "each", **kept)
    for _ in range(plan.nfe):
        state, given, t = stepper.step(state, denoiser.network(given, t))
    return stepper.result(state, throw=throw)


def column(t, x):
    return t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)


# x is the initial state.


@each_run
def test_x_is_the_initial_state_and_is_not_written_to(name):
    x = initial()
    before, version = x.clone(), x._version
    out = run(name, x)
    assert_same_bits(x, before)
    assert x._version == version
    assert out.x.data_ptr() != x.data_ptr()
    assert isinstance(out, df.Result)
    assert out.completed and out.fine.all() and out.status.tolist() == [FINE] * 3
    assert (out.x.shape, out.nfe.shape, out.nfe.dtype) == (x.shape, (3,), torch.int64)
    # another initial state, another sample
    assert not torch.equal(run(name, x + 0.1).x, out.x)


@pytest.mark.parametrize("name", ["sample", "sample_parallel", "together", "each"])
def test_executors_of_one_plan_agree_to_the_bit(name):
    for plan in (DETERMINISTIC, STOCHASTIC):
        wanted = df.sample(denoiser_of(), plan, x=initial(), ids=IDS, seed=5).x
        assert_same_bits(run(name, initial(), plan=plan, ids=IDS, seed=5).x, wanted)


# Where noise comes from.


@each_run
def test_a_tensor_as_noise_is_told_that_the_initial_state_is_x(name):
    with pytest.raises(ValueError, match=r"noise is a tensor, .*: the initial state is x="):
        run(name, initial(), noise=initial())


@pytest.mark.parametrize(
    ("name", "noise", "reason"),
    [
        ("sample", "bridge", "nothing is rejected on a fixed grid"),
        ("sample", "redraw", "nothing is rejected on a fixed grid"),
        ("sample_parallel", "path", "drawn within one kernel"),
        ("sample_parallel", lambda stage: None, "noise is a callable but .* within one kernel"),
        ("sample_parallel", "bridge", "nothing is rejected on a fixed grid"),
        ("sample_parallel", "redraw", "nothing is rejected on a fixed grid"),
        ("together", "path", "needs the times of the whole run"),
        ("together", "bridge", "nothing is rejected on a fixed grid"),
        ("together", "redraw", "nothing is rejected on a fixed grid"),
        ("together", lambda stage: None, "use 'given' and hand them over as z"),
        ("sample_adaptive", lambda stage: None, "there is no stage to ask a function for"),
        ("sample_adaptive", "path", "dpm_12 draws none"),
        ("sample_adaptive", "bridge", "dpm_12 draws none"),
        *((name, "tree", "noise is 'tree' but must be one of counter, path") for name in RUNS),
    ],
)
def test_sources_of_noise_that_cannot_be_had_say_why(name, noise, reason):
    def call(x, t):
        raise AssertionError("called")

    who = "Stepper" if name in ("together", "each") else name
    with pytest.raises(ValueError, match=f"^{who}: .*{reason}"):
        run(name, initial(), denoiser_of(call), noise=noise)


@pytest.mark.parametrize(
    ("method", "noise", "reason"),
    [
        ("pec", "redraw", "which makes the law wrong"),
        ("pec", "counter", "use 'bridge' or 'path'"),
        ("euler_heun", "bridge", "euler_heun draws it after the decision"),
        ("ggf", "redraw", None),
        ("pec", "path", None),
    ],
)
def test_adaptive_noise(method, noise, reason):
    def go():
        return df.sample_adaptive(denoiser_of(), method, x=initial(), noise=noise, rtol=0.3)

    if reason is None:
        assert go().fine.all()
        return
    with pytest.raises(ValueError, match=reason):
        go()


def test_what_a_function_has_no_use_for_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="sample_parallel: on_x0 is given but the x0 estimates"):
        run("sample_parallel", initial(), on_x0=lambda x0, info: x0)
    for name, value in (("callback", lambda seen: None), ("progress", True)):
        with pytest.raises(ValueError, match=f"Stepper: {name} is given but the loop"):
            df.Stepper(DETERMINISTIC, denoiser_of(), **{name: value})


# The hook.


@pytest.mark.parametrize("name", ["sample", "together", "each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hooks_are_told_stage_time_and_ids(name, dtype):
    seen = []

    def hook(x0, info):
        assert isinstance(info, df.Info)
        assert x0.shape == (3, 4) and info.time.shape == info.ids.shape == (3,)
        assert info.ids.dtype == torch.int64
        seen.append(info)
        return x0

    out = run(name, initial(dtype=dtype), on_x0=hook, ids=IDS)
    assert len(seen) == DETERMINISTIC.nfe
    for i, info in enumerate(seen):
        assert info.ids.tolist() == IDS
        told = DETERMINISTIC.call_times[i]
        np.testing.assert_allclose(info.time.numpy(), told, rtol=1e-6 if dtype.itemsize == 4 else 0)
        if name == "each":
            assert info.stage.tolist() == [i] * 3 and info.stage.dtype == torch.int64
        else:
            assert info.stage == i and isinstance(info.stage, int)
    # the same arithmetic in other kernels, which may round a weight's product elsewhere
    plain = run(name, initial(dtype=dtype), ids=IDS).x
    assert (out.x - plain).abs().max() < (1e-5 if dtype.itemsize == 4 else 1e-13)


def test_ids_follow_the_rows_of_adaptive_samples_that_leave_the_batch():
    x = torch.cat([0.01 * initial(1), initial(4)[1:] * torch.tensor([[3.0], [0.1], [1.0]])])
    ids, sizes, seen = [11, 22, 33, 44], [], []

    def hook(x0, info):
        assert len(x0) == len(info.ids) == len(info.time) == len(info.stage)
        sizes.append(len(x0))
        rows = zip(info.ids, x0.clone(), info.stage, info.time, strict=True)
        seen.append({int(n): (row, int(k), float(t)) for n, row, k, t in rows})
        return x0

    def go(x, ids):
        return df.sample_adaptive(denoiser_of(), "dpm_12", x=x, ids=ids, rtol=1e-3, on_x0=hook)

    out = go(x, ids)
    assert min(sizes) < 4 == max(sizes)
    together, alone = list(seen), {}
    assert [max(info[1] for info in step.values()) for step in together] == list(range(len(sizes)))
    for b, number in enumerate(ids):
        seen.clear()
        assert_same_bits(go(x[b : b + 1], [number]).x, out.x[b : b + 1])
        alone[number] = list(seen)
    for b, number in enumerate(ids):
        mine = [step[number] for step in together if number in step]
        assert len(mine) == out.nfe[b] == len(alone[number])
        for (row, stage, time), step in zip(mine, alone[number], strict=True):
            assert_same_bits(row, step[number][0])
            assert (stage, time) == step[number][1:]


@pytest.mark.parametrize("name", ["sample", "together", "each"])
@pytest.mark.parametrize("plan", [DETERMINISTIC, STOCHASTIC, df.solvers.unipc(VP, GRID)])
def test_a_hook_sees_the_clamped_estimate(name, plan):
    x, largest = initial(dtype=torch.float64), []

    def hook(x0, info):
        largest.append((float(x0.min()), float(x0.max())))
        return 1.5 * x0 + 0.1 * column(info.time, x0)

    out = run(name, x, plan=plan, clamp=LIMITS, on_x0=hook, ids=IDS, seed=3)
    assert min(low for low, _ in largest) == LIMITS[0]
    assert max(high for _, high in largest) == LIMITS[1]
    times = iter(plan.call_times)

    def change(d):
        return 1.5 * d.clip(*LIMITS) + 0.1 * next(times)

    def normal(i, z):
        return ops.normal((3, 4), seed=3, ids=torch.tensor(IDS), stage=i, dtype=x.dtype).numpy()

    def denoise(x, t):
        return network(torch.from_numpy(x), torch.full((3,), t, dtype=torch.float64)).numpy()

    wanted = walk(plan, denoise, x.numpy(), normal, change)[-1]["x"]
    np.testing.assert_allclose(out.x.numpy(), wanted, rtol=0, atol=1e-12)


# Callbacks and progress bars.


@pytest.mark.parametrize("name", ["sample", "sample_adaptive", "sample_parallel"])
def test_callbacks_see_each_round(name):
    seen, x = [], initial()

    def callback(p):
        assert isinstance(p, df.Progress)
        assert p.x.isfinite().all()
        seen.append(p._replace(x=p.x.clone(), x0=p.x0 if p.x0 is None else p.x0.clone()))

    out = run(name, x, callback=callback)
    assert out.completed
    plain = run(name, x).x
    if name == "sample":
        assert [p.stage for p in seen] == list(range(DETERMINISTIC.nfe))
        assert {p.stages for p in seen} == {DETERMINISTIC.nfe}
        assert [p.time for p in seen] == DETERMINISTIC.call_times.tolist()
        assert_same_bits(seen[-1].x, out.x)
        assert all(p.x0.shape == x.shape for p in seen)
        assert (out.x - plain).abs().max() < 1e-5
        return
    assert_same_bits(out.x, plain)
    assert all(p.x0 is None and p.stages is None for p in seen)
    if name == "sample_parallel":
        assert [p.stage for p in seen] == list(range(out.rounds))
        assert all(p.x.shape == x.shape and p.time.shape == (3,) for p in seen)
        assert_same_bits(seen[-1].x, out.x)
    else:  # the first call and the last round have none: no sample is on its way then
        assert [p.stage for p in seen] == list(range(1, len(seen) + 1))
        assert len(seen) == out.rounds - 2
        assert all(len(p.x) == len(p.time) for p in seen)
    for before, after in zip(seen, seen[1:], strict=False):
        if len(before.time) == len(after.time) == 3:
            assert (after.time <= before.time).all()


@pytest.mark.parametrize("name", ["sample", "sample_adaptive", "sample_parallel"])
def test_callbacks_stop_a_run(name):
    calls, seen = [], []

    def call(x, t):
        calls.append(t)
        return network(x, t)

    def callback(p):
        seen.append(p._replace(x=p.x.clone(), x0=p.x0 if p.x0 is None else p.x0.clone()))
        return len(seen) == 2

    out = run(name, initial(), denoiser_of(call), callback=callback)
    assert not out.completed
    assert len(seen) == 2
    assert len(calls) == (3 if name == "sample_adaptive" else 2)
    assert out.fine.all() and out.x.isfinite().all()
    assert_same_bits(out.x, seen[-1].x0 if name == "sample" else seen[-1].x)
    if name != "sample_parallel":
        assert out.nfe.tolist() == [len(calls)] * 3


@pytest.mark.parametrize("name", ["sample", "sample_adaptive", "sample_parallel"])
def test_progress_bars(name, capsys):
    plain = run(name, initial())
    assert capsys.readouterr().err == ""
    shown = run(name, initial(), progress=True)
    text = capsys.readouterr().err
    assert_same_bits(shown.x, plain.x)
    label, total = {
        "sample": (DETERMINISTIC.name, DETERMINISTIC.nfe),
        "sample_adaptive": ("dpm_12", 3),
        "sample_parallel": (DETERMINISTIC.name, 3 * DETERMINISTIC.nfe),
    }[name]
    assert label in text
    assert f"{total}/{total}" in text


# Results are of one kind.


def test_results_are_public_and_of_one_kind():
    stub = (df.__file__ or "").replace("__init__.py", "__init__.pyi")
    with open(stub) as file:
        text = file.read()
    names = ("Samples", "AdaptiveSamples", "ParallelSamples")
    errors = ("FailedSamples", "NonFiniteError", "StepLimitError")
    for public in (*names, *errors, "Result", "Info", "Progress"):
        assert public in df.__all__
        assert f'"{public}",' in text
    assert all(issubclass(getattr(df, public), df.Result) for public in names)
    for name, kind in zip(RUNS, (*names, df.Samples, df.Samples), strict=True):
        made = run(name, initial())
        assert type(made) is (getattr(df, kind) if isinstance(kind, str) else kind)
    assert issubclass(df.NonFiniteError, (df.FailedSamples, FloatingPointError))
    assert issubclass(df.NonFiniteError, FloatingPointError)
    assert issubclass(df.StepLimitError, RuntimeError)
    assert not issubclass(df.StepLimitError, FloatingPointError)
    for gone in ("finished", "reasons"):
        assert not hasattr(df.AdaptiveSamples, gone)


@pytest.mark.parametrize("ambient", [False, True])
@pytest.mark.parametrize("name", ("sample", "sample_adaptive", "sample_parallel"))
def test_a_network_that_writes_into_its_input_is_refused(name, ambient):
    """The solver goes on from that tensor, so its values would be another picture's."""
    denoiser = denoiser_of(lambda x, t: x.mul_(0.5))
    with torch.inference_mode(ambient), pytest.raises(ValueError, match="wrote into its input"):
        run(name, initial(), denoiser)


def test_errors_come_back_whole_from_another_process():
    broken = denoiser_of(
        lambda x, t: x * torch.where(torch.arange(3) == 1, torch.nan, 1.0)[:, None]
    )
    with pytest.raises(df.NonFiniteError) as caught:
        df.sample(broken, DETERMINISTIC, (3, 4))
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is df.NonFiniteError
    assert str(again) == str(caught.value)
    assert again.status.tolist() == caught.value.status.tolist()
    assert_same_bits(again.result.x, caught.value.result.x, "result")


def test_stepper_refuses_a_denoiser_of_another_schedule():
    other = df.schedules.vp_cosine()
    with pytest.raises(ValueError, match="Stepper: the plan is for .* but the denoiser for"):
        df.Stepper(DETERMINISTIC, df.Prediction(other, "x0"))
    with pytest.raises(ValueError, match="Stepper: a plan is given but no denoiser"):
        df.Stepper(DETERMINISTIC)
