"""Guided steps against diffusers' own lines for the same: a guider and `DDIMScheduler.step`.

The network's outputs are given. What is timed is all that happens from there to the next state, in
turns, on the same tensors. "floor" is torch.copy_ of the bytes that our step reads and writes.
"MB a step" are those bytes, "diffusers MB a step" what the torch ops of diffusers read and write.
"passes" is how many tensors of the state's size a step moves more than an unguided one.
"""

import pytest
import torch

pytest.importorskip("diffusers")
from guided_steps import (  # noqa: E402
    RULES,
    STEPS,
    our_bytes,
    our_run,
    our_step,
    their_run,
    their_step,
    traffic_of,
)

SHAPES = {"8x4x128x128": (8, 4, 128, 128), "64x3x64x64": (64, 3, 64, 64)}
TARGETS = {"cfg": 0.5, "rescale": 0.25, "apg": 0.15, "dynamic_threshold": 0.2}
# diffusers takes a singular value decomposition in float32, which errs by so much in TCFG.
TOLERANCE = {"tcfg": 1e-2}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ops_of_a_guided_step(benchmark, measure, report, threads, shape, rule):
    """The ops of a step: linear rules are one pass, the others one more for their numbers."""
    # As in a process in which a network has run, see bench_dropin.py.
    del [torch.empty(7 << 20) for _ in range(2)][:]
    torch.manual_seed(0)
    x, cond, uncond, running = torch.randn(4, *SHAPES[shape])
    uncond = cond + 0.3 * uncond  # the two branches of a network are similar
    running = 0.3 * running
    ours = our_step(rule, x, cond, uncond, running)
    theirs = their_step(rule, x, cond, uncond, running)
    with torch.no_grad():
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=TOLERANCE.get(rule, 2e-5))
        source = torch.randn(our_bytes(rule, x) // 8)
        target = torch.empty_like(source)
        functions = {"ours": ours, "diffusers": theirs, "copy": lambda: target.copy_(source)}
        timings = measure(functions)
        moved = traffic_of(theirs)
        benchmark.pedantic(ours, rounds=3, iterations=1, warmup_rounds=1)
    took = {name: timing.median for name, timing in timings.items()}
    figures = {
        "threads": threads,
        "us": took["ours"] * 1e6,
        "diffusers us": took["diffusers"] * 1e6,
        "of diffusers": took["ours"] / took["diffusers"],
        "copy us": took["copy"] * 1e6,
        "of copy": took["copy"] / took["ours"],
        "MB a step": our_bytes(rule, x) * 1e-6,
        "diffusers MB a step": moved * 1e-6,
        "passes": (our_bytes(rule, x) - our_bytes("none", x)) / (x.numel() * x.element_size()),
    }
    benchmark.extra_info.update(figures)
    bound = TARGETS.get(rule)
    report(f"{rule}, {shape}", timings, [("of diffusers", "<=", bound)] if bound else [], **figures)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_guided_run(benchmark, measure, report, threads, shape, rule):
    """`df.sample` against a pipeline's loop, 20 DDIM steps of a network that costs nothing.

    Both make the network's input of 2B rows. All of `df.sample` counts, the lowering of the plan
    included.
    """
    del [torch.empty(7 << 20) for _ in range(2)][:]
    torch.manual_seed(0)
    x, cond, uncond = torch.randn(3, *SHAPES[shape])
    uncond = cond + 0.3 * uncond
    ours = our_run(rule, x, torch.cat([cond, uncond]))
    theirs = their_run(rule, x, torch.cat([uncond, cond]))
    with torch.no_grad():
        # After dynamic thresholding diffusers weighs the epsilon from before it, the plan the one
        # that fits the x0 estimate.
        if rule != "dynamic_threshold":
            made, wanted = ours(), theirs()
            scale = wanted.abs().max()
            close = TOLERANCE.get(rule, 1e-4)
            torch.testing.assert_close(made / scale, wanted / scale, rtol=0, atol=close)
        timings = measure({"ours": ours, "diffusers": theirs})
        benchmark.pedantic(ours, rounds=3, iterations=1, warmup_rounds=1)
    took = {name: timing.median for name, timing in timings.items()}
    figures = {
        "threads": threads,
        "us": took["ours"] / STEPS * 1e6,
        "diffusers us": took["diffusers"] / STEPS * 1e6,
        "of diffusers": took["ours"] / took["diffusers"],
    }
    benchmark.extra_info.update(figures)
    bound = TARGETS.get(rule)
    targets = [("of diffusers", "<=", bound)] if bound else []
    report(f"df.sample, {rule}, {shape}", timings, targets, **figures)
