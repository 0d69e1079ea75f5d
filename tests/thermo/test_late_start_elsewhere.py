"""Plans with a Gaussian start in the tools of the room: each starts from the law or refuses it."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.jko import states

MIXTURE = df.thermo.GaussianMixture([0.4, 0.6], [[4.0], [5.0]], [[[0.1]], [[0.2]]])
LAW = df.thermo.Gaussian(
    np.asarray(MIXTURE.mean), np.eye(1), [float(np.asarray(MIXTURE.covariance).item())]
)
SCHEDULE = df.schedules.vp_linear()


def late(eta: float = 0.0) -> df.Plan:
    grid = df.grids.default(SCHEDULE, 10)
    return df.solvers.ddim(SCHEDULE, grid, eta=eta).late_start(LAW, level=2.0)


def test_an_audit_runs_a_late_plan_from_its_law():
    run = states.states_of(
        "audit", MIXTURE.denoiser(SCHEDULE), late(1.0), (60, 1), None, 3, None, None, 1.0
    )
    wanted = df.initial_state(MIXTURE.denoiser(SCHEDULE), late(1.0), (60, 1), seed=3)
    assert torch.equal(run.states[0], wanted) and float(run.states[0].mean()) > 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_profile_generates_from_the_law(dtype):
    made = df.thermo.profile(
        MIXTURE.denoiser(SCHEDULE), shape=(64, 1), levels=4, measure=(), plan=late(), dtype=dtype
    )
    # From noise alone the samples would lie about the mean of few of them: the law is far from 0.
    assert made.energy == pytest.approx(MIXTURE.energy, rel=0.1)


def test_a_profile_measures_no_wrong_start_of_a_late_plan():
    data = MIXTURE.sample(64)
    made = df.thermo.profile(
        MIXTURE.denoiser(SCHEDULE), data, levels=4, measure="samples", plan=late()
    )
    assert np.isnan(made.eta.value) and "starts from a Gaussian law" in made.notes[-1]


def test_a_surrogate_refuses_the_law_of_other_data():
    surrogate = df.thermo.Surrogate.gaussian(np.array([1.0, 0.3]))
    with pytest.raises(ValueError, match="starts from a Gaussian law"):
        surrogate.error(late())
