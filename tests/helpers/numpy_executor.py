"""The meaning of a Plan, in plain numpy float64: what every other executor is tested against."""

import numpy as np


def walk(plan, denoise, x, normal=None, change=None, gradients=None):
    """Returns what every stage writes, a list of {register: array}, entries as "h".

    Args:
        plan: any plan.
        denoise: (x, t) -> x0 estimate, same shape as x.
        x: initial state, standing at plan.start.
        normal: (stage, "z1" or "z2") -> N(0, I) numbers of the shape of x; 0 if not given.
        change: what a clamp or a hook makes of an x0 estimate; None: nothing.
        gradients: {"g1": (x, t) -> gradient of a guidance term}; those that are not given are 0.
    """
    state = np.asarray(x, dtype=np.float64)
    held, entries, stages = {"x": state, "y": state}, [], []
    for i, time in enumerate(plan.times):
        seen = dict(held)
        if not np.isnan(time):
            seen["d_raw"] = np.asarray(denoise(held["x"], time))
            seen["d"] = seen["d_raw"] if change is None else change(seen["d_raw"])
        told = np.nan if plan.gradients is None else plan.gradients[i]
        if not np.isnan(told):
            seen |= {name: np.zeros_like(state) for name in plan.columns if name[0] == "g"}
            seen |= {name: f(held["x"], told) for name, f in (gradients or {}).items()}
        seen |= {f"h{age}": entry for age, entry in enumerate(entries, start=1)}
        for z in ("z1", "z2"):
            if z in plan.columns and plan.matrix[i, :, plan.columns.index(z)].any():
                seen[z] = np.zeros_like(state) if normal is None else normal(i, z)
        written = {}
        for register, row in zip(plan.rows, plan.matrix[i], strict=True):
            terms = [w * seen[c] for c, w in zip(plan.columns, row, strict=True) if w]
            if terms or register == "x":
                written[register] = sum(terms, start=np.zeros_like(state))
            if register == "h" and terms:  # the first row: the others may weigh it
                seen["h0"] = written["h"]
        stages.append(written)
        if "h" in written:
            entries.insert(0, written["h"])
        held = {name: written[name] for name in ("x", "y", "v") if name in written}
    return stages


def run(plan, denoise, x, noise=None, second=None, change=None, gradients=None):
    """Returns what the network is called on, call by call, then the sample, [nfe+1, ...].

    Args:
        plan: any plan.
        denoise: (x, t) -> x0 estimate, same shape as x.
        x: initial state, standing at plan.start.
        noise: number of the network call -> the first N(0, I) numbers that are drawn after it and
            before the next (-1: before the first call); 0 if not given.
        second: the same for the second ones.
        change: as in `walk`.
        gradients: as in `walk`.
    """
    call = np.cumsum(~np.isnan(plan.times)) - 1
    names = normals_of(plan)

    def normal(i, z):
        given = (noise, second)[names[i, z]]
        return np.zeros_like(start) if given is None else given(int(call[i]))

    start = np.asarray(x, dtype=np.float64)
    after = [
        start,
        *(written["x"] for written in walk(plan, denoise, x, normal, change, gradients)),
    ]
    return np.stack([after[i] for i in (*plan.calls, plan.stages)])


def normals_of(plan):
    """Returns {(stage, column): 0 or 1}: which of the two normals after a call it is.

    Stages without a call draw what the call before them leaves: at most two normals a call.
    """
    names, free = {}, [0, 1]
    for i, time in enumerate(plan.times):
        drawn = [
            z
            for z in ("z1", "z2")
            if z in plan.columns and plan.matrix[i, :, plan.columns.index(z)].any()
        ]
        if np.isnan(time):
            for z in drawn:
                names[i, z] = free.pop(0)  # IndexError: more than two
        else:
            names |= {(i, z): int(z == "z2") for z in drawn}
            free = [k for k, z in enumerate(("z1", "z2")) if z not in drawn]
    return names
