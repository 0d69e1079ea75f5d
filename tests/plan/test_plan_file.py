"""Plans as files: equal to the last bit, usable, and refused where they contradict themselves."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from solver_cases import ALL_SOLVERS

import diffast as df
from diffast import solvers
from diffast.plan import Plan

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SCHEDULES = {
    "vp_linear": df.schedules.vp_linear(beta_max=17.3),
    "vp_cosine": df.schedules.vp_cosine(),
    "sub_vp": df.schedules.sub_vp(),
    "ve": df.schedules.ve(),
    "edm": df.schedules.edm(sigma_max=70.1),
    "flow": df.schedules.flow(),
    "trig": df.schedules.trig(),
    "from_betas": df.schedules.from_betas(BETAS),
}
BUILDERS = {case.name: case.build for case in ALL_SOLVERS} | {
    "restart": lambda s, g: solvers.restart(s, g, [(0.2, 2.0, 2, 3)]),
    "churn_heun": lambda s, g: solvers.churn(s, g, s_churn=3.0),
    "ddim_s_noise": lambda s, g: solvers.ddim(s, g, eta=0.5, s_noise=1.01),
    "tcd": solvers.tcd,
    "dopri5": solvers.dopri5,
    "tsit5": solvers.tsit5,
}
each_kind = pytest.mark.parametrize("kind", [".json", ".npz"])


def assert_equal(one, two):
    assert type(one) is type(two) is Plan
    for field in dataclasses.fields(Plan):
        a, b = getattr(one, field.name), getattr(two, field.name)
        assert type(a) is type(b), field.name
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.shape == b.shape, field.name
            assert a.tobytes() == b.tobytes(), field.name  # -0.0 is not 0.0 here
        else:
            assert a == b, field.name


@each_kind
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_solver_comes_back_to_the_last_bit(schedule, kind, tmp_path):
    path = tmp_path / f"plan{kind}"
    seen = set()
    for build in BUILDERS.values():
        plan = build(schedule, df.grids.karras(schedule, 6, sigma_max=8.0, sigma_min=0.05))
        plan.save(path)
        loaded = Plan.load(path)
        assert_equal(loaded, plan)
        assert not loaded.point.flags.writeable
        seen |= {plan.check} | ({"opening"} if plan.opening[1] else set())
    assert seen == {"full", "x0", "opening"}  # the other fields: in the next test


@each_kind
def test_errors_and_everything_at_once_come_back(kind, tmp_path):
    schedule = df.schedules.edm()
    plan = solvers.heun(schedule, df.grids.karras(schedule, 4, to_zero=False))
    plan = dataclasses.replace(
        plan,
        error=np.zeros_like(plan.point),
        direct=np.full((plan.stages, 2, 2), -1 / 3),
        opening=(0.1, 2e-300),
        start=71.0,
        spans=np.full((plan.stages, 2), 1 / 7),
        check="finite",
        name='quoted "name", é',
    )
    plan.save(tmp_path / f"plan{kind}")
    assert_equal(Plan.load(tmp_path / f"plan{kind}"), plan)
    plan.save(str(tmp_path / f"text{kind}"))
    assert_equal(Plan.load(str(tmp_path / f"text{kind}")), plan)


@each_kind
@pytest.mark.parametrize("name", ["unipc_3", "churn_heun", "seeds_3", "ddim_s_noise"])
def test_a_loaded_plan_gives_the_same_samples(name, kind, tmp_path):
    schedule = SCHEDULES["vp_linear"]
    plan = BUILDERS[name](schedule, df.grids.uniform_time(schedule, 6, start=0.98))
    plan.save(tmp_path / f"plan{kind}")
    loaded = Plan.load(tmp_path / f"plan{kind}")
    denoiser = df.Denoiser(lambda x, t: 0.3 * x, schedule, predicts="v")
    one, two = (df.sample(denoiser, p, (3, 5), seed=4).x for p in (plan, loaded))
    assert torch.equal(one, two)


def test_json_is_readable_and_strict(tmp_path):
    schedule = df.schedules.edm()
    plan = solvers.euler(schedule, [80.0, 0.1, 0.0])
    plan.save(tmp_path / "plan.json")
    body = json.loads((tmp_path / "plan.json").read_text(), parse_constant=pytest.fail)
    assert body["format"] == "diffast plan"
    assert body["version"] == 1
    assert body["times"] == [80.0, 0.1]
    assert body["schedule"] == schedule.to_dict()


def parts(**change):
    """A good file's body, as a dict, with some fields changed; ... takes one out."""
    schedule = df.schedules.vp_linear()
    plan = solvers.dpmpp_2m(schedule, df.grids.uniform_time(schedule, 3))
    body = {"format": "diffast plan", "version": 1, "schedule": schedule.to_dict()}
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if field.name != "schedule" and value is not None:
            body[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
    body |= change
    return {key: value for key, value in body.items() if value is not ...}


def edited(field, index, value):
    table = parts()[field]
    row = table
    for i in index[:-1]:
        row = row[i]
    row[index[-1]] = value
    return {field: table}


def test_the_body_of_these_tests_is_a_good_one(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(parts()))
    assert Plan.load(tmp_path / "plan.json").name.startswith("dpmpp_2m")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"format": "another"}, "plan.json: no diffast plan, but"),
        ({"format": ...}, "no diffast plan"),
        ({"version": 3}, "version 3, but 1 and 2 are known"),
        ({"version": "2"}, "version 2, but 1 and 2"),
        ({"version": ...}, "version None, but 1 and 2"),
        ({"second": [[0.0, 0.0]] * 3}, r"missing: \[\], unknown: \['second'\]"),
        ({"version": 2, "second": [[0.0, 0.5]] * 3}, "stage 1: point holds noise of level"),
        ({"version": 2, "blocks": [0, 3]}, "a block begins at stage 3, but there are 3"),
        ({"version": 2, "blocks": [0, 1.5]}, "blocks holds float64, but it must be int"),
        ({"times": ...}, r"fields missing: \['times'\], unknown: \[\]"),
        ({"start": ..., "spans": ...}, r"missing: \['spans', 'start'\]"),
        ({"pickle": 1}, r"missing: \[\], unknown: \['pickle'\]"),
        ({"schedule": {"name": "nosuch"}}, "from_dict: name = 'nosuch'"),
        ({"schedule": {"name": "vp_linear"}}, r"from_dict: vp_linear with \[\]"),
        ({"schedule": None}, "from_dict: name = None"),
        ({"schedule": df.schedules.edm().to_dict()}, "stage 0: .* x0|opening holds"),
        (edited("point", (1, 2), 0.5), "stage 1: point holds x0 with weight"),
        (edited("anchor", (2, 1), 0.5), "stage 2: anchor holds noise of level"),
        (edited("times", (1,), 0.5), "stage 0: point holds"),
        (edited("anchor_at", (1,), 7), "stage 1: anchor_at = 7, but -2 to 3"),
        (edited("anchor_at", (1,), 1.5), "anchor_at holds float64, but it must be int"),
        (edited("point", (0, 0), float("nan")), r"stage 0: point\[0\] = nan"),
        (edited("read", (0,), [1.0]), "plan.json: .*inhomogeneous"),
        ({"end": 0.5}, "stage 2: point holds"),
        ({"end": None}, "plan.json: .*NoneType"),
        ({"start": None}, None),
        ({"steps": 9}, "9 steps, but 3 network calls"),
        ({"steps": "3"}, "plan.json: steps = '3', but it must be a whole number"),
        ({"steps": 2.5}, "plan.json: steps = 2.5, but it must be a whole number"),
        ({"name": 7}, "plan.json: name = 7, but it must be text"),
        ({"check": "none"}, "check = 'none', but it must be one of full, x0, finite"),
        ({"check": ["full"]}, "check = .'full'., but it must be one of"),
        ({"times": "soon"}, "plan.json: .*soon"),
        ({"opening": [1.0]}, r"opening has shape \[1\], but it must be \[2\]"),
    ],
)
def test_edited_files_are_refused(change, facts, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(parts(**change)))
    if facts is None:  # not given: where the plan's first call stands
        assert Plan.load(path).start == Plan.load(path).times[0]
        return
    with pytest.raises(ValueError, match=facts):
        Plan.load(path)


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("plan.json", b"", "not JSON"),
        ("plan.json", b"{", "not JSON"),
        ("plan.json", b"\xff\xfe", "not JSON"),
        ("plan.json", b"[1, 2]", "no diffast plan, but"),
        ("plan.json", b"3", "no diffast plan, but"),
        ("plan.npz", b"", "no plan in it"),
        ("plan.npz", b"nonsense", "no plan in it"),
        ("plan.npz", b"PK\x03\x04nonsense", "no plan in it"),
        ("plan.txt", b"{}", "ends in '.txt', but .json and .npz are known"),
        ("plan", b"{}", "ends in '', but"),
    ],
)
def test_files_that_hold_no_plan_are_refused(name, content, facts, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=facts):
        Plan.load(tmp_path / name)


@each_kind
def test_truncated_files_are_refused_wherever_they_end(kind, tmp_path):
    schedule = df.schedules.edm()
    path = tmp_path / f"plan{kind}"
    solvers.euler(schedule, [80.0, 1.0, 0.0]).save(path)
    whole = path.read_bytes().rstrip()
    for end in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="no plan in it|not JSON"):
            Plan.load(path)


def test_damaged_npz_are_refused(tmp_path):
    schedule = df.schedules.edm()
    path = tmp_path / "plan.npz"
    plan = solvers.euler(schedule, [80.0, 1.0, 0.0])
    plan.save(path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    at = whole.index(np.array([80.0, 1.0]).tobytes())
    damaged[at + 6] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="no plan in it"):  # its checksum
        Plan.load(path)
    np.savez(path, times=plan.times)
    with pytest.raises(ValueError, match="no plan in it.*head"):
        Plan.load(path)
    np.savez(path, head=np.array([1, 2], dtype=object))
    with pytest.raises(ValueError, match="no plan in it"):  # nothing is unpickled
        Plan.load(path)
    np.savez(path, head=np.array("[1]"), times=plan.times)
    with pytest.raises(ValueError, match="no plan in it"):
        Plan.load(path)


@each_kind
def test_missing_files_are_said_to_be_missing(kind, tmp_path):
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / f"nosuch{kind}")


def test_what_cannot_be_saved_is_refused_and_writes_nothing(tmp_path):
    class Foreign:
        def alpha(self, t):
            return np.ones_like(t)

        def sigma(self, t):
            return np.asarray(t)

        def __str__(self):
            return "Foreign()"

    plan = dataclasses.replace(
        solvers.euler(df.schedules.edm(), [80.0, 1.0, 0.0]), schedule=Foreign()
    )
    with pytest.raises(ValueError, match=r"schedule Foreign\(\) has no to_dict, but"):
        plan.save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="ends in '.toml', but .json and .npz are known"):
        solvers.euler(df.schedules.edm(), [80.0, 1.0, 0.0]).save(tmp_path / "plan.toml")
    assert not list(tmp_path.iterdir())
