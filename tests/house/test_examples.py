"""The examples that introduce an interface run offline, as they stand, and say what they should."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from places import ROOT

EXAMPLES = ROOT / "examples"

# Name -> what it has to say. A number in parentheses is checked against the limit below.
SAYS = {
    "comfyui_nodes": r"\d\d samplers: diffast_.*mean 0\.5\d\d, deviation 0\.(09|10|11)\d",
    "diffusers_pipeline": r"DDPMScheduler -> DiffastDDPMScheduler.*largest difference.*: (\S+)$",
    "edm_sampler": r"EDM's loop: 35 network calls.*diffast: 35.*largest difference.*: (\S+)$",
    "k_diffusion_sampler": r"20 with k-diffusion's loop, 20 with.*largest difference.*: (\S+)$",
    "own_network": r"guidance 1, 10 calls: 10 network calls.* 0\.\d+\n.*guidance 2, own plan: 20",
    "server_loop": r"5 requests: \d+ network calls in the batch, \d+ one.*largest.*: (\S+)$",
    "tune_pipeline": r"tuned\(5 calls\).*best standard: .*-> plan tuned.*finite: True$",
}
LARGEST_DIFFERENCE = 1e-3
NEEDS = {"diffusers_pipeline": "diffusers", "tune_pipeline": "diffusers"}
# Programs with options of their own: they draw, take hours or train networks.
OTHERS = {"digit_tasks", "draw_gains", "measure_adaptive", "measure_parallel", "measure_quality"}
OTHERS |= {"train_guides", "train_mnist", "fluctuation"}
OTHERS |= {"jko_audit"}
OTHERS |= {"guidance_rules", "measure_correctors", "measure_digit_correctors"}
OTHERS |= {"speed_accuracy"}
OTHERS |= {"critical_digits"}


def test_every_example_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, *OTHERS}


@pytest.mark.parametrize("name", SAYS)
def test_example_runs(name, tmp_path):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    # One thread: the tests share the processors.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    said = re.search(SAYS[name], run.stdout.strip(), re.DOTALL)
    assert said, run.stdout
    for number in said.groups():
        if re.fullmatch(r"\d\.\de-?\+?\d+", number):
            assert float(number) < LARGEST_DIFFERENCE, run.stdout
    assert not list(tmp_path.iterdir())
