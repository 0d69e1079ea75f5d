"""The thermodynamics of a sampler: what limits its speed and accuracy, measured on any network.

What is behind each name, with its measurements: docs/thermodynamics.md.

    profile                    what one sweep over noise levels says of a network
    Profile                    the numbers of `profile`, its text, files and page
    GaussianMixture            data with a closed form, to test methods on
    Surrogate                  data in closed form that have a network's loss curve
    plan_of_profile            the plan that a profile alone asks for; plans_of_profile: a few
    certificate                how far noisy data are from a Gaussian; where to start late
    start_law                  the Gaussians that a late start draws from; noise_kl
    shrunk_gaussian            mean and covariance of few samples
    Gaussian                   mean and covariance of data
    action                     c_2, the mean squared W2 speed of a path of unit duration
    angle                      the angle between data and noise, from the mmse curve
    entropy_flows              entropy rates of the system and of the bath
    entropy_production         entropy production rate of the noising path
    kappa                      rate of that angle over the angle of the noise level
    w2_length                  W2 length of the noising path
    w2_speed_squared           squared W2 speed of the noising path
    bimodal_times              when two modes part, by four criteria that differ; centre_criteria
    clone_agreement            what a noise level has settled, by two completions of one state
    collapse_time              where finite data are told apart; own_weights measures it
    critical_levels            where the fixed points of the x0 estimate split or vanish
    decision_window            where the x0 estimate gains most
    linear_field               entropy production of a linear velocity, in its two parts
    nonconservativity          how far the x0 estimate is from a gradient field
    GaussianTransport          optimal transport from noise to a normal law, a velocity field
    MonotoneTransport          optimal transport on the line
    SampledTransport           optimal transport between samples
    best_scalar                the schedule of least action
    retime                     a schedule at constant W2 speed
    SpeedAccuracy              what speed_accuracy returns
    chi_square                 chi-square of a wrong start
    chi_square_of_kl           the same, from a small KL
    chi_square_of_samples      the same, from samples
    speed_accuracy             eta <= c_1 <= c_2 of a run from a wrong start
    speed_accuracy_of_curve    the same, from an exact curve of W1
    w1_change_bound            largest change of W1 along a path
    w1_rate_bound              largest rate of it
    wasserstein1               W1 between samples, exact on the line, else sliced
    wasserstein1_of_cdfs       W1 between two laws on the line
    wasserstein2               W2 between samples
    fluctuation_test           whether stored trajectories are those of the SDE that is meant
    fluctuation_test_of_plan   the same for a run of a plan
    fluctuation_test_of_steps  the same for Gaussian steps of any method
    franz_parisi               free energy of a posterior sample at a distance from another one
    free_energy                -sigma^2 log p of noisy states; free_energy_along: for a network
    log_likelihood             the density that a plan gives to data, by Jarzynski's equality
    noising_dynamics           the SDE of a schedule; sampling_dynamics: of its reverse
    order_parameters           self-consistent posterior means
    fit_jko                    energy and temperature of particles seen at a few times; JKOFit
    potentials                 features that such an energy is a sum of
    audit                      whether a sampler with noise does what its equation says; Audit
    audit_batches              the same for any other process
    audit_marginals            the same from sets of samples, whoever is who in them
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffast._namespace import attributes

# Where each public name lives. Loaded when first asked for: one line a name.
_HOMES = {
    "Audit": "diffast.thermo.jko.report",
    "Certificate": "diffast.thermo.late_start",
    "CloneAgreement": "diffast.thermo.clones",
    "CriticalLevels": "diffast.thermo.critical",
    "DecisionWindow": "diffast.thermo.collapse",
    "Dynamics": "diffast.thermo.fluctuation.trajectories",
    "Estimate": "diffast.thermo.estimate",
    "FewSamplesWarning": "diffast.thermo.estimate",
    "FluctuationTest": "diffast.thermo.fluctuation.theorem",
    "FranzParisi": "diffast.thermo.fluctuation.franz_parisi",
    "Gaussian": "diffast.plans.gaussian",
    "GaussianMixture": "diffast.thermo.mixture",
    "GaussianTransport": "diffast.thermo.paths.transport",
    "JKOFit": "diffast.thermo.jko.fitted",
    "Likelihood": "diffast.thermo.fluctuation.likelihood",
    "LinearField": "diffast.thermo.linear_field",
    "MonotoneTransport": "diffast.thermo.paths.transport",
    "Nonconservativity": "diffast.thermo.jacobian",
    "OrderParameters": "diffast.thermo.fluctuation.free_energy",
    "Products": "diffast.thermo.products",
    "Profile": "diffast.thermo.record",
    "SampledTransport": "diffast.thermo.paths.transport",
    "SpeedAccuracy": "diffast.thermo.bound",
    "StartLaw": "diffast.plans.initial",
    "Surrogate": "diffast.thermo.surrogate.surrogate",
    "action": "diffast.thermo.speed",
    "angle": "diffast.thermo.speed",
    "audit": "diffast.thermo.jko.audit",
    "audit_batches": "diffast.thermo.jko.audit",
    "audit_marginals": "diffast.thermo.jko.marginals",
    "best_scalar": "diffast.thermo.paths.scalar",
    "bimodal_times": "diffast.thermo.criteria",
    "centre_criteria": "diffast.thermo.criteria",
    "certificate": "diffast.thermo.late_start",
    "chi_square": "diffast.thermo.distances",
    "chi_square_of_kl": "diffast.thermo.distances",
    "chi_square_of_samples": "diffast.thermo.distances",
    "clone_agreement": "diffast.thermo.clones",
    "collapse_time": "diffast.thermo.collapse",
    "critical_levels": "diffast.thermo.critical",
    "decision_window": "diffast.thermo.collapse",
    "entropy_flows": "diffast.thermo.speed",
    "entropy_production": "diffast.thermo.speed",
    "fit_jko": "diffast.thermo.jko.fit",
    "fluctuation_test": "diffast.thermo.fluctuation.theorem",
    "fluctuation_test_of_plan": "diffast.thermo.fluctuation.of_plan",
    "fluctuation_test_of_steps": "diffast.thermo.fluctuation.of_steps",
    "franz_parisi": "diffast.thermo.fluctuation.franz_parisi",
    "free_energy": "diffast.thermo.fluctuation.free_energy",
    "free_energy_along": "diffast.thermo.fluctuation.free_energy",
    "kappa": "diffast.thermo.speed",
    "linear_field": "diffast.thermo.linear_field",
    "log_likelihood": "diffast.thermo.fluctuation.likelihood",
    "mixture_agreement": "diffast.thermo.clones",
    "noise_kl": "diffast.thermo.start_law",
    "noising_dynamics": "diffast.thermo.fluctuation.trajectories",
    "nonconservativity": "diffast.thermo.jacobian",
    "order_parameters": "diffast.thermo.fluctuation.free_energy",
    "own_weights": "diffast.thermo.collapse",
    "plan_of_profile": "diffast.thermo.surrogate.choose",
    "plans_of_profile": "diffast.thermo.surrogate.choose",
    "potentials": "diffast.thermo.jko",
    "profile": "diffast.thermo.profiling",
    "retime": "diffast.thermo.paths.scalar",
    "sampling_dynamics": "diffast.thermo.fluctuation.trajectories",
    "shrunk_gaussian": "diffast.thermo.shrinkage",
    "speed_accuracy": "diffast.thermo.bound",
    "speed_accuracy_of_curve": "diffast.thermo.bound",
    "start_law": "diffast.thermo.start_law",
    "w1_change_bound": "diffast.thermo.bound",
    "w1_rate_bound": "diffast.thermo.bound",
    "w2_length": "diffast.thermo.speed",
    "w2_speed_squared": "diffast.thermo.speed",
    "wasserstein1": "diffast.thermo.distances",
    "wasserstein1_of_cdfs": "diffast.thermo.distances",
    "wasserstein2": "diffast.thermo.distances",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]: loaded when asked for

_unknown, __dir__ = attributes(__name__, __all__)

if not TYPE_CHECKING:  # a checker is to tell misspelt names itself

    def __getattr__(name: str) -> Any:
        """Returns the public object of that name."""
        if name not in _HOMES:
            return _unknown(name)
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
