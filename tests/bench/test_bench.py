"""`diffast bench`: the report's fields, a page without references, refusals, missing tools."""

import importlib.util
import json
from html.parser import HTMLParser

import pytest
import torch
from places import ROOT

from diffast import ops
from diffast.bench import (
    curves,
    gate,
    op_calls,
    peer_candidates,
    peers,
    problems,
    ratios,
    report,
    run,
    selfcheck,
)
from diffast.bench.candidates import Candidate
from diffast.bench.parts import ops as ops_part
from diffast.bench.parts import paths, runs, steps
from diffast.bench.settings import PARTS, Settings
from diffast.cli import benchmark, main
from diffast.ops.load import OPS

CPU = torch.device("cpu")
TINY = {"tiny": True, "quick": True, "budget": 0}


class Page(HTMLParser):
    """Collects tags and attributes, and fails on tags that are closed out of order."""

    VOID = {"meta", "br", "path", "rect", "circle"}

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of all parts but the processes, in the smallest sizes, with its files."""
    content = run.make(Settings(**TINY), [part for part in PARTS if part != "start"])
    folder = tmp_path_factory.mktemp("report") / "new"
    data, page = run.write(content, folder)
    return content, json.loads(data.read_text()), page.read_text()


def test_the_json_has_the_promised_fields(made):
    content, read, _ = made
    assert read["format"] == run.FORMAT
    facts = {"card", "cores", "backend", "torch", "numpy", "python", "peers", "commit", "when"}
    assert facts <= set(read["machine"])
    assert read["machine"]["card"].startswith("cpu: ")
    assert {"quick", "device", "threads", "seconds"} <= set(read["settings"])
    assert set(read["verified"]["ops"].values()) == {"ok"}
    assert {*read["verified"]["ops"], *read["verified"]["unchecked"]} == set(OPS)
    names = {section["name"] for section in read["sections"]}
    assert names == {"ops", "steps", "runs: mixture", "runs: sde", "paths", "memory"}
    for section in read["sections"]:
        assert section["rows"], section["name"]
        for row in section["rows"]:
            assert set(row) & set(section["columns"])
    ops_rows = {s["name"]: s["rows"] for s in read["sections"]}["ops"]
    for row in ops_rows:
        assert row["GB/s"] == pytest.approx(row["MB"] / row["us"] * 1e3)
        assert {"of copy", "spread", "rounds", "threads"} <= set(row)
    assert {row["op"] for row in ops_rows} == set(read["verified"]["ops"])
    assert content["settings"] == read["settings"]


def test_every_op_that_has_a_call_is_checked(made):
    content, *_ = made
    assert set(content["verified"]["ops"]) == {name for name in OPS if hasattr(op_calls, name)}
    assert set(OPS) == set(content["verified"]["ops"])
    assert not content["verified"]["unchecked"]


def test_the_page_is_whole_and_refers_to_nothing_outside(made):
    content, _, text = made
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.seen)
    assert not {"src", "href", "xlink:href"} & {name for name, _ in page.attributes}
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert page.seen.count("h2") == len(content["sections"])
    assert page.seen.count("svg") == 4  # ops, steps, two kinds of whole runs
    body = text[text.index("<tbody>") :]
    for section in content["sections"]:
        assert section["title"] in body or section["title"] in text
        for row in section["rows"]:
            assert report.number(row.get("us"), "us") in text


def test_words_are_escaped(made):
    content, *_ = made
    content = json.loads(json.dumps(content))
    content["sections"][0]["rows"][0]["call"] = "<script>alert(1)</script>"
    assert "<script>" not in report.page(content)


def wrong_gram(right):
    def call(*arguments):
        right(*arguments)
        arguments[2][-1, -1] *= 1 + 1e-6

    return call


def wrong_combine(right):
    """One wrong bit in one element."""

    def call(xs, weights, outs, *others):
        right(xs, weights, outs, *others)
        outs[-1].view(torch.int32).view(-1)[-1] ^= 1

    return call


def test_an_op_that_fails_its_check_is_refused(monkeypatch):
    monkeypatch.setattr(ops, "gram", wrong_gram(ops.gram))
    found = selfcheck.check(CPU)
    assert [op for op, why in found.items() if why != "ok"] == ["gram"]
    assert found["gram"] == "gram: tensor 5 of [2, 3] is not the reference's"
    (section,) = ops_part.run(Settings(**TINY, ops=found))
    (refused,) = (row for row in section.rows if row["op"] == "gram")
    assert refused["refused"] == f"gram: {found['gram']}"
    assert all("us" in row for row in section.rows if row["op"] != "gram")
    # What is built on the op is refused with it; what is not, is measured.
    (whole,) = runs.run(Settings(**TINY, ops=found))
    assert found["gram"] in whole.rows[0]["refused"]
    assert "of copy" in steps.run(Settings(**TINY, ops=found))[0].rows[0]
    # --unverified measures it and marks the line.
    (section,) = ops_part.run(Settings(**TINY, ops=found, unverified=True))
    (row,) = (row for row in section.rows if row["op"] == "gram")
    assert "us" in row and row["verified"] is False


def test_one_wrong_bit_is_found_and_ends_the_command_with_status_1(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ops, "combine_out", wrong_combine(ops.combine_out))
    options = ["--quick", "--only", "steps,memory", "--out", str(tmp_path)]
    assert main(["bench", *options]) == 1
    said = capsys.readouterr()
    assert "combine FAILED its check: combine.out: tensor " in said.err
    text = (tmp_path / "bench.html").read_text()
    assert text.count("not measured: combine: combine.out: tensor") == 2
    assert "ops that failed" in text


@pytest.mark.parametrize("name", peers.NEEDS)
def test_a_tool_that_is_missing_is_one_line(name, monkeypatch):
    find = peers.importlib.util.find_spec
    absent = lambda wanted, *more: None if wanted == name else find(wanted, *more)  # noqa: E731
    monkeypatch.setattr(peers.importlib.util, "find_spec", absent)
    line = f"{peers.DISTRIBUTIONS.get(name, name)}: not installed"
    assert peers.missing(name) == line
    part = {"torchsde": paths, "torchdiffeq": None}.get(name, steps)
    if part:
        (section,) = part.run(Settings(**TINY))
        assert line in section.notes
        assert section.rows  # what is installed is compared with all the same
    tried, lines = peer_candidates.theirs(True)
    assert (line in lines) == (name != "torchsde")
    shown = peers.DISTRIBUTIONS.get(name, name)
    assert not [candidate for candidate in tried if candidate.family.startswith(shown)]


def test_what_a_tool_needs_is_named(monkeypatch):
    find = peers.importlib.util.find_spec
    absent = lambda wanted, *more: None if wanted == "scipy" else find(wanted, *more)  # noqa: E731
    monkeypatch.setattr(peers.importlib.util, "find_spec", absent)
    wanted = "k-diffusion: not measured, since it needs scipy: not installed"
    assert peers.missing("k_diffusion") == wanted


def test_the_mixture_s_denoiser_is_the_posterior_mean():
    """Against samples: x0 given x is an average of x0 weighted by how likely each makes x."""
    problem = problems.mixture(CPU, count=2, steps=4)
    x = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    sigma = torch.tensor([2.0], dtype=torch.float64)
    means, logits, deviation = problems.components()
    generator = torch.Generator().manual_seed(0)
    of_sample = torch.multinomial(logits.softmax(0), 400_000, True, generator=generator)
    x0 = means[of_sample]
    x0 = x0 + deviation * torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    weights = torch.softmax(-(x.flatten() - x0).square().sum(1) / (2 * sigma**2), 0)
    wanted = weights @ x0
    got = problem.denoise(x, sigma).flatten()
    # The standard error of a weighted mean: spread over the root of the effective count.
    allowed = 5 * x0.std() * weights.square().sum().sqrt()
    assert (got - wanted).abs().max() < allowed < 0.2


def test_the_end_of_the_flow_is_fine_enough():
    coarse, fine = (problems.mixture(CPU, count=8, steps=n) for n in (60, 120))
    assert coarse.error(fine.fine) < 1e-6


def test_the_fewest_calls_are_those_of_the_first_budget_that_is_good_enough():
    """Two candidates of known errors: 1/n and 1/n^2; the third never gets there."""
    problem = problems.mixture(CPU, count=2, steps=4)

    def candidate(name, family, power):
        def run(problem, calls):
            for _ in range(int(calls)):
                problem.at(problem.start, 1.0)
            return problem.fine + calls**-power * problem.fine.std(), None

        return Candidate(family, name, (2, 4, 8, 16), run)

    tried = [
        candidate("slow", "a", 1.0),
        candidate("fast", "a", 2.0),
        candidate("never", "b", 0.0),
    ]
    error = lambda family, x: problem.error(x)  # noqa: E731
    found = [curves.curve_of(c, problem, error, 0.1, 64) for c in tried]
    assert [point.calls for point in found[0].points] == [2, 4, 8, 16]
    assert [point.calls for point in found[1].points] == [2, 4]
    best = curves.best_of(found, 0.1)
    assert {family: (c.name, p.calls) for family, (c, p) in best.items()} == {"a": ("fast", 4)}
    rows = curves.rows_of(0.1, found, problem, "a", Settings(**TINY))
    assert [row["best of its settings"] for row in rows] == ["fast", "not reached"]


def test_a_tool_with_fewer_calls_is_a_loss():
    problem = problems.mixture(CPU, count=2, steps=4)

    def candidate(family, calls):
        def run(problem, _):
            for _ in range(calls):
                problem.at(problem.start, 1.0)
            return problem.fine, None

        return Candidate(family, f"{calls} calls", (1,), run)

    tried = [candidate("diffast", 3), candidate("fewer", 2), candidate("more", 4)]
    error = lambda family, x: problem.error(x)  # noqa: E731
    found = [curves.curve_of(c, problem, error, 0.1, 64) for c in tried]
    rows = curves.rows_of(0.1, found, problem, "diffast", Settings(quick=True, budget=0.01))
    losses = {row["family"]: row.get("loss") for row in rows}
    assert losses["diffast"] is None and losses["fewer"] is True
    text = report._row(rows[1], list(curves.COLUMNS))
    assert text.startswith('<tr class="loss">')


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "ops,speed"], "--only 'ops,speed': 'speed' is no part, but ops, steps, runs"),
        (["--threads", "0"], "--threads '0': '0' but there are 1 to "),
        (["--threads", "one"], "--threads 'one': 'one' but there are 1 to "),
        (["--device", "tpu0"], "--device 'tpu0' is no device"),
        (["--out", __file__], "is a file but a folder is needed"),
    ],
)
def test_bad_options_are_refused_before_the_work(options, words, capsys, monkeypatch):
    monkeypatch.setattr(run, "make", lambda *call: pytest.fail("the work began"))
    assert main(["bench", *options]) == 2
    assert words in capsys.readouterr().err


def test_the_command_knows_the_parts():
    assert benchmark.PARTS == PARTS


def test_turns_alternate_and_ratios_have_quartiles():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    once = ratios.interleaved(functions, 1)
    assert order == ["a", "b"] and once["a"].rounds == 1
    timings = ratios.timed(functions, 0.02, least=4)
    assert timings["a"].rounds == timings["b"].rounds >= 4
    assert timings["a"].low <= timings["a"].median <= timings["a"].high
    changes = sum(x != y for x, y in zip(order, order[1:], strict=False))
    assert changes >= 2 * timings["a"].rounds - 1
    slow, fast = ratios.timing_of([2.0] * 4), ratios.timing_of([1.0] * 4)
    assert ratios.slower(slow, fast) and not ratios.slower(fast, slow)
    assert not ratios.slower(ratios.timing_of([1.0, 1.0, 2.0, 2.0]), fast)


def test_the_gate_is_closed_by_a_red_test(tmp_path):
    """The tests of a checkout that fail close every op; nothing is stamped."""
    assert gate.checkout() == gate.Path(gate.diffast.__file__).parent.parent
    wanted = {f"tests/ops/test_{op}.py" for op in OPS} | {"tests/ops/test_op_errors.py"}
    assert wanted <= set(gate.tests_of(ROOT))
    test = tmp_path / "tests" / "ops" / "test_gram.py"
    helper = tmp_path / "tests" / "helpers" / "output_hashes.py"
    for path in (test, helper, tmp_path / "tests" / "conftest.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    test.write_text("def test_it():\n    assert False\n")
    assert not gate.tests_are_green(tmp_path)
    assert not (tmp_path / ".benchmarks" / "verified").exists()
    test.write_text("def test_it():\n    pass\n")
    assert gate.tests_are_green(tmp_path)
    assert (tmp_path / ".benchmarks" / "verified").read_text() == gate.build_key(tmp_path)


@pytest.fixture(scope="module")
def tables():
    """bench/make_tables.py, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "bench" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_have_the_tables_of_the_jsons(tables):
    """Else run bench/make_tables.py."""
    found = []
    for path in tables.DOCUMENTS:
        text = path.read_text()
        assert tables.filled(text) == text, path.name
        found += tables.MARKED.findall(text)
    names = [name for name, _ in found]
    checks = {f"gpu check {part}" for part in ("steps", "targets", "ops", "small", "runs")}
    made = {"summary", "gpu predictions", "cpu machine", *checks}
    assert made | {f"cpu {n}" for n in tables.COLUMNS} == {*names}


def test_a_changed_number_changes_the_table(tables, monkeypatch, made):
    content = json.loads(json.dumps(made[0]))
    monkeypatch.setattr(tables, "load", lambda device: content if device == "cpu" else None)
    section = next(s for s in content["sections"] if s["name"] == "ops")
    before = tables.made("cpu ops")
    section["rows"][0]["us"] = 123456.0
    assert tables.made("cpu ops") != before and "123,456" in tables.made("cpu ops")
    row = next(r for r in content["sections"][1]["rows"])
    row["loss"] = True
    assert "**" in tables.made("cpu steps")
    assert tables.made("cuda ops").startswith("Not measured yet")


def test_no_figure_of_a_gpu_is_shown_as_measured_without_a_report_of_one(tables, monkeypatch):
    monkeypatch.setattr(
        tables, "load", lambda device, load=tables.load: load("cpu") if device == "cpu" else None
    )
    monkeypatch.setattr(tables.gpu_tables, "reports", list)
    summary = tables.made("summary")
    head, _, *rows = summary.splitlines()
    assert "H100 predicted" in head
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert {row[2] for row in cells} == {"not yet"} and "GPU measured |" in head
    assert all(row[1] != "not yet" for row in cells)  # the CPU's report has all of them
    assert "not measured" in tables.made("gpu predictions")


def test_the_newest_check_of_a_gpu_is_shown(tables, monkeypatch):
    """Steps of several reports are put together; a later one takes an earlier one's place."""

    def report(when, share):
        row = {"case": "combine 4 to 1 fp32 8 MiB", "tensor": 2**23, "us": 5.0, "of copy": share}
        target = {"target": "kernels", "value": share, "bound": ">= 0.9", "met": share >= 0.9}
        step = {"name": "bench", "what": "ops", "state": "passed", "seconds": 1.0}
        step |= {"figures": [row], "targets": [target]}
        return {"card": f"card {when}", "commit": "abc", "when": when, "steps": [step]}

    newest = [report("2026-01-01", 0.8), report("2026-01-02", 0.95)]
    monkeypatch.setattr(tables.gpu_tables, "reports", lambda: newest)
    monkeypatch.setattr(
        tables, "load", lambda device, load=tables.load: device == "cpu" and load("cpu")
    )
    head, _, first, *others = tables.made("summary").splitlines()
    assert "GPU measured (card 2026-01-02)" in head and " 0.95 " in first
    assert all(" not yet " in row for row in others)
    assert "0.95 | >= 0.9 | met" in tables.made("gpu check targets")
    newest.pop()
    assert "**0.8** | >= 0.9 | missed" in tables.made("gpu check targets")


def test_bounds_are_taken_from_counts(tables):
    """2 bytes an element at 3 TB/s are 0.67 ps; what the counts say is what the table says."""
    bound = {"H100": {"bound ps": 0.67, "share of copy at most": 1.0}}
    bound["H200"] = {"bound ps": 0.5, "share of copy at most": 0.9}
    case = {"bytes an element": 2, "instructions per 4 elements": 10.0, "predicted": bound}
    counts = {"after": {"cases": {"normal fp32": case}}}
    before = {"about": "", "cards": {"H100": {}, "H200": {}}, "cases": {"x": {}}, "summary": {}}
    found = tables.with_bounds(before, counts)
    assert tables.of_predictions(found).splitlines()[-1] == (
        "| normal fp32 | 2 | 2.5 | 0.67 | 0.5 | at most 1 | at most 0.9 |"
    )
    assert found["summary"]["normal"] == "0.0007 ns at least"
