"""Crafted plan files: is each refused in one sentence, or read as what it says?

    python bench/attack/files.py [--count 6000] [--seed 0] [--out FILE] [--keep FOLDER]

Files of plans of every kind and version are damaged: bytes, text, types, numbers, names, headers of
arrays, archives. Each is given to `Plan.load`. Wrong are: any exception but a ValueError that
begins with the file's name and has one line; a warning; more than 200 MB or 20 s; and a plan that
says something else than the file, read again by json and numpy alone. The report is JSON.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

import diffast as df
from diffast.plans.file import to_record
from diffast.plans.gaussian import Gaussian

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "attack_files.json"
MOST_MEMORY, MOST_SECONDS = 200 << 20, 20.0
VP = df.schedules.vp_linear()


# The files that are damaged.


def plans():
    """Returns {name: plan} of every kind that a file can hold."""
    edm, solvers, grids = df.schedules.edm(), df.solvers, df.grids
    rng = np.random.default_rng(0)
    betas = df.schedules.from_betas(np.linspace(1e-3, 0.05, 20))
    table = df.schedules.from_functions(lambda t: 1.0 - t, lambda t: t)
    whole = Gaussian.of(rng.standard_normal((9, 2, 3)), rank=3)
    classes = [Gaussian(np.full(4, k), np.eye(4)[:2], [0.3, 0.2], 0.1) for k in range(3)]
    long = solvers.dpmpp_3m(VP, grids.uniform_logsnr(VP, 8))
    late = df.thermo.StartLaw(tuple(classes), "label", np.array([3.0, 1.0]), np.array([0.1, 0.5]))
    base = solvers.heun(edm, grids.karras(edm, 3))
    made_for = {"predicts": "v", "network": "0" * 16, "measured": [["heun", 8, 0.1]]}
    return {
        "two_m": solvers.dpmpp_2m(VP, grids.uniform_time(VP, 3)),
        "heun": base,
        "churn": solvers.churn(edm, grids.karras(edm, 3), s_churn=2.0),
        "sde": solvers.seeds_3(VP, grids.uniform_time(VP, 3, start=0.9)),
        "betas": solvers.deis(betas, grids.trailing(betas, 4)),
        "table": solvers.euler(table, grids.uniform_time(table, 3)),
        "flow": solvers.unipc(df.schedules.flow(), grids.uniform_time(df.schedules.flow(), 4)),
        "piadm": solvers.piadm_sde(VP, grids.ou_early(VP, 6), block=2.0),
        "guided": base.with_weights({}, guidance=np.where(np.isnan(base.times), np.nan, 2.0)),
        "made_for": base.with_weights({}, made_for=made_for),
        "late": long.late_start(df.thermo.StartLaw((whole,)), calls=4),
        "classes": long.late_start(late, calls=5),
    }


def seeds():
    """Returns [(name, ending, bytes)] of good files, of all versions."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in plans().items():
            for ending in (".json", ".npz"):
                path = Path(folder) / f"{name}{ending}"
                plan.save(path)
                found.append((name, ending, path.read_bytes()))
    for path in sorted((ROOT / "tests" / "plans" / "older").iterdir()):
        if path.suffix in (".json", ".npz"):
            found.append((f"older_{path.stem}", path.suffix, path.read_bytes()))
    return found


# Damage to bytes.


def flipped(rng, data):
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def cut(rng, data):
    return data[: rng.integers(len(data))]


def spliced(rng, data):
    a, b = sorted(rng.integers(len(data), size=2).tolist())
    ways = (data[:a] + data[b:], data[:b] + data[a:], data[a:], data + data, data[b:] + data[:b])
    return ways[rng.integers(len(ways))]


def written_over(rng, data):
    data, at = bytearray(data), int(rng.integers(len(data)))
    junk = rng.integers(256, size=int(rng.integers(1, 64)), dtype=np.uint8).tobytes()
    data[at : at + len(junk)] = junk
    return bytes(data)


def inserted(rng, data):
    at = int(rng.integers(len(data)))
    return data[:at] + rng.bytes(int(rng.integers(1, 64))) + data[at:]


BYTES = (flipped, cut, spliced, written_over, inserted)


# Damage to JSON.

ODD = [
    *(None, True, False, "", "x", "nan", "h0", [], {}, [[]], [None], ["x"], [True], {"a": 1}),
    *(-1, 0, 1, 3, 1.5, -0.0, 1e308, -1e308, 5e-324, 1e-320, 10**18, 10**400, [10**400]),
    *(
        2**53 + 1,
        [[1.0], [1.0, 2.0]],
        {"0": [1.0]},
        [1, 2.0, None, True],
        "\x00",
        "\ud800",
        "é" * 9,
    ),
]
NUMBERS = [b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity", b"1" * 5000, b"1e-999", b"0x10"]
NUMBERS += [b"01", b"1.", b".5", b"+1", b"1_000", b"true", b"null", b'"1"', b"[[[[1]]]]", b"{}"]


def places(value, path=()):
    """Yields the path of every value in nested lists and dicts."""
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*path, key))
    elif isinstance(value, list):
        for k, part in enumerate(value[:4]):
            yield from places(part, (*path, k))
        if len(value) > 4:
            yield from places(value[-1], (*path, len(value) - 1))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def replaced(rng, body):
    """One value is another one."""
    path = pick(rng, [*places(body)][1:])
    at(body, path[:-1])[path[-1]] = copy.deepcopy(pick(rng, ODD))
    return body


def numbered(rng, body):
    """One number is a little or a lot larger."""
    found = [p for p in places(body) if type(at(body, p)) in (int, float)]
    path = pick(rng, found)
    value = at(body, path)
    ways = (value * 1.001, value + 1, -value, value * 1e9, value * 1e300, value / 3.0, int(value))
    at(body, path[:-1])[path[-1]] = pick(rng, ways)
    return body


def removed(rng, body):
    path = pick(rng, [*places(body)][1:])
    del at(body, path[:-1])[path[-1]]
    return body


def added(rng, body):
    holders = [p for p in places(body) if isinstance(at(body, p), dict)]
    at(body, pick(rng, holders))[pick(rng, ["more", "initial", "levels", "é", "h"])] = pick(
        rng, ODD
    )
    return body


def swapped(rng, body):
    found = [*places(body)][1:]
    a, b = pick(rng, found), pick(rng, found)
    if a[: len(b)] != b and b[: len(a)] != a:
        one, other = copy.deepcopy(at(body, a)), copy.deepcopy(at(body, b))
        at(body, a[:-1])[a[-1]], at(body, b[:-1])[b[-1]] = other, one
    return body


def repeated(rng, body):
    """A list is longer, or much longer."""
    found = [p for p in places(body) if isinstance(at(body, p), list) and at(body, p)]
    path = pick(rng, found)
    parts = at(body, path)
    count = int(pick(rng, [2, 3, 100, 20_000]))
    at(body, path[:-1])[path[-1]] = parts * max(2, min(count, 60_000 // len(str(parts))))
    return body


def nested(rng, body):
    path = pick(rng, [*places(body)][1:])
    value = at(body, path)
    for _ in range(int(pick(rng, [1, 2, 31, 33, 60, 100]))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    at(body, path[:-1])[path[-1]] = value
    return body


def versioned(rng, body):
    body["version"] = pick(rng, [0, 1, 2, 3, 4, 5, 6, 7, -1, 6.0, "6", True, 10**30, None])
    return body


def renamed(rng, body):
    """A row or a column has another name."""
    field = pick(rng, [f for f in ("rows", "columns") if f in body] or ["name"])
    odd = [*("h1", "h2", "h9", "h64", "h65", "h1000000", "h999999999999", "h\u0661", "h01", "x9")]
    odd += ["g1", "z2", "d_raw", "d2", "v", "y", "error", "", "h" + "1" * 5000, 3]
    if isinstance(body[field], list) and body[field]:
        k = int(rng.integers(len(body[field]) + 1))
        body[field][k : k + int(rng.integers(2))] = [pick(rng, odd)]
    return body


def grown(rng, body):
    """More stages than anybody runs, with arrays that fit."""
    stages = int(pick(rng, [200, 2000, 9_000, 20_000]))
    for field in ("times", "matrix", "levels", "spans", "guidance", "gradients", "read", "point"):
        if isinstance(body.get(field), list) and body[field]:
            size = max(1, 1_500_000 // max(len(str(body[field][0])), 1))
            body[field] = (body[field] * stages)[: min(stages, size)]
    body["check"] = pick(rng, ["full", "x0", "finite"])
    return body


BODIES = (replaced, replaced, numbered, numbered, removed, added, swapped, repeated, nested)
BODIES += (versioned, renamed, renamed, grown)


def number_text(rng, data):
    """A number is written in another way."""
    digits = [
        k for k in range(1, len(data)) if data[k : k + 1].isdigit() and data[k - 1] in b" [,:"
    ]
    if not digits:
        return data
    start = int(pick(rng, digits))
    end = start
    while end < len(data) and data[end : end + 1] in b"0123456789.eE+-":
        end += 1
    return data[:start] + pick(rng, NUMBERS) + data[end:]


def encoded(rng, data):
    text = data.decode("utf-8", "replace")
    kind = pick(rng, ["utf-16", "utf-32", "utf-8-sig", "latin1", "utf-16-le"])
    return text.encode(kind, "replace")


def doubled(rng, data):
    """A name stands twice."""
    body = json.loads(data)
    name = pick(rng, [*body])
    more = json.dumps({name: pick(rng, [*ODD, body[name]])})[1:-1]
    text = data.rstrip()
    return text[:-1] + b", " + more.encode() + b"}"


def deep(rng, data):
    many = int(pick(rng, [40, 900, 5_000, 100_000, 2_000_000]))
    opener, closer = pick(rng, [(b"[", b"]"), (b'{"a":', b"}")])
    middle = opener * many + (b"1" + closer * many if rng.random() < 0.5 else b"")
    return middle if rng.random() < 0.3 else data.rstrip()[:-1] + b', "made_for": ' + middle + b"}"


def bulky(rng, data):
    """Megabytes of one thing."""
    part = pick(rng, [b"0,", b"[],", b"{},", b'{"a":1},', b'"aaaaaaaa",', b"1e5,", b" ", b"99999,"])
    many = int(pick(rng, [100_000, 1_000_000, 4_000_000, 20_000_000 // len(part)]))
    if rng.random() < 0.15:  # one dict of many names
        names = b",".join(b'"k%d":0' % k for k in range(min(many, 400_000)))
        return b'{"format": "diffast plan", "version": 6, "made_for": {' + names + b"}}"
    body = part * many + b"0"
    head = pick(rng, [b"[", b'{"format": "diffast plan", "version": 6, "times": ['])
    return head + body + (b"]" if head == b"[" else b"]}")


def wide(rng, data):
    """Text of other alphabets, which takes more memory."""
    letters = pick(rng, ["é", "\u4e00", "\U0001f600"]) * int(pick(rng, [10, 100_000, 5_000_000]))
    return json.dumps({"format": "diffast plan", "name": letters}, ensure_ascii=False).encode()


TEXTS = (number_text, number_text, encoded, doubled, deep, bulky, wide)


# Damage to archives.


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts, compression=zipfile.ZIP_STORED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that stand in it twice
        for name, data in parts:
            archive.writestr(name, data)
    return made.getvalue()


def npy(array):
    made = io.BytesIO()
    np.lib.format.write_array(made, np.asanyarray(array), allow_pickle=True)
    return made.getvalue()


def retyped(rng, data):
    """An array is of another type, order or shape."""
    parts = members(data)
    name = pick(rng, [n for n in parts if n != "head.npy"])
    array = np.load(io.BytesIO(parts[name]))
    kinds = [
        "<f2",
        "<f4",
        ">f8",
        "<f16",
        "<c16",
        "?",
        "<i8",
        "<u8",
        "<U8",
        "S8",
        "M8[s]",
        "O",
        ">i4",
    ]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        ways = [
            lambda: array.astype(pick(rng, kinds)),
            lambda: np.asfortranarray(array),
            lambda: array.ravel(),
            lambda: array[None],
            lambda: array[:-1],
            lambda: np.concatenate([array, array]),
            lambda: np.zeros((0, *array.shape[1:])),
            lambda: np.zeros(array.shape, [("a", "<f8"), ("b", "<i4")]),
            lambda: np.where(
                rng.random(array.shape) < 0.3, pick(rng, [np.inf, np.nan, 1e300]), array
            ),
            lambda: np.array(pick(rng, ["text", 3.0, None, True]), dtype=None),
        ]
        parts[name] = npy(pick(rng, ways)())
    return zipped(parts.items())


def reheaded(rng, data):
    """The header of an array lies, or is no header."""
    parts = members(data)
    name = pick(rng, [*parts])
    whole = parts[name]
    shapes = ["(1000000000000,)", "(99999999999999999999,)", "(0, 1000000000000000000)", "(-1,)"]
    shapes += ["()", "(3)", "(3, 3, 3, 3, 3)", "(" + "1, " * 70 + ")", "(1,) * 9", "[3]"]
    kinds = ["<f8", "|O", "<U1000000000", "<U0", "<f3", "|V8", "<c16", "<M8", "[('a', '<f8')]", ""]
    said = (
        f"{{'descr': '{pick(rng, kinds)}', 'fortran_order': {pick(rng, ['True', 'False', '1', 'x'])}"
        f", 'shape': {pick(rng, shapes)}, }}"
    )
    odd = ["(" * 5000, "{" * 300, "[" * 90_000, "", "\x00" * 64, "9" * 6000, "-" * 9999, said]
    header = pick(rng, [*odd, *[said] * 8]).encode("latin1")
    length = pick(rng, [len(header)] * 6 + [0, 1, 65535])
    version = pick(rng, [b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x04\x00", b"\x00\x00"])
    size = struct.pack("<H", length % 65536) if version[0] == 1 else struct.pack("<I", length)
    parts[name] = b"\x93NUMPY" + version + size + header + whole[80:]
    return zipped(parts.items())


def bombed(rng, data):
    """A small archive of large arrays."""
    parts = members(data)
    size = int(pick(rng, [1 << 20, 12 << 20, 64 << 20, 200 << 20]))
    count = size // 8
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({count},), }}".ljust(117) + "\n"
    bomb = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(size)
    parts[pick(rng, ["times.npy", "matrix.npy", "more.npy", "head.npy"])] = bomb
    made = bytearray(zipped(parts.items(), zipfile.ZIP_DEFLATED))
    if rng.random() < 0.3:  # it says that it is small
        for place in (made.find(b"PK\x01\x02"), made.find(b"PK\x03\x04")):
            shift = 24 if made[place : place + 4] == b"PK\x01\x02" else 22
            made[place + shift : place + shift + 4] = struct.pack("<I", 100)
    return bytes(made)


def archived(rng, data):
    """Members that are doubled, missing, foreign, encrypted, too many, or packed in another way."""
    parts = [*members(data).items()]
    k = int(rng.integers(len(parts)))
    way = int(rng.integers(9))
    if way == 0:
        return zipped([*parts, parts[k]])
    if way == 1:
        return zipped(parts[:k] + parts[k + 1 :])
    if way == 2:
        name = pick(rng, ["more.npy", "../up.npy", "a.txt", "initial/x.npy", "", "head", "é.npy"])
        return zipped([*parts, (name, parts[k][1])])
    if way == 3:
        return zipped(parts, pick(rng, [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED]))
    if way == 4:
        return zipped(
            [*parts, *((f"m{n}.npy", b"") for n in range(int(pick(rng, [5, 300, 9000]))))]
        )
    if way == 5:
        made = bytearray(zipped(parts))
        for mark, shift in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            made[made.find(mark) + shift] |= 1  # encrypted
        return bytes(made)
    if way == 6:
        made = bytearray(zipped(parts))
        place = made.rfind(b"PK\x05\x06")
        spot = int(pick(rng, [8, 10, 12, 16, 20]))
        made[place + spot : place + spot + 2] = rng.bytes(2)
        return bytes(made)
    if way == 7:
        made = bytearray(zipped(parts))
        place = made.find(b"PK\x01\x02")
        spot = int(pick(rng, [4, 6, 8, 10, 16, 20, 24, 28, 30, 32, 34, 42]))
        made[place + spot : place + spot + 4] = rng.bytes(4)
        return bytes(made)
    return zipped([(name, parts[(k + n) % len(parts)][1]) for n, (name, _) in enumerate(parts)])


def bodied(rng, data):
    """The head of an archive, or one of its arrays as a list, is damaged as JSON is."""
    parts = members(data)
    text = str(np.load(io.BytesIO(parts["head.npy"])))
    if rng.random() < 0.6:
        made = json.dumps(pick(rng, BODIES[:-1])(rng, json.loads(text)))
    else:
        made = pick(rng, [t for t in TEXTS if t not in (bulky, wide, encoded)])(rng, text.encode())
        made = made.decode("utf-8", "replace")[:3_000_000]
    parts["head.npy"] = npy(np.array(made.rstrip("\x00") or " "))
    return zipped(parts.items())


ARCHIVES = (retyped, retyped, reheaded, bombed, archived, archived, bodied, bodied)


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def damaged(rng, ending, data):
    """Returns (name of the damage, damaged bytes)."""
    if rng.random() < 0.25:
        way = pick(rng, BYTES)
        return way.__name__, way(rng, data)
    if ending == ".npz":
        way = pick(rng, ARCHIVES)
        return way.__name__, way(rng, data)
    if rng.random() < 0.35:
        way = pick(rng, TEXTS)
        return way.__name__, way(rng, data)
    way = pick(rng, BODIES)
    body = way(rng, json.loads(data))
    if rng.random() < 0.2:
        second = pick(rng, BODIES[:-1])
        try:
            body = second(rng, body)
        except (TypeError, KeyError, IndexError, ValueError, OverflowError):
            pass  # nothing is left to damage
    return way.__name__, json.dumps(body).encode()


# What becomes of a file.


def peak():
    """Returns (resident bytes, highest since `forget_peak`)."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(("VmRSS", "VmHWM")):
            found[line[:5]] = int(line.split()[1]) << 10
    return found["VmRSS"], found["VmHWM"]


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def judged(path):
    """Returns (verdict, words, seconds, bytes) of one file."""
    forget_peak()
    before, begun, plan = peak()[0], time.monotonic(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan = df.Plan.load(path)
        verdict, words = "loaded", ""
    except ValueError as error:
        words = str(error)
        named = words.startswith((str(path), f"plan file {path}"))
        verdict = "refused" if named and "\n" not in words and len(words) < 1500 else "unnamed"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        verdict, words = "foreign", "".join(traceback.format_exception(error))[-1500:]
    seconds, memory = time.monotonic() - begun, peak()[1] - before
    if verdict == "loaded":
        try:
            other = differs(plan, path)
        except Exception as error:
            other = f"the file cannot be read again: {error!r}"
        if other:
            verdict, words = "another meaning", other
    return verdict, words, seconds, memory


def plain(value):
    """Returns numbers as floats and NaN as None, through lists, dicts and arrays."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (int, float)):
        return None if math.isnan(value) else float(value)
    return value


def agrees(said, held):
    """Returns whether what a file says is what the plan holds; None may have been filled in."""
    if said is None:
        return True
    if isinstance(said, list) and isinstance(held, list):
        return len(said) == len(held) and all(map(agrees, said, held))
    return said == held


def read_again(path):
    """Returns a file's fields by json and numpy alone."""
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    with np.load(path) as archive:
        body = {name: archive[name] for name in archive.files}
    return json.loads(str(body.pop("head"))) | body


def differs(plan, path):
    """Returns the field in which the plan is not what the file says, or nothing."""
    body, held = read_again(path), plain(to_record(plan))
    if body["version"] < 3:  # the arrays have other names there: those that have not
        names = ("times", "end", "start", "steps", "name", "check")
        stages = len(plan.times) - len(body["times"])
        if stages:  # an opening is a stage of its own
            held["times"] = held["times"][stages:]
        body = {name: body[name] for name in names if name in body}
    initial = {k: v for k, v in body.items() if k.startswith("initial/")}
    for name, array in initial.items():
        inner = held
        for key in name.split("/"):
            inner = inner[key]
        if not agrees(plain(array), inner):
            return name
    for name, value in body.items():
        if name in ("format", "version") or name in initial:
            continue
        said, own = plain(value), held.get(name)
        if name == "made_for" and said is not None:
            own = plain(dict(plan.made_for))
        if name == "schedule":  # a table is saved anew, at other times
            own = plain(plan.schedule.to_dict())
            if said.get("name") == "from_table":
                continue
        if name == "initial" and path.suffix == ".npz":
            continue
        if not agrees(said, own):
            return f"{name}: {said!r:.200} but {own!r:.200}"
    return ""


def attack(count, seed=0, keep=None):
    """Returns the report of so many files."""
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    rng, good = np.random.default_rng(seed), seeds()
    counts, ways, wrong = Counter(), Counter(), []
    worst = {"bytes": [0, ""], "seconds": [0.0, ""]}
    with tempfile.TemporaryDirectory() as folder:
        for name, ending, data in good:
            path = Path(folder) / f"good{ending}"
            path.write_bytes(data)
            verdict, words, *_ = judged(path)
            if verdict != "loaded":
                wrong.append(
                    {
                        "file": f"{name}{ending}",
                        "damage": "none",
                        "verdict": verdict,
                        "words": words,
                    }
                )
        for number in range(count):
            name, ending, data = good[number % len(good)]
            try:
                way, made = damaged(rng, ending, data)
            except (
                TypeError,
                KeyError,
                IndexError,
                ValueError,
                OverflowError,
                AttributeError,
            ) as error:
                counts["not made"] += 1
                ways[f"not made: {type(error).__name__}"] += 1
                continue
            path = Path(folder) / f"plan{ending}"
            path.write_bytes(made)
            verdict, words, seconds, memory = judged(path)
            if verdict in ("loaded", "refused") and memory > MOST_MEMORY:
                verdict, words = "memory", f"{memory >> 20} MB"
            elif verdict in ("loaded", "refused") and seconds > MOST_SECONDS:
                verdict, words = "time", f"{seconds:.1f} s"
            counts["files"] += 1
            counts[verdict] += 1
            ways[f"{way}: {verdict}"] += 1
            for key, value in (("bytes", memory), ("seconds", round(seconds, 3))):
                if value > worst[key][0]:
                    worst[key] = [value, f"{number}: {way} of {name}{ending}"]
            if verdict not in ("loaded", "refused"):
                case = {"number": number, "file": f"{name}{ending}", "damage": way}
                wrong.append(case | {"verdict": verdict, "words": words})
                if keep:
                    (Path(keep) / f"{number}{ending}").write_bytes(made)
    return {
        "seed": seed,
        "counts": dict(counts),
        "worst": worst,
        "damages": dict(sorted(ways.items())),
        "wrong": wrong,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--keep", help="folder for the files that were not treated as they should be"
    )
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    report = attack(options.count, options.seed, options.keep)
    report["seconds"] = round(time.monotonic() - begun, 1)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["counts"]), json.dumps(report["worst"]), f"-> {options.out}")
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
