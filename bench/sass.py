"""Counts what nvcc makes of the CUDA kernels; needs nvcc and triton's cuobjdump, but no GPU.

    python bench/sass.py [--arch 9.0] [--tree PATH] [--op NAME ...] [--cubins FOLDER] [--name NAME]

Compiles csrc/ops/<op>/*.cu, one file at a time, and reads the SASS. For each kernel instance it
counts registers, bytes of stack and shared memory, instructions, loads and stores by width. For the
cases below it also counts the instructions of the main path: the shortest way through the control
flow from a wide load of one group back to the same load of the next group, with as many wide
accesses, roots and divisions as the case has. A branch that depends on data is therefore taken as
it suits the count, so this is a lower bound.

From the counts it predicts, in picoseconds an element, what memory and arithmetic take at least:
bytes over the bandwidth that a copy was measured to have, instructions over the issue rate. No
prediction is a measurement. The results are written to bench/results/sass.json under `--name`.
"""

import argparse
import heapq
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "sass.json"
NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
FLAGS = ["-O3", "-std=c++20", "-fmad=false", "-lineinfo", "--expt-relaxed-constexpr"]
OPS = ("accept", "brownian", "combine", "combine_error", "gram", "normal", "quantile", "sweep")

# Copies were measured at these bytes a second. One H100 issues 4 warps x 32 lanes a cycle on 132
# multiprocessors at 1.755 GHz.
BANDWIDTH = {"H100": 3.0e12, "H200": 4.3e12}
LANES = 2.97e13

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]+)\s*([^;]*);")
_WIDTHS = ("LDG", "STG", "LDS", "STS", "LDC", "ULDC")

# name: op, regular expressions for the instance's name (the first that fits counts; the last one
# is for older sources), wide accesses of one group, MUFU instructions, elements, bytes an element.
CASES = {
    "combine fp32 3 -> 1": (
        "combine",
        [r"host_kernel<AnyTypes<float, true>, 3, false>", r"<float, 3, true, false>"],
        {"LDG.E.128": 3, "STG.E.128": 1}, 4, 16,
    ),
    "combine bf16 3 -> 1": (
        "combine",
        [r"host_kernel<OneType<\(diffast::DType\)2>, 3, false>", r"<float, 3, true, false>"],
        {"LDG": 3, "STG": 1}, 8, 8,
    ),
    "combine fp32 2 -> 1, noise": (
        "combine",
        [r"host_kernel<AnyTypes<float, true>, 2, true>", r"<float, 2, true, true>"],
        {"LDG.E.128": 2, "STG.E.128": 1, "MUFU": 4}, 4, 12,
    ),
    "combine bf16 2 -> 1, noise": (
        "combine",
        [r"host_kernel<OneType<\(diffast::DType\)2>, 2, true>", r"<float, 2, true, true>"],
        {"LDG": 2, "STG": 1, "MUFU": 8}, 8, 6,
    ),
    "combine.table fp32 3 -> 1": (
        "combine",
        [r"combine_kernel<AnyTypes<float, true>, 3, false>", r"<float, 3, true, false>"],
        {"LDG.E.128": 3, "STG.E.128": 1}, 4, 16,
    ),
    "normal fp32": (
        "normal",
        [r"normal_kernel<float, true>"],
        {"STG.E.128": 1, "MUFU": 4}, 4, 4,
    ),
    "normal bf16": (
        "normal",
        [r"normal_kernel<\(diffast::DType\)2>", r"normal_kernel<float, true>"],
        {"STG": 1, "MUFU": 4}, 4, 2,
    ),
    "combine_error fp32 3 -> 2": (
        "combine_error",
        [r"error_kernel<AnyTypes<float, true>, 3, false>", r"<float, 3, true, false>"],
        {"LDG.E.128": 3, "STG.E.128": 2, "MUFU": 4}, 4, 20,
    ),
    "combine_error bf16 3 -> 2": (
        "combine_error",
        [r"error_kernel<OneType<\(diffast::DType\)2>, 4, false>", r"<float, 3, true, false>"],
        {"LDG": 3, "STG": 2, "MUFU": 8}, 8, 10,
    ),
    "gram fp32 4": (
        "gram",
        [r"<float, 4, true>"],
        {"LDG.E.128": 4}, 4, 16,
    ),
}  # fmt: skip


def cuobjdump(*arguments: str) -> str:
    """Returns what the disassembler in triton's wheel prints."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def demangled(name: str) -> str:
    plain = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    short = plain.strip().replace("(anonymous namespace)::", "").replace("diffast::cuda::", "")
    return re.sub(r"^void |\((diffast::)?\w*(Args|Call)\b.*$", "", short)


def instructions(text: str) -> dict[str, list]:
    """Returns [(address, predicate, opcode, operands), ...] by mangled kernel name."""
    found = {}
    for part in text.split("Function : ")[1:]:
        lines = [_LINE.search(line) for line in part.splitlines()]
        found[part.split()[0]] = [
            (int(m[1], 16), m[2], m[3], m[4].strip()) for m in lines if m is not None
        ]
    return found


def count(code: list, usage: str) -> dict:
    """Returns the counts of one kernel instance."""
    code = code[: 1 + max(i for i, line in enumerate(code) if line[2] not in ("NOP", "BRA"))]
    accesses = Counter(line[2] for line in code if line[2].split(".")[0] in _WIDTHS)
    numbers = {key: int(n) for key, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    return {
        "registers": numbers["REG"],
        "stack": numbers["STACK"] + numbers["LOCAL"],
        "shared": numbers["SHARED"],
        "instructions": len(code),
        "accesses": dict(sorted(accesses.items())),
    }


def _edges(code: list) -> list[list[int]]:
    at = {line[0]: i for i, line in enumerate(code)}
    edges = []
    for i, (_, predicate, opcode, operands) in enumerate(code):
        name = opcode.split(".")[0]
        target = re.findall(r"0x[0-9a-f]+", operands)
        # A predicate may also be an operand of the branch itself: BRA.U UP0, `(...)`.
        always = predicate is None and not re.match(r"!?U?P\d", operands)
        out = [] if (name == "EXIT" and always) or name == "RET" else [i + 1]
        if name == "BRA" and ".DIV" not in opcode and target:
            out = ([] if always else out) + [at[int(target[-1], 16)]]
        edges.append([j for j in out if j < len(code)])
    return edges


def shortest_cycle(code: list, needed: dict[str, int]) -> int | None:
    """Returns how many instructions the shortest cycle has that makes the needed accesses.

    Args:
        code: a kernel's instructions.
        needed: how often an opcode is executed. A name without a width stands for every width, but
            a group's accesses all have one width, the widest that the kernel has.
    """
    kinds = list(needed)
    edges = _edges(code)

    def kind(opcode):
        for n, name in enumerate(kinds):
            wide = name in ("LDG", "STG") and re.fullmatch(name + r"\.E\.(64|128)", opcode)
            if opcode == name or wide or (name == "MUFU" and opcode.startswith("MUFU.R")):
                return n
        return None

    of = [kind(line[2]) for line in code]
    start = tuple(0 for _ in kinds)
    goal = tuple(needed.values())
    best = None
    for first in (i for i, n in enumerate(of) if n == 0):
        queue, seen = [(0, first, start)], set()
        while queue:
            cost, i, state = heapq.heappop(queue)
            if i == first and cost and state == goal:
                best = cost if best is None else min(best, cost)
                break
            if (i, state) in seen:
                continue
            seen.add((i, state))
            n, states = of[i], [state]
            if n is not None:  # an access with a predicate may be made or not
                states = [state] if code[i][1] else []
                if state[n] < goal[n]:
                    states.append(tuple(s + (m == n) for m, s in enumerate(state)))
            for j, after in itertools.product(edges[i], states):
                heapq.heappush(queue, (cost + 1, j, after))
    return best


def compile_op(tree: Path, op: str, arch: str, folder: Path) -> list[Path]:
    """Returns the cubins of an op's sources; those already in the folder are used again."""
    cubins = []
    for source in sorted((tree / "csrc" / "ops" / op).glob("*.cu")):
        cubin = folder / f"{op}{source.stem.removeprefix('cuda')}.cubin"
        cubins.append(cubin)
        if not cubin.exists():
            command = [str(NVCC), *FLAGS, "-arch=sm_" + arch.replace(".", ""), "-cubin"]
            subprocess.run([*command, "-o", str(cubin), str(source)], check=True)
    return cubins


def predicted(bytes_: int, instructions_: float) -> dict:
    """Returns picoseconds an element and the share of a copy's speed, by card."""
    arithmetic = instructions_ / LANES * 1e12
    result = {"arithmetic ps": round(arithmetic, 2)}
    for card, bandwidth in BANDWIDTH.items():
        memory = bytes_ / bandwidth * 1e12
        result[card] = {
            "memory ps": round(memory, 2),
            "bound ps": round(max(memory, arithmetic), 2),
            "share of copy at most": round(min(1.0, memory / arithmetic), 2),
        }
    return result


def report(tree: Path, ops: list[str], arch: str, folder: Path) -> dict:
    """Returns the counts of all kernel instances, and the cases."""
    kernels, codes = {}, {}
    for op in ops:
        for cubin in compile_op(tree, op, arch, folder):
            usage = cuobjdump("-res-usage", str(cubin))
            for name, code in instructions(cuobjdump("--dump-sass", str(cubin))).items():
                of = re.search(re.escape(name) + r":\s+(.*)", usage)[1]
                key = f"{op}: {demangled(name)}"
                kernels[key], codes[key] = count(code, of), code
    cases = {}
    for name, (op, patterns, needed, elements, bytes_) in CASES.items():
        if op not in ops:
            continue
        for pattern in patterns:
            keys = [key for key in kernels if key.startswith(op) and re.search(pattern, key)]
            if keys:
                break
        else:
            continue
        if elements == 8 and pattern == patterns[-1]:  # older sources: four elements a thread
            elements = 4
            needed = {k: 4 if k == "MUFU" else n for k, n in needed.items()}
            needed = {k + ".E.64" if k != "MUFU" else k: n for k, n in needed.items()}
        made = shortest_cycle(codes[keys[0]], needed)
        if made is not None:
            cases[name] = {
                "kernel": keys[0],
                "bytes an element": bytes_,
                "instructions per 4 elements": round(made * 4 / elements, 1),
                "predicted": predicted(bytes_, made / elements),
            }
    return {"arch": arch, "kernels": kernels, "cases": cases}


def text_of(results: dict) -> str:
    """Returns JSON with a line for each kernel instance and each case."""
    parts = []
    for name, result in results.items():
        lines = [f"  {json.dumps(part)}: {{\n" + ",\n".join(
            f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in result[part].items()
        ) + "\n  }" for part in ("cases", "kernels")]  # fmt: skip
        arch = json.dumps(result["arch"])
        parts.append(f' {json.dumps(name)}: {{\n  "arch": {arch},\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default="9.0")
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--op", nargs="*", default=list(OPS), choices=OPS)
    parser.add_argument("--cubins", type=Path, help="keeps compiled files between runs")
    parser.add_argument("--name", default="after")
    parser.add_argument("--show", action="store_true", help="prints all instances")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = report(options.tree, options.op, options.arch, options.cubins or Path(folder))
    if options.show:
        for name, kernel in made["kernels"].items():
            print(name, json.dumps(kernel))
    for name, case in made["cases"].items():
        bounds = {card: case["predicted"][card]["bound ps"] for card in BANDWIDTH}
        print(f"{name:28}", case["instructions per 4 elements"], case["predicted"]["arithmetic ps"],
              bounds)  # fmt: skip
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept = results.setdefault(options.name, {"kernels": {}, "cases": {}})
    other = {k: v for k, v in kept["kernels"].items() if k.split(":")[0] not in options.op}
    results[options.name] = {
        "arch": made["arch"],
        "kernels": {**other, **made["kernels"]},
        "cases": {**kept["cases"], **made["cases"]},
    }
    RESULTS.write_text(text_of(results))


if __name__ == "__main__":
    main()
