"""How long a job rests after an error of the platform, and how often it is tried.

Exponential back-off: a fault that hits many jobs at once (a full disk, a registry away) is not met by all of them
again at the same moment, so each delay has jitter.
"""

from datetime import timedelta
from typing import Final

MAX_FAULTS: Final = 3
"""Attempts that errors of the platform may use up before the job fails."""

FIRST_DELAY: Final = timedelta(seconds=5)
LONGEST_DELAY: Final = timedelta(minutes=5)


def delay(faults: int, jitter: float) -> timedelta:
    """The rest after the job's `faults`-th error (from 1).

    :param jitter: a random number in [0, 1); the delay is between half of the full one and all of it.
    """
    full = min(FIRST_DELAY * float(2 ** min(faults - 1, 30)), LONGEST_DELAY)
    return full * (0.5 + jitter / 2)
