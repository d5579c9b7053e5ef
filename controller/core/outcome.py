"""What an agent's report means for its job: results -> event. Rules: reference/opensafely.md sections 2.5, 3.2, 3.3.

The exit code is tested before unmatched patterns; a code that is not a number counts as non-zero (edge 16). An
agent's error is worth another attempt unless the agent calls it fatal or the attempts are used up.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from common.protocol import OnLoss
from controller.core.codes import MESSAGE, STAGES, StatusCode
from controller.core.machine import Event, Failed, Faulted, Progressed, Succeeded
from controller.core.model import Job
from controller.core.retry import DEFAULT, RetryPolicy

DB_EXIT_MESSAGES: Final[dict[int, str]] = {
    2: "The arguments of the command are not valid. See job log for details",
    3: "The database had a transient error. Please run the job again",
    4: "New data is being imported into the database. Please run the job again in a few hours",
    5: "There was a problem with the database. Please contact support",
    6: "The query is too complex for the database. See job log for details",
    10: "The ehrQL code could not be read. See job log for details",
    11: "A data file given to the command could not be read. See job log for details",
    12: "The job does not have the permissions that its query needs. See job log for details",
    13: "The assurance tests failed. See job log for details",
    14: "The query took too long and was stopped. See job log for details",
}
"""Texts for exit codes of database jobs, used if the agent gave none (section 3.2)."""

LONGEST_MESSAGE: Final = 4000
"""Characters of an agent's own words in a job's message."""

_EXCLUDED = ", but some file(s) marked as moderately_sensitive were excluded. See job log for details."


class SenselessReport(ValueError):
    """A final report that cannot be understood; the text says what it lacks."""


def progress(stage: str, timestamp_ns: int | None) -> Event | None:
    """The event of a report that is not final; None if the stage is none that users see (edge behaviour 15)."""
    if stage not in {code.value for code in STAGES}:
        return None
    return Progressed(code=StatusCode(stage), at=agent_time(timestamp_ns))


def conclusion(
    job: Job, results: Mapping[str, Any], timestamp_ns: int | None, *, retry: RetryPolicy = DEFAULT, jitter: float = 0.0
) -> Event:
    """The event of a final RUNJOB report.

    :param jitter: see `RetryPolicy.delay`.
    :raises SenselessReport: the results lack what a decision needs.
    """
    if "error" not in results:
        raise SenselessReport("results lack the key 'error'")
    at = agent_time(timestamp_ns)
    if results["error"]:
        return _error(job, results["error"], at, retry, jitter)
    if "exit_code" not in results:
        raise SenselessReport("results lack the key 'exit_code'")
    exit_code = _number(results["exit_code"])
    if exit_code != 0:
        return Failed(code=StatusCode.NONZERO_EXIT, message=_nonzero(job, exit_code, results), at=at)
    if results.get("has_unmatched_patterns"):
        return Failed(code=StatusCode.UNMATCHED_PATTERNS, at=at)
    if results.get("has_level4_excluded_files"):
        return Succeeded(message=MESSAGE[StatusCode.SUCCEEDED] + _EXCLUDED, at=at)
    return Succeeded(at=at)


def agent_time(timestamp_ns: int | None) -> datetime | None:
    """The agent's clock in our type; None for nothing, and for what no clock ever shows."""
    if not timestamp_ns:
        return None
    try:
        return datetime.fromtimestamp(timestamp_ns / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def after_fault(job: Job, cause: str, at: datetime | None, *, retry: RetryPolicy, jitter: float) -> Event:
    """Another attempt after an error of the platform, or the end with a cause that the researcher can read."""
    faults = job.progress.faults + 1
    if faults >= retry.limit:
        text = f"{MESSAGE[StatusCode.JOB_ERROR]} It was tried {faults} {'time' if faults == 1 else 'times'}."
        return Failed(code=StatusCode.JOB_ERROR, message=_because(text, cause), at=at)
    return Faulted(rest=retry.delay(faults, jitter), cause=cause)


def after_loss(job: Job, cause: str, on_loss: OnLoss, *, retry: RetryPolicy, jitter: float) -> Event:
    """What becomes of a job whose agent is lost: the executor that ran it has said whether it may run once more."""
    if on_loss is OnLoss.RETRY:
        return after_fault(job, cause, None, retry=retry, jitter=jitter)
    text = f"{MESSAGE[StatusCode.JOB_ERROR]} {cause} It is not run again, because it may have had effects already."
    return Failed(code=StatusCode.JOB_ERROR, message=text)


def _error(job: Job, error: object, at: datetime | None, retry: RetryPolicy, jitter: float) -> Event:
    """What an agent's error means; one that it calls fatal is the end at once."""
    details = error if isinstance(error, Mapping) else {}
    cause = _brief(details.get("message"))
    if details.get("fatal"):
        return Failed(code=StatusCode.JOB_ERROR, message=_because(MESSAGE[StatusCode.JOB_ERROR], cause), at=at)
    return after_fault(job, cause, at, retry=retry, jitter=jitter)


def _brief(said: object) -> str:
    """What an agent says to the user; every portal reads it again at every poll, so it is not a log."""
    text = str(said or "").strip()
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} [...]"


def _because(text: str, cause: str) -> str:
    return f"{text} {cause}" if cause else text


def _nonzero(job: Job, exit_code: int | None, results: Mapping[str, Any]) -> str:
    said = _brief(results.get("status_message"))
    if not said and job.spec.requires_db and exit_code is not None:
        said = DB_EXIT_MESSAGES.get(exit_code, "")
    text = MESSAGE[StatusCode.NONZERO_EXIT]
    return f"{text}: {said}" if said else text


def _number(value: object) -> int | None:
    """The exit code; None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None
