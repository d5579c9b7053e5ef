"""How long a job rests after an error of the platform, and how often it is tried.

Exponential back-off: a fault that hits many jobs at once (a full disk, a registry away) is not met by all of them
again at the same moment, so each delay has jitter.
"""

from datetime import timedelta
from typing import Final

from attrs import field, frozen
from attrs.validators import ge


@frozen(kw_only=True)
class RetryPolicy:
    """What a backend's jobs get when the platform fails them."""

    limit: int = field(default=3, validator=ge(1))
    """Attempts that errors of the platform may use up before the job fails."""
    first: timedelta = timedelta(seconds=5)
    """The full rest after the first error; it doubles with each further one."""
    longest: timedelta = timedelta(minutes=5)

    def delay(self, faults: int, jitter: float) -> timedelta:
        """The rest after the job's `faults`-th error (from 1).

        :param jitter: a random number in [0, 1); the delay is between half of the full one and all of it.
        """
        full = min(self.first.total_seconds() * 2.0 ** min(faults - 1, 60), self.longest.total_seconds())
        return timedelta(seconds=full * (0.5 + jitter / 2))


DEFAULT: Final = RetryPolicy()
