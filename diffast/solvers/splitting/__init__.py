"""Splitting solvers for guided sampling: the network and the guidance take sub-steps of their own.

With y = x / alpha and rho = sigma / alpha the guided probability-flow ODE has two parts,

    dy/drho = eps(x) - f(x),      f = scale sigma grad log p(condition | x)

a smooth one, which multistep methods of high order follow with few network calls, and a rough one,
which they do not (Wizadwongsa & Suwajanakorn 2023, "Accelerating guided diffusion sampling with
splitting numerical methods"). `lie_strang.py` alternates between them, `additive.py` adds them up
along one trajectory, `momentum.py` damps a multistep method. `weave.py` puts guidance stages
between the stages of another solver's plan.
"""
