"""Seeds and counter words of the package's noise. csrc/core/normal.h has the words' layout."""

SLOT_SHIFT = 26
PURPOSE_SHIFT = 28
STAGE_LIMIT = 1 << SLOT_SHIFT

STEP_NOISE = 0 << PURPOSE_SHIFT
INITIAL_NOISE = 1 << PURPOSE_SHIFT
OPENING_NOISE = INITIAL_NOISE + 1  # added to the initial state before the first network call
BROWNIAN_NOISE = 2 << PURPOSE_SHIFT
COUPLING_NOISE = 3 << PURPOSE_SHIFT  # decides whether a guess is taken
GUIDANCE_NOISE = 4 << PURPOSE_SHIFT  # of guidance terms and of particles: 256 words a stage


def fold_seed(seed: int) -> int:
    """Returns the seed as the signed 64-bit integer that op schemas take.

    Any integer of 64 bits is a seed, signed or unsigned: -1 and 2**64 - 1 are the same one.

    Raises:
        TypeError: if the seed is not an integer.
        ValueError: if it needs more than 64 bits.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed is a {type(seed).__name__} but an integer is needed")
    value = seed.__index__()
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"seed {value} does not fit into 64 bits")
    return value - (1 << 64) if value >= 1 << 63 else value
