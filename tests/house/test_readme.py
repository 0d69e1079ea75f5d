"""The examples of the README and of docs/integrations.md run as they stand."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from places import ROOT

README = (ROOT / "README.md").read_text()


INTEGRATIONS = (ROOT / "docs" / "integrations.md").read_text()
EXAMPLES = {
    (name, n): code
    for name, text in (("README", README), ("integrations", INTEGRATIONS))
    for n, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
}


class Network(torch.nn.Module):
    def forward(self, x, t, labels):
        return 0.1 * x


class Velocity(torch.nn.Module):
    def forward(self, x, t, label=None):
        return -x


class Net:
    """One of EDM's."""

    sigma_min, sigma_max, img_channels, img_resolution = 0.002, 80.0, 3, 8
    round_sigma = staticmethod(torch.as_tensor)

    def __call__(self, x, sigma, class_labels=None):
        return x / (1 + sigma**2)


class StackedRandomGenerator:
    """EDM's: a generator a sample."""

    def __init__(self, device, seeds):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def randn(self, size, device):
        return torch.stack([torch.randn(size[1:], generator=g) for g in self.generators])

    def randn_like(self, like):
        return torch.stack(
            [torch.randn(like.shape[1:], dtype=like.dtype, generator=g) for g in self.generators]
        )


def model(x, sigma, cond):
    """As k_diffusion.external wraps one."""
    return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


@pytest.fixture
def pipe():
    """A StableDiffusionPipeline of diffusers with tiny networks; prompts are not read."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import diffusers_pipelines as tiny

    pipe = tiny.stable_diffusion.__wrapped__()
    prompts = tuple(tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=seed) for seed in (1, 2))
    pipe.encode_prompt = lambda *args, **kwargs: prompts
    return pipe


def names():
    torch.manual_seed(0)
    return {
        "my_trained_network": Network(),
        "betas": np.linspace(1e-4, 0.02, 1000),
        "labels": torch.zeros(16, dtype=torch.int64),
        "null": torch.zeros(1, dtype=torch.int64),
        "model": model,
        "x": torch.randn(2, 3, 8, 8),
        "cond": None,
        "preview": lambda info: None,
        "net": Net(),
        "latents": torch.randn(2, 3, 8, 8),
        "seeds": [3, 4],
        "device": torch.device("cpu"),
        "StackedRandomGenerator": StackedRandomGenerator,
        "velocity": Velocity(),
        "velocity_model": Velocity(),
        "x_init": torch.randn(2, 3, 8, 8),
    }


def run(example, request):
    code, found = EXAMPLES[example], names()
    if example == ("README", 1):  # goes on from the one before
        code = EXAMPLES["README", 0] + code
    if "pipe" in code:
        found["pipe"] = request.getfixturevalue("pipe")
        found["embeddings"] = found["pipe"].encode_prompt()[0]
    if "velocity_model" in code:
        found["labels"] = None
    exec(compile(code, example[0], "exec"), found)
    return found


# What each example has to have made. ComfyUI's is a line for another program.
RESULTS = {
    ("README", 0): lambda f: (
        f["out"].x.shape == (16, 3, 64, 64) and f["out"].nfe.tolist() == [10] * 16
    ),
    ("README", 1): lambda f: f["out"].nfe.tolist() == [20] * 16,
    ("README", 2): lambda f: f["image"].size == (32, 32),
    ("README", 3): lambda f: f["x"].shape == (2, 3, 8, 8) and f["x"].isfinite().all(),
    ("README", 4): lambda f: f["images"].shape == (2, 3, 8, 8),
    ("README", 5): lambda f: f["x1"].shape == (2, 3, 8, 8),
    ("README", 6): lambda f: np.array_equal(f["same"].matrix, f["plan"].matrix),
    ("README", 7): lambda f: all(same_as_alone(f, b) for b in range(3)),
    ("README", 8): lambda f: f["out"].fine.all() and f["digits"].abs().max() < 1.5,
    ("README", 9): lambda f: same_as_sequential(f),
    # for a GPU: without one the example makes nothing, and tests/executors/test_graph.py has to do
    ("README", 10): lambda f: ("digits" in f) == torch.cuda.is_available(),
    ("README", 11): lambda f: f["digits"].shape == (4, 1, 28, 28) and f["digits"].isfinite().all(),
    ("README", 12): lambda f: f["late"].nfe < 10 and f["out"].x.isfinite().all(),
    ("integrations", 1): lambda f: same_compiled(f),
}


def same_compiled(found):
    import diffusers

    from diffast.integrations.diffusers import DiffastScheduler

    scheduler = found["pipe"].scheduler = DiffastScheduler.from_scheduler(
        diffusers.EulerDiscreteScheduler()
    )
    ends, start = [], torch.randn(1, 4, 16, 16)
    for stance in ("force_eager", "default"):
        scheduler.set_timesteps(4)
        x = start * scheduler.init_noise_sigma
        with torch.no_grad(), torch.compiler.set_stance(stance):
            for t in scheduler.timesteps:
                x = found["denoise"](x, t)
        ends.append(x)
    return torch.allclose(*ends, rtol=1e-4, atol=1e-4)


def same_as_sequential(found):
    import diffast as df

    want = df.sample(found["denoiser"], found["plan"], found["digits"].shape, seed=0).x
    return (found["digits"] - want).norm() < 0.01 * want.norm() and found["out"].rounds < 18


def same_as_alone(found, b):
    import diffast as df

    conditions = {"labels": found["labels"][b : b + 1]}
    denoiser = df.Denoiser(
        found["network"], found["schedule"], predicts="x0", conditions=conditions
    )
    plan = found["two"] if b else found["one"]
    want = df.sample(denoiser, plan, x=found["noise"][b : b + 1]).x[0]
    return torch.allclose(found["digits"][b], want, atol=1e-4)


def test_every_example_of_the_readme_is_here():
    assert {e for e in EXAMPLES if e[0] == "README"} == {e for e in RESULTS if e[0] == "README"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e[0]}-{e[1]}")
def test_example_runs(example, request, capsys, tmp_path, monkeypatch):
    if "comfyui" in EXAMPLES[example]:
        pytest.skip("runs inside ComfyUI: tests/test_comfyui.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = run(example, request)
    assert RESULTS.get(example, lambda f: True)(found)
    said = capsys.readouterr().out
    if example == ("README", 2):
        assert said.strip() in README
        assert type(found["pipe"].scheduler).__name__ in README
    if example == ("README", 6):  # but for the schedule, cut short there
        head, *table = said.rstrip().splitlines()
        shown = README[README.index("    Plan(") :].splitlines()
        assert shown[0].strip() == re.sub(r"SigmaSpace\(.*?\)", "SigmaSpace(...)", head)
        assert [line[4:] for line in shown[1 : 1 + len(table)]] == table


def test_solvers_are_all_there():
    import diffast as df

    table = README[README.index("| family |") : README.index("Order, calls and source")]
    assert set(re.findall(r"`(\w+)`", table)) == set(df.solvers.SOLVERS)
