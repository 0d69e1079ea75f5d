"""`diffast plan`: the plan to start with, printed and written."""

from __future__ import annotations

import argparse

from diffast.cli import doors

# Schedules that need no numbers, and a prediction type that their networks usually have.
SCHEDULES = {
    "edm": "x0",
    "ve": "x0",
    "vp_linear": "v",
    "vp_cosine": "v",
    "trig": "v",
    "flow": "flow",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `diffast plan`."""
    add = parser.add_argument
    add("--schedule", default="edm", help=f"one of {', '.join(SCHEDULES)} (%(default)s)")
    add("--calls", type=doors.whole(1, 10_000), default=10, help="network calls (%(default)s)")
    add("--guidance", type=doors.real, default=1.0, help="guidance scale; 1 is none (%(default)s)")
    add("--stochastic", action="store_true", help="a plan that draws fresh noise")
    add("--standard", action="store_true", help="a plan of a solver, without learned weights")
    add("--out", help="a file for it, .json or .npz")


def plan(arguments: argparse.Namespace) -> int:
    """Prints the plan that `df.plan` chooses, and writes it; returns 0.

    Raises:
        ValueError: bad input.
    """
    if arguments.schedule not in SCHEDULES:
        raise ValueError(
            f"--schedule {arguments.schedule!r} is not known, but these are: "
            f"{', '.join(SCHEDULES)}; use df.plan from Python for others"
        )
    endings, out = (".json", ".npz"), arguments.out
    path = None if out is None else doors.output_file("--out", out, endings, {})

    from diffast import Denoiser, schedules
    from diffast import plan as plan_for

    schedule = getattr(schedules, arguments.schedule)()
    denoiser = Denoiser(_no_network, schedule, SCHEDULES[arguments.schedule])
    made = plan_for(
        denoiser,
        arguments.calls,
        stochastic=arguments.stochastic,
        guidance=arguments.guidance,
        standard=arguments.standard,
    )
    print(made)
    if path is not None:
        made.save(path)
        print(f"wrote {path}")
    return 0


def _no_network(x, t):
    """Stands for a network, which the choice does not call."""
    return x
