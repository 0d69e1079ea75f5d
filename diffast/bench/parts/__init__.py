"""The tables of a report; each module has a function `run` that returns sections."""
