"""The scalar arithmetic that all compiled kernels share (csrc/core), over numpy arrays.

shared_arithmetic.cpp is compiled when a function is first called, with the flags of setup.py.
"""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from places import HELPERS, ROOT


def host_flags() -> list[str]:
    """Returns the compiler's flags that setup.py builds the CPU kernels with."""
    lines = re.findall(r"^HOST_FLAGS \+?= \[(.*)\]$", (ROOT / "setup.py").read_text(), re.M)
    return [flag.strip().strip('"') for line in lines for flag in line.split(",")]


@functools.cache
def library() -> ctypes.CDLL:
    """Returns the compiled library."""
    if shutil.which("g++") is None:
        pytest.skip("the shared arithmetic is compiled with g++")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "shared_arithmetic.so"
        source = HELPERS / "shared_arithmetic.cpp"
        flags = [flag for flag in host_flags() if flag != "-fvisibility=hidden"]
        command = ["g++", "-shared", "-fPIC", *flags, str(source), "-o", str(built)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(built))


def call(name, *arguments):
    """Calls a function of the library; arrays become pointers, numbers are typed already."""
    pointers = [
        a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments
    ]
    getattr(library(), name)(*pointers)


def numbers(values, dtype):
    return np.ascontiguousarray(values, dtype=dtype)


def limits():
    """Returns how many inputs, rows, noises and columns a call has at most."""
    out = np.empty(4, dtype=np.int32)
    call("limits", out)
    return tuple(out.tolist())


def philox(counters, keys):
    """Returns the words [N, 4] for counters [N, 4] and keys [N]."""
    counters, keys = numbers(counters, np.uint32), numbers(keys, np.uint64)
    assert counters.shape == (len(keys), 4)
    out = np.empty((len(keys), 4), dtype=np.uint32)
    call("philox", counters, keys, ctypes.c_int64(len(keys)), out)
    return out


def normals(seed, id, word, count):
    """Returns the first `count` normals of one sample."""
    out = np.empty(count, dtype=np.float32)
    stream = (ctypes.c_uint64(seed), ctypes.c_int64(id), ctypes.c_uint32(word))
    call("normals", *stream, ctypes.c_int64(count), out)
    return out


def to_normals(radius, angle):
    """Returns the two normals [N, 2] of each pair of words [N], [N]."""
    radius, angle = numbers(radius, np.uint32), numbers(angle, np.uint32)
    assert radius.shape == angle.shape == (len(radius),)
    out = np.empty((len(radius), 2), dtype=np.float32)
    call("to_normals", radius, angle, ctypes.c_int64(len(radius)), out)
    return out


def _row(name, weights, x, dtype):
    weights, x = numbers(weights, np.float64), numbers(x, dtype)
    assert x.shape[:1] == weights.shape and len(weights) <= limits()[3]
    out = np.empty(x.shape[1], dtype=dtype)
    call(name, weights, x, ctypes.c_int(len(x)), ctypes.c_int64(x.shape[1]), out)
    return out


def row_float(weights, x):
    """Returns sum_k weights[k] x[k] in float32, for weights [K] and x [K, N]."""
    return _row("row_float", weights, x, np.float32)


def row_double(weights, x):
    """Returns sum_k weights[k] x[k] in float64, for weights [K] and x [K, N]."""
    return _row("row_double", weights, x, np.float64)


def _each(name, values, taken, made):
    values = numbers(values, taken)
    out = np.empty(values.shape, dtype=made)
    call(name, values, ctypes.c_int64(values.size), out)
    return out


def to_uniform(bits):
    return _each("to_uniform", bits, np.uint32, np.float32)


def log_uniform(u):
    return _each("log_uniform", u, np.float32, np.float32)


def half_bits(x):
    return _each("half_bits", x, np.float32, np.uint16)


def float_of_half(half):
    return _each("float_of_half", half, np.uint16, np.float32)


def bfloat_bits(x):
    return _each("bfloat_bits", x, np.float32, np.uint16)
