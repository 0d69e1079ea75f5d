"""Damage to plan files: to bytes, to JSON, to archives. `damaged` picks one by chance."""

from __future__ import annotations

import copy
import io
import json
import struct
import warnings
import zipfile
from contextlib import suppress

import numpy as np

# What a damage raises where there is nothing to damage.
NOT_MADE = (TypeError, KeyError, IndexError, ValueError, OverflowError, AttributeError)


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
    order = pick(rng, ["True", "False", "1", "x"])
    said = f"{{'descr': '{pick(rng, kinds)}', 'fortran_order': {order}, "
    said += f"'shape': {pick(rng, shapes)}, }}"
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
        with suppress(*NOT_MADE):  # nothing is left to damage
            body = second(rng, body)
    return way.__name__, json.dumps(body).encode()
