"""Plans that call the network on two inputs at once, as one batch: x, and x2 at another time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from op_cases import assert_same_bits

import diffast as df
from diffast import ops
from diffast.plans.registers import Stages

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 4)
MIDDLE = float(VP.time(0.5 * (VP.lam(GRID[0]) + VP.lam(GRID[1]))))
LIMITS = (-0.2, 0.2)


def ddim(start, end):
    """Weights (keep, new) of a step without noise."""
    keep = float(VP.sigma(np.array(end)) / VP.sigma(np.array(start)))
    return keep, float(VP.alpha(np.array(end)) - VP.alpha(np.array(start)) * keep)


K1, N1 = ddim(GRID[0], GRID[1])
KM, NM = ddim(GRID[0], MIDDLE)
K2, N2 = ddim(GRID[1], GRID[2])


def plan_of(raw=0.0, silent=False):
    """The first step is made anew, from both estimates, after a call at its end and its middle."""
    stages = Stages(VP, GRID[0])
    first, middle = {"y": K1, "d": N1}, {"y": KM, "d": NM}
    stages.add(GRID[0], GRID[1], first, y="keep", x2=middle, x2_at=MIDDLE)
    second = {"y": K1, "d": 0.3 * N1, "d2": (0.7 - raw) * N1, "d2_raw": raw * N1}
    stages.add((GRID[1], MIDDLE), GRID[1], {n: w for n, w in second.items() if w})
    if silent:  # without a call: half way on, with the noise that the level needs
        alpha, sigma = (
            float(np.asarray(f(GRID[2]))) / float(np.asarray(g))
            for f, g in ((VP.alpha, VP.alpha(GRID[1])), (VP.sigma, 1.0))
        )
        low = float(np.asarray(VP.sigma(GRID[1]))) * alpha
        up = GRID[0] if sigma < low else GRID[2]
        keep = float(np.asarray(VP.alpha(up)) / np.asarray(VP.alpha(GRID[1])))
        left = float(np.asarray(VP.sigma(up))) ** 2 - (keep * float(VP.sigma(GRID[1]))) ** 2
        stages.add(None, up, {"x": keep, "z1": left**0.5})
        keep, new = ddim(up, GRID[2])
        stages.add(up, GRID[2], {"x": keep, "d": new})
    else:
        stages.add(GRID[1], GRID[2], {"x": K2, "d": N2})
    return stages.plan("twin", 2)


PLAN = plan_of()


def network(x, t, c):
    t = t.reshape(-1, 1).to(x.dtype)
    return (0.6 * x + 0.1 * t * x + c) / (1 + 0.3 * x * x)


def conditions(batch=3, dtype=torch.float64):
    return {"c": torch.linspace(-0.5, 0.7, batch, dtype=dtype)[:, None]}


def denoiser_of(call=network, guidance=1.0, dtype=torch.float64):
    nothing = {"c": torch.full((1, 1), 0.25, dtype=dtype)}
    return df.Denoiser(
        call,
        VP,
        predicts="x0",
        conditions=conditions(dtype=dtype),
        unconditional=nothing,
        guidance=guidance,
    )


def initial(dtype=torch.float64):
    return ops.normal((3, 5), seed=4, dtype=dtype)


def estimate(x, t, w=1.0, clamp=None, hook=None):
    """(as the network gave it, after clamp and hook)."""
    times = torch.full((3,), float(t), dtype=torch.float64)
    raw = network(x, times, conditions()["c"])
    if w != 1.0:
        raw = w * raw + (1 - w) * network(x, times, torch.full((1, 1), 0.25, dtype=x.dtype))
    changed = raw if clamp is None else raw.clamp(*clamp)
    return raw, changed if hook is None else hook(changed, times[:, None])


def by_hand(x, raw=0.0, **how):
    y = x
    _, d = estimate(y, GRID[0], **how)
    x, x2 = K1 * y + N1 * d, KM * y + NM * d
    (_, d), (d2_raw, d2) = estimate(x, GRID[1], **how), estimate(x2, MIDDLE, **how)
    x = K1 * y + N1 * (0.3 * d + (0.7 - raw) * d2 + raw * d2_raw)
    return K2 * x + N2 * estimate(x, GRID[1], **how)[1]


def bend(x0, time):
    return torch.tanh(x0) * (0.5 + time)


@pytest.mark.parametrize("raw", [0.0, 0.4])
@pytest.mark.parametrize("hook", [None, bend])
@pytest.mark.parametrize("clamp", [None, LIMITS])
@pytest.mark.parametrize("guidance", [1.0, 2.5, lambda t: 2.5])
def test_it_is_the_loop_by_hand(guidance, clamp, hook, raw):
    scale = 2.5 if callable(guidance) else guidance
    wanted = by_hand(initial(), raw, w=scale, clamp=clamp, hook=hook)
    infos = []

    def on_x0(x0, info):
        infos.append(info)
        return hook(x0, info.time[:, None])

    x = initial()
    out = df.sample(
        denoiser_of(guidance=guidance),
        plan_of(raw),
        x=x,
        clamp=clamp,
        on_x0=on_x0 if hook else None,
        ids=[5, 6, 7],
    )
    assert (out.x - wanted).abs().max() < 1e-14
    assert_same_bits(x, initial())
    assert out.nfe.tolist() == [4] * 3 and PLAN.nfe == 4 and len(PLAN.calls) == 3
    if hook:  # one estimate after the other, x's first
        assert [info.stage for info in infos] == [0, 1, 1, 2]
        assert all(info.ids.tolist() == [5, 6, 7] for info in infos)
        times = [float(info.time[0]) for info in infos]
        assert times == [GRID[0], GRID[1], MIDDLE, GRID[1]]


@pytest.mark.parametrize(
    "guidance", [1.0, 2.5, lambda t: 2.5 if t > 0.5 * (GRID[0] + GRID[1]) else 1.0]
)
def test_two_inputs_are_one_batch_with_the_conditions_of_each_sample(guidance):
    seen = []

    def call(x, t, c):
        seen.append((x.clone(), t.clone(), c.clone()))
        return network(x, t, c)

    df.sample(denoiser_of(call, guidance), PLAN, x=initial())
    assert len(seen) == 3
    x, t, c = seen[1]
    branches = len(x) // 6
    assert [len(x) for x, _, _ in seen][0] == (6 if guidance != 1.0 else 3)
    assert t.tolist() == [GRID[1]] * (3 * branches) + [MIDDLE] * (3 * branches)
    own, other = conditions()["c"], torch.full((3, 1), 0.25, dtype=torch.float64)
    assert_same_bits(c, torch.cat([own, other][:branches] * 2))
    for part in range(branches):  # branches of one input are on the same x
        assert_same_bits(x[3 * part : 3 * part + 3], x[:3])
        assert_same_bits(x[3 * (branches + part) :][:3], x[3 * branches :][:3])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_half_precision_network(guidance):
    seen = set()

    def call(x, t, c):
        seen.add((x.dtype, t.dtype))
        return network(x, t, c)

    denoiser = replace(denoiser_of(call, guidance, torch.bfloat16), dtype=torch.bfloat16)
    out = df.sample(denoiser, PLAN, x=initial(torch.float32))
    assert out.x.dtype == torch.float32
    assert seen == {(torch.bfloat16, torch.float32)}
    wanted = by_hand(initial(), w=guidance)
    assert 0 < (out.x - wanted).abs().max() < 0.05


@pytest.mark.parametrize("clamp", [None, LIMITS])
def test_callbacks_see_the_estimate_for_x(clamp):
    seen = []

    def callback(p):
        seen.append((p.stage, p.stages, p.time, p.x0.clone(), p.x.clone()))

    out = df.sample(denoiser_of(), PLAN, x=initial(), clamp=clamp, callback=callback)
    assert [s[:2] for s in seen] == [(0, 3), (1, 3), (2, 3)]
    assert [s[2] for s in seen] == PLAN.call_times.tolist() == [GRID[0], GRID[1], GRID[1]]
    states = [initial(), *(s[4] for s in seen[:-1])]
    for state, (_, _, time, x0, _) in zip(states, seen, strict=True):
        assert (x0 - estimate(state, time, clamp=clamp)[1]).abs().max() < 1e-14
    assert_same_bits(seen[-1][4], out.x)
    stopped = df.sample(denoiser_of(), PLAN, x=initial(), callback=lambda p: p.stage == 1)
    assert not stopped.completed and stopped.nfe.tolist() == [3] * 3


def test_a_failing_sample():
    calls = []

    def call(x, t, c):
        calls.append(len(x))
        y = network(x, t, c)
        if len(calls) == 2:
            y[3 + 1] = float("nan")  # sample 1's answer for x2
        return y

    wanted = df.sample(denoiser_of(), PLAN, x=initial())
    out = df.sample(denoiser_of(call), PLAN, x=initial(), throw=False)
    assert out.status.tolist() == [-1, 1, -1] and out.x[1].isnan().all()
    assert_same_bits(out.x[[0, 2]], wanted.x[[0, 2]])


def test_a_stage_without_a_call():
    plan = plan_of(silent=True)
    assert plan.stages == 4 and plan.stochastic and len(plan.calls) == 3
    z = ops.normal((3, 5), seed=9, dtype=torch.float64)
    drawn = []

    def noise(stage):
        drawn.append(stage)
        return z

    out = df.sample(denoiser_of(), plan, x=initial(), noise=noise)
    assert drawn == [1]  # made by the call before
    y = initial()
    _, d = estimate(y, GRID[0])
    x, x2 = K1 * y + N1 * d, KM * y + NM * d
    x = K1 * y + N1 * (0.3 * estimate(x, GRID[1])[1] + 0.7 * estimate(x2, MIDDLE)[1])
    up = plan.call_times[-1]
    keep, fresh = (plan.weights("x", name)[2] for name in ("x", "z1"))
    x = keep * x + fresh * z
    keep, new = ddim(up, GRID[2])
    assert (out.x - (keep * x + new * estimate(x, up)[1])).abs().max() < 1e-14


def test_others_refuse_such_plans_in_a_sentence():
    words = "twin calls the network on 2 inputs at once, but only df.sample runs such plans"
    with pytest.raises(ValueError, match=f"^Stepper: {words}"):
        df.Stepper(PLAN, denoiser_of())
    with pytest.raises(ValueError, match=f"^sample_parallel: {words}"):
        df.sample_parallel(denoiser_of(), PLAN, x=initial())


@pytest.mark.parametrize("kind", ["json", "npz"])
def test_they_are_saved_and_loaded(kind, tmp_path):
    plan = plan_of(0.4)
    plan.save(tmp_path / f"plan.{kind}")
    same = df.Plan.load(tmp_path / f"plan.{kind}")
    assert (same.rows, same.columns, same.nfe) == (plan.rows, plan.columns, plan.nfe)
    for field in ("times", "matrix", "levels", "spans"):
        assert np.array_equal(getattr(same, field), getattr(plan, field), equal_nan=True)
    outs = [df.sample(denoiser_of(), p, x=initial()).x for p in (plan, same)]
    assert_same_bits(*outs)


def changed(**fields):
    names = ("schedule", "times", "end", "rows", "columns", "matrix", "levels", "start", "steps")
    kept = {name: getattr(PLAN, name) for name in names}
    return df.Plan(**kept | {"name": "twin"} | fields)


def test_what_is_checked():
    assert changed().nfe == 4
    # x2 is called before it is written
    times = PLAN.times.copy()
    times[0, 1] = MIDDLE
    with pytest.raises(ValueError, match="stage 0.*x2"):
        changed(times=times)
    # d2 is weighed, but x2 is not called
    times = PLAN.times.copy()
    times[1, 1] = np.nan
    with pytest.raises(ValueError, match="stage 1.*d2"):
        changed(times=times)
    # x2 without x
    times = PLAN.times.copy()
    times[1, 0] = np.nan
    with pytest.raises(ValueError, match="on x before any other"):
        changed(times=times)
    # the row of x2 does not hold its level
    matrix = PLAN.matrix.copy()
    matrix[0, PLAN.rows.index("x2"), PLAN.columns.index("d")] += 0.01
    with pytest.raises(ValueError, match="stage 0.*x2"):
        changed(matrix=matrix)


def test_unrolled_it_is_the_same_map():
    plan, seen, states = plan_of(silent=True), {}, []
    z = ops.normal((3, 5), seed=9, dtype=torch.float64)

    def note(x0, info):
        seen.setdefault(info.stage, []).append(x0.clone())
        return x0

    def callback(p):
        states.append(p.x.clone())

    options = {"on_x0": note, "callback": callback, "noise": lambda stage: z}
    df.sample(denoiser_of(), plan, x=initial(), **options)
    assert [len(seen[i]) for i in range(3)] == [1, 2, 1]
    none = torch.zeros(3, 5, dtype=torch.float64)
    d = [seen[0][0], seen[1][0], none, seen[2][0]]  # of the stages: the third makes no call
    d2 = [none, seen[1][1], none, none]
    sources = torch.stack([initial(), *d, *d2, *[z] * 4]).numpy()
    maps = df.unroll(plan)
    assert maps["x"].shape == (4, 1 + 3 * 4)
    made = np.tensordot(maps["x"], sources, 1)
    for stage, state in zip((0, 2, 3), states, strict=True):  # calls 0, 1 with what follows, 2
        np.testing.assert_allclose(made[stage], state.numpy(), rtol=0, atol=1e-14)


def test_it_is_printed_with_both_times():
    (line,) = [line for line in str(PLAN).splitlines() if " d2" in line]
    assert f"t = {GRID[1]:.6g}, {MIDDLE:.6g} " in line
    assert "x2 = " in str(PLAN)
