"""Fixed points D(u) = u of the x0 estimate at one noise level, and the slopes of D there."""

from __future__ import annotations

from typing import NamedTuple

import torch

from diffast.thermo.jacobian import signs
from diffast.thermo.products import Products
from diffast.tuning.grids.levels import Levels

# Newton steps at one level, and plain iterations u <- D(u) from a place that is no fixed point.
NEWTON_STEPS, PLAIN_STEPS = 10, 40


class Place(NamedTuple):
    """A noise level: its model time, alpha, and rho = sigma / alpha."""

    time: float
    alpha: float
    rho: float


class Settled(NamedTuple):
    """Where Newton's method came to rest.

    Attributes:
        u: states [B, ...].
        good: [B], whether each is a fixed point to the tolerance.
        first: [B], the length of the first Newton step.
        moved: [B], the distance from the first state.
    """

    u: torch.Tensor
    good: torch.Tensor
    first: torch.Tensor
    moved: torch.Tensor


class FixedPoints:
    """Finds fixed points of D in u = x / alpha, and the largest eigenvalue of dD/du at them.

    u is in the unit of the data. For an exact estimate dD/du = Cov[y | x] / rho^2 on every
    schedule, and the fixed points are the points where the score of p(u) is 0.

    Args:
        products: of the denoiser.
        krylov: products with the Jacobian for one Newton step, and for one eigenvalue.
    """

    def __init__(self, products: Products, krylov: int):
        """Calls nothing."""
        self.products, self.krylov = products, krylov
        self.ladder = Levels.of(products.denoiser)

    def place(self, rho: float) -> Place:
        """Returns a level that the network can be called at: the nearest whole time, if it must."""
        time = float(self.ladder.times(rho))
        return Place(
            time, float(self.products.denoiser.schedule.alpha(time)), float(self.ladder.at(time))
        )

    def estimate(self, u: torch.Tensor, place: Place) -> torch.Tensor:
        """Returns D [B, ...]."""
        return self.products.estimate(u * place.alpha, place.time)

    def plain(self, u: torch.Tensor, place: Place, steps: int = PLAIN_STEPS) -> torch.Tensor:
        """Returns states after u <- D(u), which climbs the density: into the basin of u's mode."""
        for _ in range(steps):
            new = self.estimate(u, place)
            done = _norms(new - u) <= self._close(new, place)
            u = new
            if bool(done.all()):
                break
        return u

    def newton(
        self, u: torch.Tensor, place: Place, within: float = float("inf"), steps: int = NEWTON_STEPS
    ) -> Settled:
        """Returns fixed points near u by Newton's method.

        (1 - dD/du) step = D(u) - u is solved in the Krylov space of the residual, which has few
        directions: most eigenvalues of dD/du are near 0. A step is at most rho sqrt(d) / 2 long. A
        state is given up that moves further than `within` times its first step.
        """
        start, first = u, None
        good = torch.zeros(len(u), dtype=torch.bool, device=u.device)
        longest = 0.5 * place.rho * (u[0].numel() ** 0.5)
        for k in range(steps + 1):
            made = self.estimate(u, place)
            residual = made - u
            good = _norms(residual) <= self._close(made, place)
            lost = torch.zeros_like(good) if first is None else _norms(u - start) > within * first
            if bool((good | lost).all()) or k == steps:
                break
            step = self._solve(u, residual, place)
            sizes = _norms(step)
            first = torch.where(good, 0.0, sizes) if first is None else first
            share = (longest / sizes.clamp(min=1e-300)).clamp(max=1.0)
            share = torch.where(good | lost, 0.0, share)
            u = u + _over(share, u) * step
        first = _norms(start - start) if first is None else first
        return Settled(u, good, first, _norms(u - start))

    def top(
        self, u: torch.Tensor, place: Place, guess: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (largest real eigenvalue [B] float64, unit eigenvectors [B, ...]) of dD/du.

        Arnoldi's method from the guess, which is stirred by a tenth of random signs.
        """
        random = signs(u, 0, 7)
        random = random / _over(_norms(random), u)
        start = random if guess is None else guess + 0.1 * random
        basis, h = self._arnoldi(u, start, place)
        size = h.shape[2]
        values, vectors = torch.linalg.eig(h[:, :size])
        # A subspace that closed early leaves directions of eigenvalue 0; J has none below by much.
        best = values.real.argmax(1)
        rows = torch.arange(len(u), device=u.device)
        chosen = vectors[rows, :, best].real  # [B, m]
        made = torch.einsum("bm,bmd->bd", chosen, basis[:, :size])
        made = made / made.norm(dim=1, keepdim=True).clamp(min=1e-300)
        return values.real[rows, best], made.reshape(u.shape).to(u.dtype)

    def _solve(self, u: torch.Tensor, residual: torch.Tensor, place: Place) -> torch.Tensor:
        """Returns the step of least residual in the Krylov space of the residual."""
        basis, h = self._arnoldi(u, residual, place)
        size = h.shape[2]
        system = torch.eye(size + 1, size, dtype=h.dtype, device=h.device) - h
        wanted = torch.zeros(len(u), size + 1, 1, dtype=h.dtype, device=h.device)
        wanted[:, 0, 0] = _norms(residual)
        # lstsq of LAPACK's gelsd: a singular system, as at a critical level, gets its least step.
        found = torch.linalg.pinv(system, rtol=1e-12) @ wanted
        step = torch.einsum("bm,bmd->bd", found[:, :, 0], basis[:, :size])
        return step.reshape(u.shape).to(u.dtype)

    def _arnoldi(
        self, u: torch.Tensor, start: torch.Tensor, place: Place
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (orthonormal rows [B, m+1, d], H [B, m+1, m]) of the Krylov space of dD/du."""
        d = u[0].numel()
        size = min(self.krylov, d)
        basis = torch.zeros(len(u), size + 1, d, dtype=torch.float64, device=u.device)
        h = torch.zeros(len(u), size + 1, size, dtype=torch.float64, device=u.device)
        flat = start.double().flatten(1)
        basis[:, 0] = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
        x = u * place.alpha
        for j in range(size):
            z = basis[:, j].reshape(u.shape).to(u.dtype)
            made = self.products.forward(x, z * place.alpha, place.time).double().flatten(1)
            whole = made.norm(dim=1)
            for _ in range(2):  # twice is enough against rounding
                parts = torch.einsum("bmd,bd->bm", basis[:, : j + 1], made)
                h[:, : j + 1, j] += parts
                made = made - torch.einsum("bm,bmd->bd", parts, basis[:, : j + 1])
            left = made.norm(dim=1)
            # The space is closed: no further direction. Beyond d directions there is none.
            alive = (left > 1e-10 * whole) & (j + 1 < d)
            h[:, j + 1, j] = torch.where(alive, left, 0.0)
            scaled = made / left.clamp(min=1e-300)[:, None]
            basis[:, j + 1] = torch.where(alive[:, None], scaled, 0.0)
        return basis, h

    def _close(self, made: torch.Tensor, place: Place) -> torch.Tensor:
        """Returns the residual [B] that counts as none."""
        eps = self.products.rounding(made)
        return 4e3 * eps * _norms(made).clamp(min=place.rho * made[0].numel() ** 0.5)


def _norms(u: torch.Tensor) -> torch.Tensor:
    return u.double().flatten(1).norm(dim=1)


def _over(values: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return values.to(u.dtype).reshape(-1, *[1] * (u.dim() - 1))
