"""Quotients and roots made from a GPU's approximations (csrc/core/rounded.h) are rounded as IEEE
asks, whatever the approximation's error: every input that the normals have, with every error."""

import ctypes
import subprocess
from pathlib import Path

import pytest
from once import made_once
from places import HELPERS


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The header compiled for the host, with units of a chosen error."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or " fma " not in cpu.read_text():
        pytest.skip("needs a CPU with fused multiply-add")

    def build(folder):
        command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O2", "-mfma", "-ffp-contract=off"]
        source, built = HELPERS / "rounded.cpp", folder / "rounded.so"
        subprocess.run([*command, str(source), "-o", str(built)], check=True)

    built = ctypes.CDLL(str(made_once(tmp_path_factory, "rounded", build) / "rounded.so"))
    for function in (built.wrong_quotients, built.wrong_roots):
        function.restype = ctypes.c_int64
    return built


def wrong(function, ulp, step):
    """Returns how many results are wrong, how many were tried, and the last wrong input."""
    tried, bad = ctypes.c_uint32(), ctypes.c_float()
    count = function(
        ctypes.c_int(ulp), ctypes.c_uint32(step), ctypes.byref(tried), ctypes.byref(bad)
    )
    return count, tried.value, bad.value


@pytest.mark.parametrize("ulp", range(-3, 4))
@pytest.mark.parametrize("name", ("quotients", "roots"))
def test_some_inputs(library, name, ulp):
    count, tried, bad = wrong(getattr(library, f"wrong_{name}"), ulp, 127)
    assert tried > 60_000
    assert count == 0, bad


@pytest.mark.parametrize("ulp", range(-3, 4))
@pytest.mark.parametrize(("name", "inputs"), (("quotients", 1 << 23), ("roots", 79_691_777)))
def test_every_input(library, name, inputs, ulp):
    count, tried, bad = wrong(getattr(library, f"wrong_{name}"), ulp, 1)
    assert tried >= inputs
    assert count == 0, bad


def test_a_unit_that_errs_too_much_is_noticed(library):
    """So the test can fail: an error of 2^14 ulp is not corrected."""
    assert wrong(library.wrong_quotients, 1 << 14, 127)[0] > 0
    assert wrong(library.wrong_roots, 1 << 14, 127)[0] > 0
