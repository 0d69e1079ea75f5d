"""Energies and temperatures fitted to samples at several times, and audits of samplers with them.

Particles that follow dx = -grad V(x) dt - grad (U * rho)(x) dt + sqrt(2 beta) dB have a density rho
that moves with the velocity

    v = -(grad V + grad U * rho + beta grad log rho)

A pair of samples at neighbouring times, joined by optimal transport, shows v. With V and U linear
in unknown coefficients, fitting them and beta is one linear system. Terpin, Lanzetti, Gadea and
Doerfler 2024, "Learning diffusion at lightspeed" (JKOnet*).

potentials.py    features that V and U are sums of
coupling.py      which particle of one snapshot goes with which of the next
density.py       grad log rho of samples
snapshots.py     the given samples, checked
equations.py     the linear system of all intervals
fit.py           `fit_jko`
fitted.py        `JKOFit`, what it returns
dynamics.py      samples of the fitted dynamics, as a plan
transitions.py   what one step of a sampler should do, and what it did
audit.py         `audit`, `audit_batches`
report.py        `Audit`, what they return
"""

from diffast.thermo.jko import potentials

__all__ = ["potentials"]
