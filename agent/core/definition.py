"""What a RUNJOB or CANCELJOB task says about its job, checked before anything is touched (reference 2.4).

Everything that becomes part of a path (ids, workspace, action, output patterns) is checked here, so that a
definition cannot lead the agent out of its folders. Unknown keys are ignored: definitions may grow.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from agent.core.errors import BadDefinition
from common import quantities
from common.convert import Malformed, structure

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")
_ID: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_YEAR_10000: Final = 253402300800
"""Unix seconds of the first moment that `datetime` cannot tell."""


@frozen(kw_only=True)
class Study:
    """The study that a job belongs to; differs from the code it runs for reusable actions."""

    git_repo_url: str = ""
    commit: str = ""
    branch: str = ""


@frozen(kw_only=True)
class JobDefinition:
    """A job as the controller describes it."""

    id: str
    rap_id: str = ""
    repo_url: str
    commit: str
    study: Study = field(factory=Study)
    workspace: str
    action: str
    created_at: float
    """Unix seconds."""
    image: str
    image_sha: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(factory=dict, repr=False)
    input_job_ids: tuple[str, ...] = ()
    output_spec: Mapping[str, str] = field(factory=dict)
    """Glob -> privacy level."""
    allow_database_access: bool = False
    database_name: str | None = None
    level4_max_csv_rows: int = 5000
    level4_max_filesize: int = 16 * 1024 * 1024
    """Bytes."""
    level4_file_types: tuple[str, ...] = ()
    user: str = ""
    cpu_count: float = 2.0
    memory_limit: Any = "4G"

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes."""
        return parse_memory(self.memory_limit)


def parse_memory(limit: object) -> int:
    """Bytes of a limit such as `4G`, `512m`, `1073741824` or the number itself: see `common.quantities.memory`.

    :raises BadDefinition: it is none of these, or not above zero.
    """
    text = limit if isinstance(limit, str) else str(limit) if type(limit) is int else ""
    try:
        return quantities.memory(text)
    except ValueError:
        raise BadDefinition(
            f"memory_limit: {limit!r} is not a size such as 4G, 512m or a number of bytes (where the controller has it "
            "from: <BACKEND>_JOB_MEMORY_LIMIT, DEFAULT_JOB_MEMORY_LIMIT)"
        ) from None


def time_limit(offered: float | None, own: float | None) -> float | None:
    """Seconds that a job may run: the smaller of the controller's limit and the agent's own; None for no limit.

    :raises BadDefinition: the controller's is not above zero.
    """
    if offered is not None and not 0 < offered < math.inf:
        raise BadDefinition(f"time_limit: {offered} is not above zero")
    return min((limit for limit in (offered, own) if limit is not None), default=None)


def check_id(value: str, name: str) -> str:
    """`value`, if it can be a file's name without leading anywhere else.

    :raises BadDefinition: it cannot.
    """
    if not _ID.fullmatch(value) or len(value) > 200:
        raise BadDefinition(f"{name}: {value!r} is not an id")
    return value


def check_workspace(value: str) -> str:
    """`value`, if it is a workspace's name.

    :raises BadDefinition: it is not.
    """
    if not _NAME.fullmatch(value) or len(value) > 200:
        raise BadDefinition("workspace: Invalid workspace name (allowed are alphanumeric, dash and underscore)")
    return value


def _check_action(value: str) -> None:
    if not value or value in (".", "..") or re.search(r"[/\\\x00]", value) or len(value.encode()) > 200:
        raise BadDefinition(f"action: {value!r} cannot be the name of a log file")


def check_relative(path: str, name: str) -> str:
    """`path`, if it is a relative POSIX path or glob that stays below where it starts.

    :raises BadDefinition: it is not.
    """
    parts = path.split("/")
    if not path or "\x00" in path or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise BadDefinition(f"{name}: {path!r} is not a path inside the workspace")
    return path


def check_created_at(value: float) -> float:
    """`value`, if it is a moment that can be told as a date: it names the month's folder of logs.

    :raises BadDefinition: it is not.
    """
    if not math.isfinite(value) or not 0 <= value < _YEAR_10000:
        raise BadDefinition(f"created_at: {value} is not a time")
    return value


def parse_definition(data: Mapping[str, Any]) -> JobDefinition:
    """The definition of a RUNJOB or CANCELJOB task.

    :raises BadDefinition: naming the field that is missing or wrong.
    """
    try:
        definition = structure(dict(data), JobDefinition)
    except Malformed as error:
        raise BadDefinition(f"definition: {error}") from error
    check_id(definition.id, "id")
    check_workspace(definition.workspace)
    _check_action(definition.action)
    for job_id in definition.input_job_ids:
        check_id(job_id, "input_job_ids")
    for pattern in definition.output_spec:
        check_relative(pattern, "output_spec")
    for variable, value in definition.env.items():
        if not _VARIABLE.fullmatch(variable) or "\x00" in value:
            raise BadDefinition(f"env: {variable!r} is not a usable environment variable")
    if any("\x00" in arg for arg in definition.args):
        raise BadDefinition("args: an argument contains a zero byte")
    if not _COMMIT.fullmatch(definition.commit):
        raise BadDefinition(f"commit: {definition.commit!r} is not a full commit hash")
    if not math.isfinite(definition.cpu_count) or definition.cpu_count <= 0:
        raise BadDefinition(f"cpu_count: {definition.cpu_count} is not above zero")
    check_created_at(definition.created_at)
    parse_memory(definition.memory_limit)
    return definition
