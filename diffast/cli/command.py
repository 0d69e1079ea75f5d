"""The command line: `diffast demo | sample | plan | tune | profile | bench | doctor`."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import platform
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from diffast.cli import benchmark, doors, failure, network_profile, planning, tasks, tuning

# Grids of `df.grids` that take any schedule and a number of steps, and need no more.
GRIDS = (
    *("default", "karras", "uniform_logsnr", "uniform_time", "exponential", "polyexponential"),
    *("lu", "uniform_flow", "even"),
    *("laplace", "kl_optimal", "ays", "beta", "beta_sigmas", "simple", "normal"),
    *("sgm_uniform", "ddim_uniform", "linear_quadratic", "ou_early"),
)

# What is run where nothing else is asked for.
STANDARD = {"steps": 18, "solver": "dpmpp_2m", "grid": "karras"}

# The digits that are drawn, in turn, where no others are asked for.
EVERY_CLASS = "0-9"

# Whether there is memory for so many is asked for later.
_COUNTED = doors.whole(1, 10**30)

# Arguments of a profiled method that the command gives itself, or that a text cannot say.
_OF_PYTHON = ("shape", "seed", "device", "progress", "throw", "trace", "x", "ids", "callback",
              "on_x0", "denoiser", "plan", "method", "solver", "executor")  # fmt: skip

# Options of solvers that are functions.
FUNCTIONS = ("noise_scale",)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after one line on stderr for bad input; 1 for what failed.

    130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as end:  # of --help, and of a call that the parser refused in one line
        return end.code if isinstance(end.code, int) else 0
    return failure.status_of(partial(arguments.run, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = failure.Parser(
        prog="diffast", description="Fast, exact sampling for diffusion and flow models."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="sample 64 digits with the embedded network",
        description="Samples 64 digits. With none of --plan, --steps, --solver, --set and --grid "
        "it runs the plan of 8 calls that was made for the digits, if there is one for the "
        "guidance scale.",
    )
    _add_run_options(demo)
    # With this guidance the judge reads 99 of 100 digits as the class asked for, without it 96.
    demo.set_defaults(run=_sample, count=64, columns=8, guidance=1.3, shipped=8)
    demo.set_defaults(guidance_rule=None, corrector=None, task=None, image=None, mask=None)
    demo.set_defaults(text=None)

    sample = commands.add_parser("sample", help="sample digits with your choice of solver and grid")
    _add_run_options(sample)
    sample.add_argument("--count", type=_COUNTED, default=64, help="how many digits (%(default)s)")
    add = sample.add_argument
    add(
        "--guidance-rule",
        metavar="NAME[:KEY=VALUE,..]",
        help="a rule of df.guidance in place of plain classifier-free guidance, of the scale of "
        "--guidance: apg:eta=0.5, rescale:phi=0.7, interval:low=0.2,high=5, tcfg",
    )
    add(
        "--corrector",
        metavar="NAME[:KEY=VALUE,..]",
        help="Langevin steps between the plan's: ulmc:n=1, olmc:step=0.3, snr",
    )
    tasks.add_options(sample)
    columns = "digits a row of a PNG (%(default)s)"
    sample.add_argument("--columns", type=doors.whole(1, 1000), default=8, help=columns)
    sample.set_defaults(run=_sample, classes=None)

    plan = commands.add_parser("plan", help="print the plan to start with")
    planning.add_options(plan)
    plan.set_defaults(run=planning.plan)

    tune = commands.add_parser("tune", help="make a plan for a network and a number of calls")
    tuning.add_options(tune)
    tune.set_defaults(run=_tune)

    profile = commands.add_parser(
        "profile", help="measure what limits the sampler; draw how a run goes"
    )
    _add_profile_options(profile)
    profile.set_defaults(run=_profile)

    bench = commands.add_parser("bench", help="measure: one HTML report and one JSON")
    benchmark.add_options(bench)
    bench.set_defaults(run=benchmark.bench)

    doctor = commands.add_parser("doctor", help="say which backend serves which device, and why")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--plan",
        metavar="FILE",
        help="a plan of `diffast tune`; it replaces --steps, --solver, --set and --grid",
    )
    usual = {name: f"({value})" for name, value in STANDARD.items()}
    add("--steps", type=doors.whole(1), help=f"grid intervals {usual['steps']}")
    add("--solver", help=f"a solver's name {usual['solver']}")
    _add_set(parser, "an option of the solver, such as eta=0.5 or orders=1,2,2")
    add("--grid", help=f"one of {', '.join(GRIDS)} {usual['grid']}")
    _add_common(parser, "classifier-free scale; 1 is none (%(default)s)")
    add("--out", default="digits.png", help=".png, .npz or .safetensors (%(default)s)")
    add("--quiet", action="store_true", help="no progress bar")


def _add_set(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=about)


def _add_common(parser: argparse.ArgumentParser, guidance: str) -> None:
    add = parser.add_argument
    add("--seed", type=doors.seed, default=0, help="any integer of 64 bits (%(default)s)")
    add("--classes", default=EVERY_CLASS, help="digits such as 7 or 0-4,9, in turn (0-9)")
    add("--guidance", type=doors.real, default=1.0, help=guidance)
    add("--device", default=None, help="cpu or cuda (default: cuda where there is one)")


def _add_profile_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kind = parser.add_mutually_exclusive_group()
    for name, method, about in (
        ("--adaptive", "pec", "step sizes against log-SNR of an adaptive method (pec)"),
        ("--parallel", "secant", "rounds against stages of a parallel method (secant)"),
    ):
        kind.add_argument(name, nargs="?", const=method, metavar="METHOD", help=about)
    usual = {name: f"({value})" for name, value in STANDARD.items()}
    add("--solver", help=f"with --parallel: a solver's name {usual['solver']}")
    add("--grid", help=f"with --parallel: its grid {usual['grid']}")
    add("--steps", type=doors.whole(1), help=f"with --parallel: grid intervals {usual['steps']}")
    examples = "rtol=0.05, noise=redraw, reject=false, window=10"
    _add_set(parser, f"an option of the method, such as {examples}")
    add("--count", type=_COUNTED, help="how many digits (16; of the network's profile 256)")
    _add_common(parser, "classifier-free scale; 1 is none")
    network_profile.add_options(parser)
    add("--out", help="of a run: .png, .svg, .pdf or .json (profile.png); of the network: .html, "
        ".png or .json (profile.html)")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar")


def _classes(text: str) -> list[int]:
    digits: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(
                f"--classes {text!r}: {part!r} is neither a digit nor a range like 0-4"
            )
        run = range(int(first), int(last if dash else first) + 1)
        if not run or run[-1] > 9:
            raise ValueError(f"--classes {text!r}: {part!r} but classes are 0 to 9, ascending")
        digits += run
    return digits


def _options(solver: str, build, pairs: list[str]) -> dict:
    parameters = list(inspect.signature(build).parameters.values())[2:]
    known = {p.name: p.default for p in parameters}
    needed = [p.name for p in parameters if p.default is p.empty]
    if needed:
        raise ValueError(
            f"solver {solver} needs {', '.join(needed)}, but the command line cannot give that: "
            "use it from Python"
        )
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"--set {pair!r} but the options of {solver} are: {listed}")
        if name in FUNCTIONS:
            raise ValueError(f"--set {pair!r} but {name} is a function: use it from Python")
        try:
            options[name] = _value(value, known[name])
        except ValueError:
            kind = type(known[name]).__name__
            raise ValueError(f"--set {pair!r} but {name} is a {kind}") from None
    return options


def _value(text: str, default):
    """Returns what the text says: one a step if it has commas; else of the default's type.

    Where the default is None: a number, or else a word.
    """
    if "," in text:
        return [_value(part, default) for part in text.split(",")]
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if default is not None:
        return type(default)(text)
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _make_plan(arguments: argparse.Namespace, schedule):
    from diffast import grids, solvers

    if arguments.plan is not None:
        return _loaded_plan(arguments)
    asked = any(getattr(arguments, name) for name in (*STANDARD, "set"))
    shipped = None if asked else _shipped_plan(getattr(arguments, "shipped", None), arguments)
    if shipped is not None:
        return shipped
    for name, value in STANDARD.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.grid not in GRIDS:
        raise ValueError(f"grid {arguments.grid!r} is not known, but these are: {', '.join(GRIDS)}")
    build = solvers.get(arguments.solver)
    options = _options(arguments.solver, build, arguments.set)
    times = getattr(grids, arguments.grid)(schedule, arguments.steps)
    try:
        return build(schedule, times, **options)
    except TypeError as error:  # a list where one number belongs, or the other way round
        if not options:
            raise
        raise ValueError(f"--set {' '.join(arguments.set)} but {error}") from None


def _shipped_plan(calls: int | None, arguments: argparse.Namespace):
    """Returns the plan that was made for the digits at this guidance, None if there is none."""
    from diffast import digits

    if calls is None:
        return None
    try:
        return digits.load_plan(calls, arguments.guidance)
    except ValueError:  # only some scales have one
        return None


def _loaded_plan(arguments: argparse.Namespace):
    """Returns the plan of a file; arguments that would make another one are refused."""
    from diffast import Plan

    for name in (*STANDARD, "set"):
        if getattr(arguments, name):
            raise ValueError(
                f"--plan and --{name} are both given, but a plan has its own: leave one out"
            )
    return Plan.load(doors.input_file("--plan", arguments.plan))


def _check_digits(arguments: argparse.Namespace, path: Path | None = None) -> list[int]:
    rule = getattr(arguments, "guidance_rule", None)
    branches = 1 if arguments.guidance == 1.0 and rule is None else 2
    doors.check_count("--count", arguments.count, branches, path)
    return _classes(arguments.classes or EVERY_CLASS)


def _digit_denoiser(arguments: argparse.Namespace):
    """Returns the embedded network as a denoiser, the labels asked for, and the device."""
    labels = _labels(arguments)

    import torch

    from diffast import Denoiser, schedules
    from diffast.digits import NULL_LABEL, load_unet
    from diffast.guidance.parse import parse

    device = doors.device_of(arguments.device)
    rule = getattr(arguments, "guidance_rule", None)
    guided = arguments.guidance != 1.0 or rule is not None
    scale = arguments.guidance
    denoiser = Denoiser(
        load_unet().to(device),
        schedules.edm(),
        predicts="x0",
        conditions={"labels": labels},
        unconditional={"labels": torch.tensor([NULL_LABEL], device="cpu")} if guided else None,
        guidance=scale if rule is None else parse(rule, scale, "--guidance-rule"),
    )
    return denoiser, labels, device


def _sample(arguments: argparse.Namespace) -> int:
    from diffast.cli import output

    # All arguments are checked before the work.
    path = output.check_path(arguments.out)
    _check_digits(arguments, path)

    import torch

    tasks.check(arguments)
    run, plan, labels, device = _run_of(arguments)
    begin = time.perf_counter()
    out = run(seed=arguments.seed, device=device, progress=not arguments.quiet)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin

    facts = {
        "solver": plan.name,
        "grid": arguments.grid,
        "steps": plan.steps,
        "network_calls": plan.nfe,
        "seed": arguments.seed,
        "guidance": arguments.guidance,
    }
    for name in ("guidance_rule", "corrector", "task", "text"):
        if getattr(arguments, name) is not None:
            facts[name] = getattr(arguments, name)
    output.write(path, out.x, {"labels": labels.numpy()}, facts, arguments.columns)
    return _report(_sample_lines(arguments, plan), seconds, device, path)


def _run_of(arguments: argparse.Namespace):
    """Returns (function that makes the samples, plan, labels, device)."""
    from diffast import sample, schedules, solvers

    def corrected(plan):
        if arguments.corrector is None:
            return plan
        return solvers.predictor_corrector(plan, arguments.corrector)

    if arguments.task is None:
        plan = corrected(_make_plan(arguments, schedules.edm()))
        denoiser, labels, device = _digit_denoiser(arguments)
        return partial(sample, denoiser, plan, (arguments.count, 1, 28, 28)), plan, labels, device
    own = all(getattr(arguments, name) in (None, []) for name in (*STANDARD, "set", "plan"))
    plan = None if own else _make_plan(arguments, schedules.edm())
    labels, device = _labels(arguments), doors.device_of(arguments.device)
    asked = arguments.classes is not None
    made = tasks.prepared(arguments, plan, labels, device, asked)
    made = tasks.with_plan(made, corrected)
    return made.sample, made.setup.plan, labels, device


def _sample_lines(arguments: argparse.Namespace, plan) -> list[str]:
    """Returns what is printed of a run."""
    shown = f"{plan.name}, {arguments.grid} grid" if arguments.grid else plan.name
    rule = arguments.guidance_rule
    guided = arguments.guidance != 1.0 or rule is not None
    batch = "up to twice" if rule is not None and rule.startswith("interval") else "twice"
    classes = arguments.classes or EVERY_CLASS
    lines = [
        f"digits         {arguments.count} (classes {classes})",
        f"solver         {shown}",
        f"steps          {plan.steps}",
        f"network calls  {plan.nfe}{f' (of {batch} the batch: guided)' if guided else ''}",
    ]
    if arguments.task is not None:
        lines[0] = f"digits         {arguments.count} (task {arguments.task})"
    if arguments.guidance_rule is not None:
        lines.append(f"guidance       {arguments.guidance_rule}")
    return lines


def _labels(arguments: argparse.Namespace):
    """Returns the label of each sample, [count] int64."""
    import torch

    digits = _check_digits(arguments)
    asked = [digits[i % len(digits)] for i in range(arguments.count)]
    return torch.tensor(asked, device="cpu")


def _tune(arguments: argparse.Namespace) -> int:
    return tuning.tune(arguments, _digit_denoiser, doors.device_of)


def _report(lines: Iterable[str], seconds: float, device, path) -> int:
    from diffast import backends

    for line in lines:
        print(line)
    print(f"seconds        {seconds:.2f}")
    print(f"backend        {backends()[device.type]['backend']} on {device}")
    print(f"wrote          {path}")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from diffast.cli import profiling

    for name, usual in STANDARD.items():
        value = getattr(arguments, name)
        if value is not None and arguments.parallel is None:
            raise ValueError(f"--{name} {value} but it is an option of --parallel")
        setattr(arguments, name, usual if value is None else value)
    if arguments.parallel is None and arguments.adaptive is None:
        return network_profile.profile(arguments, _digit_denoiser)
    if arguments.data is not None:
        raise ValueError("--data is given, but it is for the profile of the network alone")
    arguments.count = 16 if arguments.count is None else arguments.count
    endings = (".png", ".svg", ".pdf", ".json")
    drawn = dict.fromkeys(endings[:3], "matplotlib")
    path = doors.output_file("--out", arguments.out or "profile.png", endings, drawn)
    options = _method_options(arguments.set)
    denoiser, _, device = _digit_denoiser(arguments)
    given = options | {
        "shape": (arguments.count, 1, 28, 28),
        "seed": arguments.seed,
        "device": device,
        "progress": not arguments.quiet,
    }
    begin = time.perf_counter()
    try:
        if arguments.parallel is not None:
            made = profiling.parallel(arguments, denoiser, given, GRIDS)
        else:
            made = profiling.adaptive(arguments, denoiser, given)
    except TypeError as error:  # a word where a number belongs, an option that there is not
        if not options:
            raise
        raise ValueError(f"--set {' '.join(arguments.set)} but {error}") from None
    method, facts, lines, draw = made
    seconds = time.perf_counter() - begin
    with doors.replaced(path) as part:
        if path.suffix == ".json":
            part.write_text(json.dumps({"method": method, "options": options} | facts))
        else:
            draw(part, f"{method} on {arguments.count} digits")
    return _report((f"method         {method}", *lines), seconds, device, path)


def _method_options(given: list[str]) -> dict:
    options = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set {pair!r} but NAME=VALUE is needed")
        if name in _OF_PYTHON:
            raise ValueError(f"--set {pair!r} but {name} cannot be given here: use it from Python")
        known = text.lower() in ("true", "false")
        options[name] = _value(text, False if known else None)
    return options


def _doctor(_: argparse.Namespace) -> int:
    import numpy
    import torch

    import diffast

    print(f"diffast  {diffast.__version__}")
    print(f"python   {platform.python_version()} on {platform.machine()}")
    print(f"torch    {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"numpy    {numpy.__version__}")
    print(f"triton   {diffast.ops.triton_version() or 'not installed'}")
    for device, entry in diffast.backends().items():
        print(f"{device:<8} {entry['backend']}: {entry['reason']}")
    return 0
