"""The native API's bodies and queries: what the CLI and the dashboard read and ask for.

Contract: schemas/native/openapi.yaml. Field order is the order of keys in the JSON. Times are ISO 8601 in UTC
with microseconds. A later version may add a field but never removes or renames one: readers must ignore keys
that they do not know.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from controller.web.contract import Contract

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 200
DEFAULT_LOG: Final = 64 * 1024
MAX_LOG: Final = 1024 * 1024
"""Characters of a log in one answer."""
MAX_OFFSET: Final = 2_000_000_000
"""Characters; offset and limit together stay below what a 32-bit column counts to."""
MAX_BODY: Final = 4096
"""Bytes of a request's body."""

CONTRACT: Final = Contract.load("native")
MAINTENANCE: Final = CONTRACT.shape("maintenance")
NEW_FLAGS: Final = CONTRACT.shape("newFlags")


@frozen(kw_only=True)
class Rap:
    """One accepted request."""

    id: str
    state: str
    """`pending`, `running`, `succeeded` or `failed`, of the RAP as a whole."""
    backend: str
    workspace: str
    project: str
    created_by: str
    created_at: str
    repo_url: str
    branch: str
    commit: str
    requested_actions: tuple[str, ...]
    counts: Mapping[str, int]
    """How many jobs are in each of the four states."""
    trace_id: str | None
    traceparent: str


@frozen(kw_only=True)
class Output:
    """One output file, as far as the backend lets it be named."""

    path: str
    level: str
    size: int
    sha256: str
    excluded: bool
    message: str


@frozen(kw_only=True)
class Change:
    """One entry of a job's history."""

    at: str
    attempt: int
    state: str
    code: str
    message: str


@frozen(kw_only=True)
class Job:
    """One action of a RAP."""

    id: str
    rap_id: str
    action: str
    kind: str
    state: str
    code: str
    message: str
    attempt: int
    cancelled: bool
    created_at: str
    started_at: str | None
    completed_at: str | None
    updated_at: str
    code_changed_at: str
    backend: str
    workspace: str
    run_command: str
    requires_db: bool
    needs: tuple[str, ...]
    repo_url: str
    branch: str
    commit: str
    agent: str | None
    exit_code: str | None
    metrics: Mapping[str, Any]
    outputs: tuple[Output, ...]
    history: tuple[Change, ...]
    trace_id: str | None
    traceparent: str


@frozen(kw_only=True)
class RapPage:
    """Answer to `GET raps`: newest first; `next_cursor` is null on the last page."""

    raps: tuple[Rap, ...]
    next_cursor: str | None


@frozen(kw_only=True)
class RapDetail:
    """Answer to `GET raps/{id}`: jobs are in the order of their graph, dependencies first."""

    rap: Rap
    jobs: tuple[Job, ...]


@frozen(kw_only=True)
class Log:
    """Answer to `GET jobs/{id}/log`. Offsets count characters; the next page starts at `next_offset`."""

    job_id: str
    attempt: int
    offset: int
    text: str
    next_offset: int
    complete: bool
    truncated: bool


@frozen(kw_only=True)
class Agent:
    """An agent, by what it said of itself and when it was last heard of."""

    id: str
    backend: str
    version: str
    executor: str
    slots: int
    last_seen: str | None
    egress: Mapping[str, Any]
    on_loss: str
    load: int
    silent: bool


@frozen(kw_only=True)
class Agents:
    """Answer to `GET agents`."""

    agents: tuple[Agent, ...]


@frozen(kw_only=True)
class Check:
    """How the last check of a backend's database ended; `answer` is null if it could not be carried out."""

    kind: str
    finished_at: str
    answer: str | None


@frozen(kw_only=True)
class Backend:
    """A backend and the operator's switches on it."""

    slug: str
    last_seen: str | None
    paused: bool
    paused_since: str | None
    db_maintenance: bool
    db_maintenance_since: str | None
    db_maintenance_type: str | None
    checks: tuple[Check, ...]


@frozen(kw_only=True)
class Backends:
    """Answer to `GET backends`: those that the caller's token opens, in the configured order."""

    backends: tuple[Backend, ...]


@frozen(kw_only=True)
class Flag:
    """One switch of a backend; `changed_at` is null if it was never set."""

    backend: str
    id: str
    value: str | None
    changed_at: str | None


@frozen(kw_only=True)
class Flags:
    """Answer to `GET flags`."""

    flags: tuple[Flag, ...]


@frozen(kw_only=True)
class FlagsSet:
    """Answer to `POST backends/{backend}/pause`, `unpause` and `maintenance`: `changed` is empty if nothing did."""

    backend: str
    changed: tuple[str, ...]
    flags: tuple[Flag, ...]


@frozen(kw_only=True)
class RebootStatus:
    """Answer to `GET backends/{backend}/reboot-status`."""

    backend: str
    paused: bool
    running: int
    cancelling: int
    unconfirmed: tuple[str, ...]
    safe: bool


@frozen(kw_only=True)
class RebootPrepared:
    """Answer to `POST backends/{backend}/prepare-for-reboot`: `jobs` were sent back to the queue."""

    changed: tuple[str, ...]
    jobs: tuple[str, ...]
    status: RebootStatus


@frozen(kw_only=True)
class Maintenance:
    """Body of `POST backends/{backend}/maintenance`."""

    on: bool
    disable_checks: bool = False


@frozen(kw_only=True)
class RapQuery:
    """The query of `GET raps`."""

    limit: int = DEFAULT_PAGE
    cursor: str | None = None
    backend: str | None = None
    workspace: str | None = None
    state: str | None = None
    """`active` or `finished`."""


@frozen(kw_only=True)
class LogQuery:
    """The query of `GET jobs/{id}/log`; without `attempt` it is about the newest one."""

    offset: int = 0
    limit: int = DEFAULT_LOG
    attempt: int | None = None
