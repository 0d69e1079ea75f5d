"""Plans that files of older versions hold (tests/plans/older), as today's builders make them."""

import diffast as df
from diffast.solvers import compat

VP, EDM = df.schedules.vp_linear(), df.schedules.edm()


def pndm():
    """A repeated call, then a step that starts at an earlier state, then two ordinary ones."""
    times, ends = [0.9, 0.7, 0.7, 0.5, 0.3], [0.7, 0.5, 0.5, 0.3, 0.1]
    transfers = [(0.9, 0.7), (0.9, 0.7), *zip(times[2:], ends[2:], strict=True)]
    means = [{0: 1.0}, {0: 0.5, 1: 0.5}, {2: 1.5, 0: -0.5}, {3: 1.5, 2: -0.5}, {4: 1.5, 3: -0.5}]
    based = [False, True, False, False, False]
    return compat.pndm(VP, times, transfers, means, based)


def uniform(name, **options):
    return df.solvers.get(name)(VP, df.grids.uniform_time(VP, 5, start=0.9), **options)


def piadm(name, **options):
    return df.solvers.get(name)(VP, df.grids.ou_early(VP, 6), block=2.0, **options)


BUILDERS = {
    "churn.json": lambda: uniform("churn", s_churn=3.0),
    "dpmpp_sde.json": lambda: uniform("dpmpp_sde"),
    "heun_error.json": lambda: df.solvers.heun(EDM, df.grids.karras(EDM, 4, to_zero=False)),
    "lms.npz": lambda: uniform("lms"),
    "pec.npz": lambda: uniform("pec"),
    "piadm_ode.npz": lambda: piadm("piadm_ode", corrector=(0.3, 3)),
    "piadm_sde.json": lambda: piadm("piadm_sde"),
    "pndm.json": pndm,
}
