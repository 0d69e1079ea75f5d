"""How benchmarks run: options, the gate of green tests, the table at the end and the JSON.

    pytest bench                         everything, at 1 and 2 threads
    pytest bench --threads 1 -k noise    a part of it
    pytest bench --benchmark-disable     a smoke test: each function once, nothing reported

Numbers are reported only for ops whose tests pass in the same build. `--unverified` measures
without this check and marks every line. Results go to bench/results/<module>.json.
"""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from ratios import interleaved

from diffast.bench import gate

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
LARGE = ("8 MiB", "32 MiB", "16x16x256x256")
SECONDS = 0.4  # of turns a case; at least ROUNDS of them
ROUNDS = 15


def pytest_addoption(parser):
    group = parser.getgroup("diffast benchmarks")
    group.addoption("--threads", default="1,2", help="numbers of threads, as in 1,2")
    group.addoption("--seconds", type=float, default=SECONDS, help="of turns for each case")
    group.addoption("--unverified", action="store_true", help="do not run the ops' tests first")


def pytest_collect_file(file_path, parent):
    """Benchmarks are collected here only: `pytest` alone never times anything."""
    if parent.session.isinitpath(file_path):
        return None  # named on the command line: pytest takes it as it is
    if file_path.suffix == ".py" and file_path.name.startswith("bench_"):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_configure(config):
    config.records = []
    config.verified = None


def pytest_collection_modifyitems(config, items):
    """A smoke test leaves the large tensors out: it runs the same lines."""
    if config.getoption("--benchmark-disable"):
        items[:] = [item for item in items if not {*LARGE} & {*item.name.strip("]").split("-")}]


def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        counts = [int(count) for count in metafunc.config.getoption("--threads").split(",")]
        metafunc.parametrize("threads", counts, indirect=True, ids=lambda n: f"{n} threads")


@pytest.fixture
def threads(request):
    """The number of threads torch and the ops may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def verified(request):
    """Whether the ops passed their tests; red ones end the session."""
    config = request.config
    if config.getoption("--benchmark-disable") or config.getoption("--unverified"):
        config.verified = False
    elif config.verified is None:
        config.verified = gate.tests_are_green(ROOT)
        if not config.verified:
            pytest.exit("the ops' tests are red: no speed is reported (--unverified would)", 1)
    return config.verified


@pytest.fixture
def measure(request, verified):
    """A function from functions by name to their timings, interleaved; one turn in a smoke test."""
    config = request.config

    def run(functions, rounds=None):
        if config.getoption("--benchmark-disable"):
            return interleaved(functions, 1)
        if rounds is not None:
            return interleaved(functions, rounds)
        turn = sum(timing.median for timing in interleaved(functions, 2).values())
        rounds = max(ROUNDS, min(200, int(config.getoption("--seconds") / max(turn, 2e-3))))
        return interleaved(functions, rounds)

    return run


@pytest.fixture
def report(request, verified):
    """A function that adds one line to the table and to the JSON."""
    records, module = request.config.records, request.module.__name__

    def run(case, timings, targets=(), **figures):
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"module": module, "case": case, "verified": verified, "when": when}
        record["load"] = os.getloadavg()[0]
        record |= {name: value for name, value in figures.items() if value is not None}
        record["spread"] = max(timing.spread for timing in timings.values())
        record["seconds"] = {name: timing.median for name, timing in timings.items()}
        record["rounds"] = min(timing.rounds for timing in timings.values())
        record["targets"] = [
            {"figure": name, "bound": f"{sign} {bound}", "met": _meets(figures[name], sign, bound)}
            for name, sign, bound in targets
        ]
        records.append(record)

    return run


def _meets(value: float, sign: str, bound: float) -> bool:
    return value >= bound if sign == ">=" else value <= bound


def machine() -> dict:
    """Returns facts about the machine and the build."""
    from diffast import ops

    model = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "backend": ops.backends()["cpu"]["backend"],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "build": gate.build_key(ROOT)[:12],
        "system": platform.platform(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["diffast"] = machine()


def pytest_sessionfinish(session):
    config = session.config
    if config.getoption("--benchmark-disable") or not config.records:
        return
    RESULTS.mkdir(exist_ok=True)
    for module in {record["module"] for record in config.records}:
        path = RESULTS / f"{module.removeprefix('bench_')}.json"
        records = _kept(path) | {
            (record["case"], record.get("threads")): record
            for record in config.records
            if record["module"] == module
        }
        content = {"machine": machine(), "results": list(records.values())}
        path.write_text(json.dumps(content, indent=1) + "\n")


def _kept(path: Path) -> dict:
    """Returns the lines of an earlier run on this machine and build, which a partial run keeps."""
    if not path.exists():
        return {}
    old = json.loads(path.read_text())
    if {**old["machine"], "when": ""} != {**machine(), "when": ""}:
        return {}
    return {(record["case"], record.get("threads")): record for record in old["results"]}


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--benchmark-disable") or not config.records:
        return
    known = ("threads", "us", "GB/s", "of copy", "of eager", "of randn", "ns/number", "spread")
    more = ("diffusers us", "of diffusers", "copy us", "over floor", "scaled of diffusers")
    more += ("torch noise of diffusers", "of one more")
    more += ("torchsde us", "times torchsde", "of 12 normals")
    more += ("over copy", "times eager", "over read")
    more += ("MB a step", "diffusers MB a step")
    more += ("sampler's share", "df.sample's share", "diffusers' share")
    columns = [c for c in (*known, *more) if any(c in record for record in config.records)]
    terminalreporter.section("diffast" if config.verified else "diffast (UNVERIFIED)")
    width = max(len(record["case"]) for record in config.records)
    terminalreporter.line(" ".join([f"{'case':{width}}", *(f"{name:>12}" for name in columns)]))
    for record in config.records:
        cells = [record.get(name) for name in columns]
        line = [f"{record['case']:{width}}", *(f"{_text(cell):>12}" for cell in cells)]
        for target in record["targets"]:
            line.append(
                f"  {target['figure']} {target['bound']} {'met' if target['met'] else 'MISSED'}"
            )
        terminalreporter.line(" ".join(line))


def _text(cell) -> str:
    return "" if cell is None else str(cell) if isinstance(cell, int) else f"{cell:.4g}"
