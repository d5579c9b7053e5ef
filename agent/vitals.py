"""How this agent is doing, in numbers that go along with its claims: nobody may connect to it and ask."""

from attrs import define

from agent.core.redact import redact_vitals
from common.protocol import Egress


@define
class Vitals:
    """Collects what is only known in passing, and puts the numbers together."""

    egress: Egress
    worst_lag: float = 0.0
    """Seconds that the event loop was late at most since the numbers were last told."""

    def lagged(self, seconds: float) -> None:
        """The event loop was so much later than it should have been."""
        self.worst_lag = max(self.worst_lag, seconds)

    def tell(self, *, busy: int, running: int, reports: int, free: float | None) -> dict[str, float]:
        """The numbers, as far as they may leave: none from a backend that is closed.

        :param busy: slots in use.
        :param running: jobs whose process runs.
        :param reports: reports that the controller has not taken yet.
        :param free: share of the disk with the volumes, 0 to 1; None if it is not known.
        """
        lag, self.worst_lag = self.worst_lag, 0.0
        numbers: dict[str, float | None] = {
            "slots_used": busy,
            "jobs_running": running,
            "reports_queued": reports,
            # No finer than is of use: jobs can move both, and so tell something by them.
            "disk_free_ratio": None if free is None else round(free, 2),
            "loop_lag_seconds": round(lag, 2),
        }
        return redact_vitals(numbers, self.egress)
