"""The part of `comfy_formulas` that is in log-SNR: SDE solvers and exponential methods."""

from math import exp, expm1, sqrt

import numpy as np
from comfy_levels import lagrange, split


def _drift(space, s, t, x, eta, target):
    """Returns the mean of a step whose x0 estimate is `target`, and the deviation of its noise."""
    h = space.lam(t) - space.lam(s)
    keep = t / s * exp(-eta * h)
    x = keep * x - space.alpha(t) * expm1(-(1.0 + eta) * h) * target
    return x, t * sqrt(-expm1(-2.0 * eta * h))


def _dpmpp_sde(model, x, levels, normal, space, options):
    eta, r = options.get("eta", 1.0), options.get("r", 0.5)
    for s, t in zip(levels, levels[1:], strict=False):
        d = model(x, s)[0]
        if t == 0.0:
            x = d
            continue
        m = space.sigma(space.lam(s) + r * (space.lam(t) - space.lam(s)))

        def step(to, target, s=s, x=x):
            a, b = space.alpha(s), space.alpha(to)
            down, up = split(s / a, to / b, eta)
            keep = down * a / s
            return b * (keep * x / a + (1.0 - keep) * target) + b * up * normal()

        late = model(step(m, d), m)[0]
        x = step(t, (1.0 - 0.5 / r) * d + 0.5 / r * late)
    return x


def _multistep_sde(order, kind):
    def method(model, x, levels, normal, space, options):
        eta, seen, gaps = options.get("eta", 1.0), [], []
        for s, t in zip(levels, levels[1:], strict=False):
            d = model(x, s)[0]
            if t == 0.0:
                return d
            h = space.lam(t) - space.lam(s)
            total, b = (1.0 + eta) * h, space.alpha(t)
            x, up = _drift(space, s, t, x, eta, d)
            phi2 = expm1(-total) / total + 1.0
            if order == 3 and len(gaps) > 1:
                r0, r1 = gaps[-1] / h, gaps[-2] / h
                first, before = (d - seen[-1]) / r0, (seen[-1] - seen[-2]) / r1
                curve = (first - before) / (r0 + r1)
                x = x + b * phi2 * (first + curve * r0) - b * (phi2 / total - 0.5) * curve
            elif gaps:
                line = -0.5 * expm1(-total) if kind == "midpoint" else phi2
                x = x + b * line * h / gaps[-1] * (d - seen[-1])
            x = x + up * normal() if eta else x
            seen, gaps = [*seen, d], [*gaps, h]
        return x

    return method


def _seeds(places, rows):
    """Inner stages at `places` of a step; rows(H) are the last weights of each later stage."""

    def method(model, x, levels, normal, space, options):
        eta = options.get("eta", 1.0)
        for s, t in zip(levels, levels[1:], strict=False):
            d = [model(x, s)[0]]
            if t == 0.0:
                return d[0]
            h = space.lam(t) - space.lam(s)
            stops = [space.sigma(space.lam(s) + r * h) for r in places] + [t]
            shares, weights = [*places, 1.0], [None, *rows((1.0 + eta) * h)]
            noise, at = 0.0, 0.0
            for stop, share, row in zip(stops, shares, weights, strict=True):
                keep = stop / s * exp(-share * h * eta)
                if row is None:
                    row = [-expm1(-share * (1.0 + eta) * h)]
                mean = keep * x + space.alpha(stop) * sum(
                    w * e for w, e in zip(row, d, strict=False)
                )
                if eta:
                    gap = share - at
                    noise = (
                        noise * exp(-gap * h * eta) + sqrt(-expm1(-2.0 * gap * h * eta)) * normal()
                    )
                    mean = mean + stop * noise
                at = share
                if stop is not t:
                    d.append(model(mean, stop)[0])
            x = mean
        return x

    return method


def _h_phi2(h):
    return (expm1(-h) + h) / h


def _rows_2(total):
    late = -expm1(-total)
    return [[0.0, late]]


def _rows_3(total):
    inner = 2.0 * _h_phi2(2.0 / 3.0 * total)
    last = 1.5 * _h_phi2(total)
    return [
        [-expm1(-2.0 / 3.0 * total) - inner, inner],
        [-expm1(-total) - last, 0.0, last],
    ]


def _exp_heun(sde):
    def method(model, x, levels, normal, space, options):
        eta = options.get("eta", 1.0) if sde else 0.0
        for s, t in zip(levels, levels[1:], strict=False):
            d = model(x, s)[0]
            if t == 0.0:
                return d
            total = (1.0 + eta) * (space.lam(t) - space.lam(s))
            ahead, up = _drift(space, s, t, x, eta, d)
            noise = up * normal() if eta else 0.0
            if eta:
                normal()
            late = model(ahead + noise, t)[0]
            w = _h_phi2(total) / -expm1(-total)
            x = _drift(space, s, t, x, eta, (1.0 - w) * d + w * late)[0] + noise
        return x

    return method


def _er_sde(model, x, levels, normal, space, options):
    def gain(rho):
        return rho * (np.exp(rho**0.3) + 10.0)

    rho = [s / space.alpha(s) for s in levels]
    seen, slopes = [], []
    for i, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
        d = model(x, s)[0]
        if t == 0.0:
            return d
        b, r = space.alpha(t), float(gain(rho[i + 1]) / gain(rho[i]))
        x = b / space.alpha(s) * r * x + b * (1.0 - r) * d
        if i:
            step = rho[i + 1] - rho[i]
            at = rho[i + 1] - np.arange(200) * step / 200
            slope = (d - seen[-1]) / (rho[i] - rho[i - 1])
            whole = float((1.0 / gain(at)).sum() * -step / 200 * gain(rho[i + 1]))
            x = x + b * (step + whole) * slope
            if i > 1:
                bend = 2.0 * (slope - slopes[-1]) / (rho[i] - rho[i - 2])
                part = ((at - rho[i]) / gain(at)).sum() * -step / 200 * gain(rho[i + 1])
                x = x + b * (step**2 / 2 + float(part)) * bend
            slopes.append(slope)
        x = x + b * sqrt(max(rho[i + 1] ** 2 - (r * rho[i]) ** 2, 0.0)) * normal()
        seen.append(d)
    return x


def _sa_solver(pece):
    def method(model, x, levels, normal, space, options):
        high, low = options["interval"]
        lam = [space.lam(s) for s in levels]
        count, clean = len(levels), levels[-1] == 0.0
        seen, fresh, tau = [], 0.0, 0.0
        corrected = x

        def integral(n, nodes):
            total = 1.0 + tau**2
            at, end = [lam[k] for k in nodes], lam[n + 1]

            def kernel(u):
                return total * np.exp(-total * (end - u))

            rows = lagrange(at, lam[n], end, kernel, 60)
            return [space.alpha(levels[n + 1]) * w for w in rows]

        for i in range(count - 1):
            s, t = levels[i], levels[i + 1]
            d = model(x, s)[0]
            seen = [d, *seen][:4]
            predictor = min(3, len(seen))
            corrector = 0 if i == 0 or (t == 0.0 and not pece) else min(4, len(seen))
            if clean:
                predictor, corrector = min(predictor, count - 2 - i), min(corrector, count - 1 - i)
            if corrector:
                rows = integral(i - 1, [i - k for k in range(corrector)])
                h = lam[i] - lam[i - 1]
                kept = s / levels[i - 1] * exp(-(tau**2) * h) * corrected
                corrected = kept + sum(w * e for w, e in zip(rows, seen, strict=False)) + fresh
                if pece:
                    d = model(corrected, s)[0]
                    seen[0] = d
            else:
                corrected = x
            if t == 0.0:
                return d
            tau = 1.0 if high >= t >= low else 0.0
            rows = integral(i, [i - k for k in range(predictor)])
            h = lam[i + 1] - lam[i]
            x = t / s * exp(-(tau**2) * h) * corrected
            x = x + sum(w * e for w, e in zip(rows, seen, strict=False))
            fresh = t * sqrt(-expm1(-2.0 * tau**2 * h)) * normal() if tau else 0.0
            x = x + fresh
        return x

    return method


BY_LOGSNR = {
    "dpmpp_sde": _dpmpp_sde,
    "dpmpp_2m_sde": _multistep_sde(2, "midpoint"),
    "dpmpp_2m_sde_heun": _multistep_sde(2, "heun"),
    "dpmpp_3m_sde": _multistep_sde(3, "heun"),
    "seeds_2": _seeds([0.5], _rows_2),
    "seeds_3": _seeds([1.0 / 3.0, 2.0 / 3.0], _rows_3),
    "exp_heun_2_x0": _exp_heun(False),
    "exp_heun_2_x0_sde": _exp_heun(True),
    "er_sde": _er_sde,
    "sa_solver": _sa_solver(False),
    "sa_solver_pece": _sa_solver(True),
}
