"""What a DBSTATUS or DBDATACHECK task asks for, and which answers of the database utilities are believed.

Their program prints its answer as the last line of its standard output. Anything but the allowed words is an error,
whose text does not repeat what was printed: it comes from where the data are (reference sections 2.4, 2.5).
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from attrs import frozen

from agent.core.errors import BadDefinition, JobError
from common.convert import Malformed, structure

DBSTATUS: Final = "dbstatus"
DBDATACHECK: Final = "dbdatacheck"
TYPES: Final = (DBSTATUS, DBDATACHECK)

_MONTH: Final = re.compile(r"[0-9]{6}")
_STATUS: Final = re.compile(r"(?:(db-maintenance|none);([0-2])|(db-maintenance|))")
_DATA: Final = frozenset({"OK", "FAILED"})


class CheckFailed(JobError):
    """The database utilities ended with an error."""

    fatal = False
    public: ClassVar[str] = "The check of the database failed; the details are in the backend's agent log."


class CheckTimedOut(JobError):
    """The database utilities took too long."""

    fatal = False
    public: ClassVar[str] = "The check of the database took too long."


class NoDatabase(JobError):
    """There is nothing to check: the backend has dummy data only."""

    public: ClassVar[str] = "This backend has dummy data only: there is no database to check."


class BadAnswer(JobError):
    """The database utilities printed something that is no answer."""

    public: ClassVar[str] = "The check of the database gave none of the allowed answers."


@frozen(kw_only=True)
class _StatusDefinition:
    database_name: str
    image: str
    image_sha: str | None = None


@frozen(kw_only=True)
class _DataDefinition:
    hes_expected_activity_month: str
    image: str
    image_sha: str | None = None


@frozen(kw_only=True)
class Program:
    """What is to be run for a check."""

    type: str
    image: str
    image_sha: str | None
    args: tuple[str, ...]


@frozen(kw_only=True)
class Answer:
    """What a check found."""

    status: str
    """`db-maintenance` or empty; `OK` or `FAILED`."""
    builds: int | None = None
    """How many builds of the database are under way, if the program said so; for the agent's log."""


def parse_check(type: str, data: Mapping[str, Any]) -> Program:
    """The program of a check's task. Unknown keys are ignored: definitions may grow.

    :raises BadDefinition: naming the field that is missing or wrong.
    """
    try:
        if type == DBSTATUS:
            status = structure(dict(data), _StatusDefinition)
            return Program(type=type, image=status.image, image_sha=status.image_sha, args=("in_maintenance_mode",))
        check = structure(dict(data), _DataDefinition)
    except Malformed as error:
        raise BadDefinition(f"definition: {error}") from error
    month = check.hes_expected_activity_month
    if not _MONTH.fullmatch(month):
        raise BadDefinition(f"hes_expected_activity_month: {month!r} is not a month written YYYYMM")
    return Program(type=type, image=check.image, image_sha=check.image_sha, args=("hes_cutoff_date_check", month))


def read_answer(type: str, output: bytes) -> Answer:
    """The answer in the program's standard output.

    :raises BadAnswer: it is none of the allowed ones.
    """
    lines = output.decode(errors="replace").strip().splitlines()
    said = lines[-1].strip() if lines else ""
    if type == DBDATACHECK and said in _DATA:
        return Answer(status=said)
    if type == DBSTATUS and (match := _STATUS.fullmatch(said)):
        mode, builds, plain = match.groups()
        status = (mode or plain or "").replace("none", "")
        return Answer(status=status, builds=None if builds is None else int(builds))
    raise BadAnswer("The last line that the database utilities printed is none of the allowed answers")
