"""RAPs as rows."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from attrs import frozen

from controller.store.queries import query, scalar


@frozen
class FoundRow:
    id: str
    repo_url: str
    workspace: str
    commit: str
    backend: str
    job_count: int


@frozen
class OwnerRow:
    id: str
    created_by: str
    project: str
    orgs: list[str]


@frozen
class SummaryRow:
    id: str
    seq: int
    backend: str
    workspace: str
    created_by: str
    project: str
    repo_url: str
    branch: str
    commit: str
    created_at: datetime
    requested_actions: list[str]
    traceparent: str
    counts: Mapping[str, int]


@frozen
class WindowRow:
    id: str
    seq: int


@frozen
class RequestRow:
    id: str
    dialect: str
    backend: str
    workspace: str
    repo_url: str
    branch: str
    commit: str
    database_name: str
    codelists_ok: bool
    created_by: str
    project: str
    orgs: list[str]
    analysis_scope: Mapping[str, Sequence[str]]
    parent_traceparent: str | None


insert = query("raps", "insert", str, scalar("id"))
find = query("raps", "find", FoundRow)
owners = query("raps", "owners", OwnerRow)
list_page = query("raps", "list_page", SummaryRow)
list_active_page = query("raps", "list_active_page", SummaryRow)
summary = query("raps", "summary", SummaryRow)
window = query("raps", "window", WindowRow)
request = query("raps", "request", RequestRow)
active_others = query("raps", "active_others", str, scalar("rap_id"))
