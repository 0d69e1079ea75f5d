"""Plans as files: equal to the last bit, usable, and refused where they contradict themselves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from older_plans import BUILDERS as OLDER
from places import ROOT
from plan_tables import rows_of_x
from solver_cases import ALL_SOLVERS

import diffast as df
from diffast import solvers
from diffast.plans import Plan, Stages

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
        assert not loaded.matrix.flags.writeable
        seen |= {plan.check} | ({"silent"} if plan.nfe < plan.stages else set())
    assert seen == {"full", "x0", "silent"}  # the other fields: in the next test


def everything():
    """A plan with every row and column, numbers that mean nothing, and all fields given."""
    stages = Stages(df.schedules.edm(), 71.0)
    row = {"y": 1 / 3, "x": 2e-300, "h0": -1 / 7, "h1": 1e300, "d": 1.0, "d_raw": -0.0, "g1": 3.0}
    first = {name: weight for name, weight in row.items() if name != "h1"}
    v, error = {"z1": 0.1, "z2": 1 / 9}, {"d": 5e-324}
    stages.add(None, 70.0, {"y": 0.1, "z1": 0.3})
    stages.add(70.0, 60.0, first, y={"x": 0.1}, y_at=(0.1, 0.3), h={"d": 1 / 3}, v=v, error=error)
    stages.add(60.0, 50.0, row, y="keep", v={"v": 1 / 3}, h={"x": 0.7})
    fields = {"check": "finite", "blocks": [0, 1]}
    return stages.plan('quoted "name", é', 2, spans=np.full((3, 2), 1 / 7), **fields)


@each_kind
def test_everything_at_once_comes_back(kind, tmp_path):
    plan = everything()
    assert plan.rows == ("h", "y", "v", "x", "error")
    assert len(plan.columns) == 10
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
    plan = solvers.churn(schedule, [70.0, 1.0, 0.0], s_churn=0.2, base="euler")
    plan.save(tmp_path / "plan.json")
    body = json.loads((tmp_path / "plan.json").read_text(), parse_constant=pytest.fail)
    assert body["format"] == "diffast plan"
    assert body["version"] == 6
    assert body["times"] == [None, *plan.call_times]
    assert (body["rows"], body["columns"]) == ([*plan.rows], [*plan.columns])
    assert body["matrix"] == plan.matrix.tolist()
    assert body["schedule"] == schedule.to_dict()


# --- files of older versions ----------------------------------------------------------------------

each_older = pytest.mark.parametrize("name", OLDER)


def older(name):
    return Plan.load(ROOT / "tests" / "plans" / "older" / name)


def network(x, t, shift=0.0):
    t = t.reshape(-1, 1).to(x.dtype)
    return (0.8 * x + 0.1 - t + shift) / (1 + 0.3 * x * x + t * t)


def guided(schedule):
    shift = torch.full((3, 1), 0.3)
    conditions = {"conditions": {"shift": shift}, "unconditional": {"shift": -shift}}
    return df.Denoiser(network, schedule, predicts="v", guidance=1.7, **conditions)


RUNS = {
    "plain": {},
    "clamp": {"clamp": (-0.3, 0.25)},
    "hook": {"on_x0": lambda x0, stage: 0.5 * x0},
    "preview": {"callback": lambda progress: None},
}


@each_older
def test_older_files_say_what_todays_builders_say(name):
    plan, built = older(name), OLDER[name]()
    for field in ("schedule", "end", "start", "steps", "name", "check"):
        assert getattr(plan, field) == getattr(built, field), field
    np.testing.assert_array_equal(plan.times, built.times)
    blocks = [None if p.blocks is None else p.blocks.tolist() for p in (plan, built)]
    assert blocks[0] == blocks[1]
    drawn = np.zeros(plan.stages, dtype=bool)
    for register in plan.rows:
        drawn |= (plan.weights(register, "z1") != 0) | (plan.weights(register, "z2") != 0)
    if not plan.weights("y", "z2").any():  # with two normals there is no path
        np.testing.assert_array_equal(plan.spans[drawn], built.spans[drawn])
    assert (plan.nfe < plan.stages) == (name == "churn.json")


@each_older
def test_older_files_give_the_bits_of_todays_builders(name):
    plan, built = older(name), OLDER[name]()
    schedule = plan.schedule
    for denoiser in (df.Denoiser(network, schedule, predicts="x0"), guided(schedule)):
        for label, options in RUNS.items():
            one, two = (df.sample(denoiser, p, (3, 5), seed=4, **options).x for p in (plan, built))
            assert torch.equal(one, two), label
    if name == "dpmpp_sde.json":
        one, two = (df.sample(denoiser, p, (3, 5), noise="path").x for p in (plan, built))
        assert torch.equal(one, two)


def test_errors_of_older_files_are_rows():
    plan = older("heun_error.json")
    assert plan.rows == ("h", "y", "x", "error")
    euler = df.solvers.euler(plan.schedule, [*plan.times[::2], plan.end])
    rows, heuns = np.zeros((8, 2)), plan.matrix
    x, error = (heuns[:, plan.rows.index(name)] for name in ("x", "error"))
    at = [plan.columns.index(name) for name in ("y", "h0", "h1")]
    rows = error[1::2][:, at]
    assert not error[::2].any()
    wanted = x[1::2][:, at]
    wanted[:, 0] -= euler.weights("x", "x")
    wanted[:, 2] -= euler.weights("x", "d")
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-12)


@each_kind
@each_older
def test_older_files_saved_anew_come_back_to_the_last_bit(name, kind, tmp_path):
    plan = older(name)
    plan.save(tmp_path / f"plan{kind}")
    assert_equal(Plan.load(tmp_path / f"plan{kind}"), plan)


# --- edited files ---------------------------------------------------------------------------------


def two_m():
    schedule = df.schedules.vp_linear()
    return solvers.dpmpp_2m(schedule, df.grids.uniform_time(schedule, 3))


def parts(**change):
    """A good file's body, as a dict, with some fields changed; ... takes one out."""
    plan = two_m()
    body = {"format": "diffast plan", "version": 6, "schedule": plan.schedule.to_dict()}
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if field.name != "schedule" and value is not None:
            body[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
    body |= change
    return {key: value for key, value in body.items() if value is not ...}


def older_parts(**change):
    """The same in version 1."""
    plan = two_m()
    fields = ("times", "end", "start", "steps", "name", "check", "spans")
    body = {field: parts()[field] for field in fields}
    body |= {"format": "diffast plan", "version": 1, "schedule": plan.schedule.to_dict()}
    body |= {"read": [[0.0, 1.0]] * 3, "opening": [1.0, 0.0], "anchor_at": [1, 2, 3]}
    body |= {field: rows_of_x(plan).tolist() for field in ("point", "anchor")}
    body |= change
    return {key: value for key, value in body.items() if value is not ...}


def edited(field, index, value, body=parts):
    table = body()[field]
    row = table
    for i in index[:-1]:
        row = row[i]
    row[index[-1]] = value
    return {field: table}


def edited_older(field, index, value):
    return edited(field, index, value, older_parts)


def test_the_bodies_of_these_tests_are_good_ones(tmp_path):
    for body in (parts, older_parts):
        (tmp_path / "plan.json").write_text(json.dumps(body()))
        assert Plan.load(tmp_path / "plan.json").name.startswith("dpmpp_2m")


def refused(body, facts, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(body))
    if facts is None:  # not given: where the plan's first call stands
        assert Plan.load(path).start == Plan.load(path).times[0]
        return
    with pytest.raises(ValueError, match=facts):
        Plan.load(path)


# What files of all versions are refused for.
EVERY = [
    ({"format": "another"}, "plan.json: no diffast plan, but"),
    ({"format": ...}, "no diffast plan"),
    ({"version": 7}, "version 7, but 1 to 6 are known"),
    ({"version": 0}, "version 0, but 1 to 6"),
    ({"version": "2"}, "version '2', but 1 to 6"),
    ({"version": ...}, "version None, but 1 to 6"),
    ({"times": ...}, r"fields missing: \['times'\], unknown: \[\]"),
    ({"start": ..., "spans": ...}, r"missing: \['spans', 'start'\]"),
    ({"pickle": 1}, r"missing: \[\], unknown: \['pickle'\]"),
    ({"schedule": {"name": "nosuch"}}, "from_dict: name = 'nosuch'"),
    ({"schedule": {"name": "vp_linear"}}, r"from_dict: vp_linear with \[\]"),
    ({"schedule": None}, "from_dict: name = None"),
    ({"schedule": df.schedules.edm().to_dict()}, "stage 0: .* x0|end: the last x"),
    ({"end": 0.5}, "stage 2: x holds|end: the last x has alpha"),
    ({"end": None}, "plan.json: .*end is None, but it must be a number"),
    ({"start": None}, None),
    ({"steps": 9}, "9 steps, but 3 network calls"),
    ({"steps": "3"}, "plan.json: steps = '3', but it must be a whole number"),
    ({"steps": 2.5}, "plan.json: steps = 2.5, but it must be a whole number"),
    ({"name": 7}, "plan.json: name = 7, but it must be text"),
    ({"check": "none"}, "check = 'none', but it must be one of full, x0, finite"),
    ({"check": ["full"]}, "check = .*full.*, but it must be text"),
    ({"check": None}, "check = None, but it must be text"),
    ({"end": "0"}, "end is .0., but it must be a number"),
    ({"end": True}, "end is True, but it must be a number"),
    ({"times": None}, "times is null, but"),
    ({"times": [True, False, True]}, "times holds True, but it must hold numbers"),
    ({"times": {"0": 1.0}}, "times holds .*, but it must hold numbers"),
    ({"spans": None}, "spans is null, but"),
    (
        {"schedule": {"name": "vp_linear", "beta_min": None, "beta_max": 20.0}},
        "plan.json: .*a schedule",
    ),
    (
        {"schedule": {"name": "vp_linear", "beta_min": "a", "beta_max": 20.0}},
        "plan.json: .*a schedule",
    ),
    ({"schedule": {"name": ["flow"]}}, "plan.json: .*a schedule"),
    ({"times": "soon"}, "plan.json: .*soon"),
]


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        *EVERY,
        ({"read": [[0.0, 1.0]] * 3}, r"missing: \[\], unknown: \['read'\]"),
        ({"blocks": [0, 3]}, "a block begins at call 3, but there are 3"),
        ({"blocks": [0, 1.5]}, "blocks holds float64, but it must be int"),
        (edited("matrix", (1, 1, 1), 0.5), "stage 1: x holds x0 with weight"),
        (edited("matrix", (1, 1, 1), None), "stage 1: weight of h1 in x = nan"),
        (edited("matrix", (0, 1, 0), float("nan")), "stage 0: weight of x in x = nan"),
        (edited("matrix", (0, 1), [1.0]), "plan.json: .*inhomogeneous"),
        (edited("matrix", (0, 1, 0), "much"), "plan.json: .*"),
        (edited("levels", (1, 1, 1), 0.5), "stage 1: x holds noise of level"),
        (edited("levels", (1, 1, 1), None), "stage 1: alpha = .*, sigma = nan for x"),
        (edited("times", (1,), None), "3 steps, but 2 network calls"),
        (edited("times", (1,), 1.5), "stage 1: t = 1.5, but the schedule holds for"),
        ({"rows": ["h", "w"]}, r"rows = \('h', 'w'\), but they must be x and others"),
        ({"rows": ["h", 3]}, r"plan.json: rows = \['h', 3\], but it must be a list of names"),
        ({"rows": None}, "plan.json: rows = None, but"),
        ({"rows": "hx"}, "plan.json: rows = 'hx', but"),
        ({"columns": ["x", "h1", "w"]}, "plan: a row weighs 'w', but the columns are"),
        ({"columns": ["x", "h1", 3]}, "plan.json: columns = .*3.*, but"),
        ({"columns": [["x"], "h1", "d"]}, "plan.json: columns = .*, but"),
        ({"columns": 5}, "plan.json: columns = 5, but"),
    ],
)
def test_edited_files_are_refused(change, facts, tmp_path):
    refused(parts(**change), facts, tmp_path)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        *EVERY,
        ({"matrix": [[[0.0]]]}, r"missing: \[\], unknown: \['matrix'\]"),
        ({"second": [[0.0, 0.0]] * 3}, r"missing: \[\], unknown: \['second'\]"),
        ({"version": 2, "second": [[0.0, 0.5]] * 3}, "stage 0: y holds noise of level"),
        ({"version": 2, "second": [[0.5, 0.5]] * 3}, "stage 0: x holds noise of level"),
        ({"version": 2, "second": [[0.0, 0.5]] * 2}, r"plan.json: .*second has shape \[2, 2\]"),
        ({"version": 2, "blocks": [0, 3]}, "a block begins at call 3, but there are 3"),
        ({"version": 2, "blocks": [0, 1.5]}, "blocks holds float64, but it must be int"),
        (edited_older("point", (1, 2), 0.5), "stage 1: x holds x0 with weight"),
        (edited_older("anchor", (2, 1), 0.5), "stage 2: y holds noise of level"),
        (edited_older("times", (1,), 0.5), "stage 0: x holds"),
        (edited_older("anchor_at", (1,), 7), "plan.json: .*stage 1: anchor_at = 7, but -2 to 3"),
        (edited_older("anchor_at", (1,), 1), "stage 1: y holds x0 with weight"),
        (edited_older("anchor_at", (0,), -1), "stage 0: y holds x0 with weight .* alpha = 1.0"),
        (edited_older("anchor_at", (0,), -2), "stage 0: y holds x0 with weight .* alpha = 0.0"),
        (edited_older("anchor_at", (1,), -3), "plan.json: .*stage 1: anchor_at = -3, but -2 to 3"),
        (edited_older("anchor_at", (1,), 1.5), "plan.json: .*anchor_at must hold whole numbers"),
        (edited_older("point", (0, 0), float("nan")), "stage 0: weight of y in x = nan"),
        (edited_older("point", (0, 3), 0.5), "stage 0: x has weight 0.5 on h1, but 0 exist"),
        (edited_older("read", (0,), [1.0]), "plan.json: .*inhomogeneous"),
        (edited_older("read", (1,), [0.0, 0.9]), "stage 1: x holds x0 with weight"),
        ({"read": [[0.0, 1.0]] * 2}, r"plan.json: .*read has shape \[2, 2\]"),
        ({"point": [0.0, 1.0, 2.0]}, "plan.json: .*"),
        ({"direct": [[0.0, 1.0]] * 3}, r"plan.json: .*direct has shape \[3, 2\]"),
        ({"direct": [[[0.0, 0.1]] * 2] * 3}, "stage 0: x holds x0 with weight"),
        ({"error": [[0.0, 0.0, 0.1, 0.0]] * 3}, "stage 0: error holds x0 with weight 0.1"),
        ({"error": [[0.0, 0.0]] * 2}, "plan.json: .*"),
        ({"opening": [1.0]}, r"plan.json: .*opening has shape \[1\], but it must be \[2\]"),
        ({"opening": [0.5, 0.0]}, "stage 0: x holds x0 with weight"),
        ({"opening": [1.0, 0.1]}, "stage 0: x holds noise of level"),
        ({"spans": [[1.0, 0.5]] * 2}, r"spans has shape \[2, 2\], but it must be \[3, 2\]"),
    ],
)
def test_edited_older_files_are_refused(change, facts, tmp_path):
    refused(older_parts(**change), facts, tmp_path)


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


@pytest.mark.parametrize("name", ["plan.json", "plan.npz"])
def test_a_plan_that_cannot_be_written_leaves_the_one_before(name, tmp_path, monkeypatch):
    schedule = df.schedules.flow()
    plan = solvers.euler(schedule, df.grids.uniform_time(schedule, 3))
    plan.save(tmp_path / name)

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        solvers.euler(schedule, df.grids.uniform_time(schedule, 5)).save(tmp_path / name)
    monkeypatch.undo()
    assert Plan.load(tmp_path / name).nfe == 3
    assert [path.name for path in tmp_path.iterdir()] == [name]
