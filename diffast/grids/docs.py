"""What is said of the arguments that many grids have."""

from diffast._docs import documented

grid_function = documented(
    {
        "schedule": "any schedule.",
        "steps": "number of grid intervals.",
        "sigma_min": "least sigma/alpha above 0, by default that of schedule.t_min.",
        "sigma_max": "sigma/alpha at the start, by default that of schedule.t_start.",
        "to_zero": "True: steps levels, then the clean end. False: steps + 1 levels, no more.",
        "timesteps": "size, 2 or more, of the table of a schedule without training indices.",
        "alpha": "first shape parameter, positive; below 1 points crowd at low noise.",
        "beta": "second shape parameter, positive; below 1 points crowd at high noise.",
    },
    "ValueError: steps < 1; options outside of these; levels out of order or beyond the schedule.",
)
