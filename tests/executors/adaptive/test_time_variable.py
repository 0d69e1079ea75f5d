"""Time variables: positions and nodes there and back, slopes, the table of a device."""

import numpy as np
import pytest
import torch

from diffast import schedules
from diffast.executors.adaptive.time_variable import FIRST_LAM, NodeTable, TimeInterval
from diffast.lowering.recorder import Recording
from diffast.ops import evaluate
from diffast.ops.evaluate.encode import encode
from diffast.solvers.embedded import Node

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "trig": schedules.trig(),
    "from_betas": schedules.from_betas(BETAS),
    "zero_snr": schedules.from_betas(schedules.zero_terminal_snr(BETAS)),
    "few_betas": schedules.from_betas(np.array([0.02, 0.1, 0.3, 0.3, 0.9, 0.99])),
}
KINDS = ("lam", "rho", "flow", "time")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
each_kind = pytest.mark.parametrize("kind", KINDS)


def lams_of(interval, count=2000):
    """Log-SNRs between the ends of an interval, both included, from -12 where it starts at -inf."""
    return np.linspace(max(interval.first_lam, -12.0), interval.last_lam, count)


def nodes_of(interval, positions):
    with np.errstate(divide="ignore"):  # log(0) at the start of the time variable "flow"
        return interval.nodes(positions)


@each_kind
@each_schedule
def test_positions_there_and_back(schedule, kind):
    interval = TimeInterval(schedule, kind, schedule.t_min, slopes=True)
    lam = lams_of(interval)
    positions = interval.positions(lam)
    assert (np.diff(positions) > 0).all()
    nodes = nodes_of(interval, positions)
    # near -1 a position of the time variable "flow" holds 1e-16 of alpha/(alpha + sigma) = e^lam
    loose = 1e-12 + (3e-16 * np.exp(-lam) if kind == "flow" else 0.0)
    assert (np.abs(nodes.lam - lam) <= loose).all()
    np.testing.assert_allclose(nodes.alpha, schedule.alpha(nodes.time), rtol=1e-15)
    np.testing.assert_allclose(nodes.sigma, schedule.sigma(nodes.time), rtol=1e-15)
    ratio = nodes.sigma / nodes.alpha
    assert (np.abs(ratio * np.exp(lam) - 1.0) <= 2.0 * loose).all()
    np.testing.assert_allclose(interval.positions(nodes.lam), positions, rtol=1e-12, atol=1e-15)


@each_schedule
def test_what_positions_are(schedule):
    lam = np.linspace(-2.0, 3.0, 11)
    time = schedule.time(lam)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    positions = {k: TimeInterval(schedule, k, schedule.t_min).positions(lam) for k in KINDS}
    np.testing.assert_allclose(positions["lam"], lam)
    np.testing.assert_allclose(positions["rho"], -sigma / alpha)
    np.testing.assert_allclose(positions["flow"], -sigma / (alpha + sigma))
    if isinstance(schedule, schedules.SigmaSpace):
        share = np.log(sigma / schedule.sigma_min)
        share /= np.log(schedule.sigma_max / schedule.sigma_min)
    else:
        share = time / schedule.t_start
    np.testing.assert_allclose(positions["time"], -share)


@each_kind
@each_schedule
def test_ends(schedule, kind):
    interval = TimeInterval(schedule, kind, schedule.t_min)
    first, last = nodes_of(interval, np.array([interval.start, interval.end])).time
    assert last == pytest.approx(schedule.t_min, rel=1e-12, abs=1e-11)
    alone = schedule.alpha(schedule.t_start) == 0.0
    assert interval.opens == (alone and kind != "flow")
    if interval.opens:
        assert schedule.lam(first) == pytest.approx(FIRST_LAM)
    else:
        assert first == pytest.approx(schedule.t_start, rel=1e-12)
    if kind == "flow" and alone:
        assert interval.start == -1.0
    assert interval.last_lam == schedule.lam(schedule.t_min)


@each_kind
@each_schedule
def test_slopes_are_derivatives(schedule, kind):
    interval = TimeInterval(schedule, kind, schedule.t_min, slopes=True)
    lam = np.linspace(-1.9, 2.9, 97)
    nodes = interval.nodes(interval.positions(lam))
    # `rate` is minus d(time)/d(position); only the kind "time" has it, and only there it is used
    h = 1e-6 * np.minimum(1.0, np.abs(nodes.time) + 1e-3)
    up, down = nodes.time + h, nodes.time - h
    smooth = np.ones(len(lam), bool)
    for kink in getattr(schedule, "kinks", ()):
        smooth &= (up < kink) | (down > kink)
    assert smooth.sum() > 80
    for levels, slopes in ((schedule.alpha, nodes.dalpha), (schedule.sigma, nodes.dsigma)):
        wanted = (levels(up) - levels(down)) / (2 * h)
        np.testing.assert_allclose(slopes[smooth], wanted[smooth], rtol=1e-4, atol=1e-8)
    if kind != "time":
        assert nodes.rate is None
        return
    p = nodes.position
    wanted = (interval.nodes(p - 1e-6).time - interval.nodes(p + 1e-6).time) / 2e-6
    np.testing.assert_allclose(nodes.rate, wanted, rtol=1e-7)


def test_kinks_are_where_derivatives_jump():
    for name in ("vp_cosine", "few_betas", "zero_snr"):
        schedule = SCHEDULES[name]
        inner = [k for k in schedule.kinks if k > schedule.domain[0]][:5]
        for kink in inner:
            rates = []
            for side in (-1, 1):
                t = kink + side * 1e-4 * np.array([1.0, 2.0])
                rates.append(np.diff(schedule.lam(t))[0] / np.diff(t)[0])
            assert abs(rates[0] / rates[1] - 1) > 1e-4, (name, kink)
    assert SCHEDULES["few_betas"].kinks == (0.0, 1.0, 2.0, 3.0, 4.0)


def test_refusals():
    vp, edm = schedules.vp_linear(), schedules.edm()
    with pytest.raises(
        ValueError, match="time variable 'sigma' is not known, but lam, rho, flow, time"
    ):
        TimeInterval(vp, "sigma", vp.t_min)
    with pytest.raises(ValueError, match="the end t = 1 has log-SNR .*above that of the start"):
        TimeInterval(vp, "lam", 1.0)
    with pytest.raises(ValueError, match="the end t = 0 has log-SNR inf, but it must be finite"):
        TimeInterval(edm, "rho", 0.0)
    with pytest.raises(ValueError, match="the end t = 0.999 has log-SNR .*start, -5"):
        TimeInterval(schedules.flow(), "lam", 0.999)


# The table of a device, run on the CPU.


def looked_up(table, positions, scaled=False):
    """The nodes of positions [N] by the table, and the guidance scales if there are any."""
    recording = Recording()
    position = recording.input(0)
    node = table.node(recording, position, "start")
    found = {n: v for n, v in node._asdict().items() if v is not None and n != "position"}
    values = [*found.values(), *([table.scale(recording, position, 0)] if scaled else [])]
    stores = [(0, k, value.number) for k, value in enumerate(values)]
    code, constants, starts, registers = encode([(recording.instructions, stores)])
    out = torch.full((len(positions), len(values)), torch.nan, dtype=torch.float64)
    edges, pieces = torch.from_numpy(table.edges), torch.from_numpy(table.pieces)
    inputs = torch.from_numpy(positions)[:, None].contiguous()
    evaluate(code, constants, starts, 0, inputs, None, 0, edges, pieces, registers, [out])
    columns = dict(zip(found, out.T, strict=False))
    return Node(torch.from_numpy(positions), **columns), out[:, -1] if scaled else None


def gaps(one, other, unit=0.0):
    """How far nodes are apart: lam absolutely, the others relative, times to `unit` at least."""
    found = {}
    for name in ("time", "alpha", "sigma", "lam", "dalpha", "dsigma", "rate"):
        a, b = getattr(one, name), getattr(other, name)
        if a is None:
            assert b is None
            continue
        gap = np.abs(b.numpy() - a)
        if name != "lam":
            least = unit if name == "time" else 0.0
            gap = np.where(gap == 0.0, 0.0, gap / np.maximum(np.abs(a), least + 1e-300))
        found[name] = gap.max()
    return found


def table_positions(interval):
    """Positions of the interval: at random in it, in lam, the ends, and beside every kink."""
    random, lam = np.random.default_rng(0), lams_of(interval)
    first = interval.positions(lam[:1])[0]
    kinks = np.asarray(getattr(interval.schedule, "kinks", ()), dtype=np.float64)
    kinks = interval.schedule.lam(kinks) if kinks.size else kinks
    kinks = kinks[(kinks > lam[0]) & (kinks < lam[-1])]
    parts = [
        random.uniform(first, interval.end, 5000),
        interval.positions(random.uniform(*lam[[0, -1]], 5000)),
    ]
    parts += [interval.positions(kinks + gap) for gap in (-1e-5, 1e-5)]
    inside = np.concatenate(parts)
    inside = inside[(inside > interval.start) & (inside < interval.end)]
    return np.concatenate([[first], inside, [interval.end]])


@each_kind
@each_schedule
def test_the_table_is_the_interval(schedule, kind):
    interval = TimeInterval(schedule, kind, schedule.t_min, slopes=True)
    table = NodeTable(interval)
    positions = table_positions(interval)
    unit = 1.0 if isinstance(schedule, schedules.FromBetas) else 0.0  # an index
    found = gaps(nodes_of(interval, positions), looked_up(table, positions)[0], unit)
    found.pop("lam" if kind == "flow" and interval.first_lam == -np.inf else "", None)
    assert max(found.values()) < 1e-10, found
    assert (table.edges[0], table.edges[-1]) == (interval.start, interval.end)


@pytest.mark.parametrize("name", ["flow", "trig", "zero_snr"])
def test_the_table_out_of_noise_alone(name):
    """Below lam = -12 nothing divides by alpha; alpha, sigma and time are still to 1e-10 of 1."""
    schedule = SCHEDULES[name]
    interval = TimeInterval(schedule, "flow", schedule.t_min, slopes=True)
    positions = -1.0 + np.concatenate([[0.0], np.geomspace(1e-15, 1e-5, 200)])
    exact, found = (
        nodes_of(interval, positions),
        looked_up(NodeTable(interval), positions)[0],
    )
    for field in ("time", "alpha", "sigma", "dalpha", "dsigma"):
        a, b = getattr(exact, field), getattr(found, field).numpy()
        assert np.abs(b - a).max() <= 1e-10 * np.abs(a).max() + 1e-10 * (field == "alpha"), field


def test_the_table_of_a_piece_that_is_short():
    """Two kinks that all but coincide, and an end beside one."""
    schedule = schedules.from_betas(np.array([0.02, 1e-9, 0.3, 0.5]))
    interval = TimeInterval(schedule, "lam", 1.0 - 1e-9, slopes=True)
    positions = np.linspace(interval.start, interval.end, 999)
    found = gaps(
        interval.nodes(positions),
        looked_up(NodeTable(interval), positions)[0],
        1.0,
    )
    assert max(found.values()) < 1e-10, found


def test_the_table_has_guidance():
    interval = TimeInterval(schedules.vp_linear(), "lam", 1e-3)
    table = NodeTable(interval, scales=[lambda times: 1.0 + np.sin(times)])
    positions = np.linspace(interval.start, interval.end, 12)
    nodes, scales = looked_up(table, positions, scaled=True)
    assert nodes.dalpha is None
    np.testing.assert_allclose(scales, 1.0 + torch.sin(nodes.time), rtol=1e-12)
