"""What is said of the arguments that many builders have."""

from diffast._docs import documented

builder = documented(
    {
        "schedule": "any schedule.",
        "grid": "[N+1] model times from noisy to clean.",
        "clock": '"rho", "flow" or None: "flow" where alpha + sigma = 1 on the grid, else "rho".',
        "order": "1 to 4.",
        "orders": "[N] orders of the steps, each at most `order` and what is remembered.",
        "start": '"rise" or "single", see `lms`.',
        "kind": '"midpoint" or "heun".',
        "eta": "rate at which noise is replaced; 0 for the ODE, 1 for the reverse SDE.",
        "s_noise": "factor on the fresh noise; other than 1, the plan is checked for x0 alone.",
    },
    "ValueError: an option outside of these; a grid that `check_grid` refuses.",
)
