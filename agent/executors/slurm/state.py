"""What Slurm's commands say about a job, and what that means for a run. Pure: text in, values out.

Written for the plain output of Slurm 20.11 and newer: `--json` came later and changes between versions.
"""

import enum
import re
from typing import Final

from attrs import frozen

QUEUE_FORMAT: Final = "%A|%T|%N|%r"
"""squeue: number, state, nodes, reason. The reason last: it is free text."""
FIND_FORMAT: Final = "%A|%T|%k"
"""squeue: number, state, comment."""
ACCOUNT_FORMAT: Final = "JobIDRaw,State,NodeList"
"""sacct, with `--parsable2`."""

_OVER: Final = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
})  # fmt: skip
_NEVER: Final = frozenset({
    "AssociationJobLimit", "BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionConfig", "PartitionNodeLimit",
    "PartitionTimeLimit", "QOSMaxCpuPerJobLimit", "QOSMaxMemoryPerJob", "QOSMaxWallDurationPerJobLimit",
    "AssocMaxCpuPerJobLimit", "AssocMaxMemPerJob", "AssocMaxWallDurationPerJobLimit",
})  # fmt: skip
_AWAY: Final = re.compile(
    r"unable to contact slurm|timed out|connect(ion)? (failure|refused|reset)|zero bytes|standby mode|"
    r"slurmctld.*(not respond|down)|protocol authentication|munge|try again|cannot resolve|communications? "
    r"(connection|shutdown|send|receive)|unexpected (message|missing)",
    re.IGNORECASE,
)
_LATER: Final = re.compile(
    r"submit ?limit|job submit limit|temporarily|slurm_submit.*full|AssocMaxSubmit|QOSMaxSubmit|"
    r"slurm temporarily|maximum number of jobs",
    re.IGNORECASE,
)
_FIELD: Final = re.compile(r"(?:^|\s)(JobId|JobState|Reason|NodeList)=(\S*)")


class Answer(enum.Enum):
    """What a failed command means."""

    AWAY = "away"
    """Nobody knows: slurmctld or munge does not answer."""
    LATER = "later"
    """Slurm takes no more jobs just now."""
    REFUSED = "refused"


@frozen(kw_only=True)
class Row:
    """One job, as Slurm sees it."""

    job_id: int
    state: str
    """As `squeue` spells it in full, e.g. `RUNNING`."""
    node: str = ""
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether Slurm has done with it. `COMPLETING` is not over: processes may be left."""
        return self.state in _OVER

    @property
    def never_starts(self) -> bool:
        """Whether it waits for what cannot come true unless somebody changes the job or the partition."""
        return self.state == "PENDING" and self.reason in _NEVER


@frozen(kw_only=True)
class Verdict:
    """Why a run ended about which its supervisor left no last word."""

    timed_out: bool = False
    oom_killed: bool = False
    lost: str | None = None


def read_answer(stderr: str) -> Answer:
    """Which kind of failure a command's words describe."""
    if _AWAY.search(stderr):
        return Answer.AWAY
    return Answer.LATER if _LATER.search(stderr) else Answer.REFUSED


def parse_queue(text: str) -> dict[int, Row]:
    """The rows of `squeue --format QUEUE_FORMAT`; lines that are none are left out."""
    rows = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 3)
        if len(parts) == 4 and (job_id := _number(parts[0])) is not None:
            rows[job_id] = Row(job_id=job_id, state=_state(parts[1]), node=parts[2], reason=parts[3].strip("() "))
    return rows


def parse_found(text: str, mark: str) -> tuple[int, ...]:
    """Numbers of the jobs of `squeue --format FIND_FORMAT` whose comment is exactly `mark`, the oldest first."""
    found = []
    for line in text.splitlines():
        parts = line.strip().split("|", 2)
        if len(parts) == 3 and parts[2].strip() == mark and (job_id := _number(parts[0])) is not None:
            found.append(job_id)
    return tuple(sorted(found))


def parse_submitted(text: str) -> int | None:
    """The number that `sbatch --parsable` prints (`number` or `number;cluster`), whatever plugins print before it."""
    lines = text.strip().splitlines()
    return _number(lines[-1].split(";", 1)[0]) if lines else None


def parse_shown(text: str) -> Row | None:
    """The job of `scontrol --oneliner show job`; None if it shows none."""
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        fields.setdefault(name, value)
    job_id = _number(fields.get("JobId", ""))
    if job_id is None or not fields.get("JobState"):
        return None
    return Row(
        job_id=job_id,
        state=_state(fields["JobState"]),
        node=_node(fields.get("NodeList", "")),
        reason=fields.get("Reason", ""),
    )


def parse_accounted(text: str, job_id: int) -> Row | None:
    """The job of `sacct --allocations --parsable2 --noheader --format ACCOUNT_FORMAT`; None if it is not there."""
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 3 and _number(parts[0]) == job_id and parts[1].strip():
            return Row(job_id=job_id, state=_state(parts[1]), node=_node(parts[2]))
    return None


def judge(row: Row | None, *, started: bool, said: str = "") -> Verdict:
    """Why the run ended.

    :param row: what Slurm knows last; None if it does not know the job.
    :param started: whether the supervisor had begun.
    :param said: what the batch script printed, for reasons that nobody else tells.
    """
    if row is None:
        return Verdict(lost="Slurm no longer knows the job")
    where = f" on {row.node}" if row.node else ""
    match row.state:
        case "TIMEOUT" | "DEADLINE":
            return Verdict(timed_out=True)
        case "OUT_OF_MEMORY":
            return Verdict(oom_killed=True)
        case "CANCELLED":
            return Verdict()  # by somebody else: no fault of the machine's, so not worth another attempt
        case "COMPLETED" | "FAILED":
            what = "the supervisor was killed" if started else "the job's supervisor could not be started"
            detail = said.strip() or ("" if started or row.reason == "None" else row.reason)
            return Verdict(lost=f"{what}{where}" + (f": {detail}" if detail else ""))
        case _:
            reason = f" ({row.reason})" if row.reason not in ("", "None") else ""
            return Verdict(lost=f"Slurm ended the job{where}: {row.state}{reason}")


def _state(text: str) -> str:
    """`CANCELLED by 1000` and `RUNNING+` without what follows."""
    words = text.strip().upper().split()
    return words[0].rstrip("+") if words else ""


def _node(text: str) -> str:
    return "" if text in {"(null)", "None assigned", "None"} else text.strip()


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
