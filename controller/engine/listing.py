"""Lists of RAPs, and of jobs over all RAPs, page by page.

RAPs come newest first. Of jobs, what is not finished comes oldest first, as a queue is read; what history is part of,
newest first. No page reads more than a bounded part of history: one that looks for a rare state, or for a text, may
hold fewer entries than asked for, even none, and yet say where to go on.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from attrs import frozen

from controller.core.codes import JobState, StatusCode
from controller.core.errors import Rejected
from controller.core.model import JobId, Principal, RapId, Verb
from controller.core.storable import is_storable
from controller.engine.context import Context
from controller.engine.results import Page, RapSummary
from controller.store import jobs, raps
from controller.store.queries import Tx

ACTIVE: Final = "active"
STATES: Final = (*(state.value for state in JobState), ACTIVE)
LOOK: Final = 500
"""RAPs that one page may look through for jobs of a state or code."""
LOOK_RAPS: Final = 2000
"""RAPs that one page may look through for a text or a creator."""

_NEWEST: Final = 2**63 - 1
_LAST: Final = 2**31 - 1
"""No job's position in its RAP is that high."""


@frozen(kw_only=True)
class JobSummary:
    """One line of a list of jobs: without outputs and history."""

    id: JobId
    rap_id: RapId
    backend: str
    workspace: str
    action: str
    created_by: str
    state: JobState
    code: StatusCode
    message: str
    requires_db: bool
    weight: float
    attempt: int
    cancelled: bool
    faults: int
    not_before: datetime | None
    agent: str | None
    """The agent that holds, or last held, the job's newest attempt."""
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    code_changed_at: datetime


@frozen(kw_only=True)
class JobPage:
    """One page of jobs; `next_cursor` is None on the last. See `listing` for their order."""

    jobs: tuple[JobSummary, ...]
    next_cursor: str | None = None


async def list_raps(
    ctx: Context,
    principal: Principal,
    *,
    backend: str | None,
    workspace: str | None,
    state: str | None,
    limit: int,
    cursor: str | None,
    created_by: str | None = None,
    search: str | None = None,
) -> Page:
    """One page of RAPs, newest first. `state`: `active` (some job is not finished), `finished`, or None for both.

    :param created_by: the user for whom it was asked, in full.
    :param search: what is somewhere in the RAP's ids, names and actions; no character of it means anything else.

    :raises Rejected: the cursor is none of ours for these filters, or the state is neither word.
    """
    if state not in (None, "active", "finished"):
        raise Rejected("state must be 'active' or 'finished'", field="state")
    slugs = [slug for slug in principal.backends_for(Verb.READ) if backend in (None, slug)]
    before = None if cursor is None else _decode(cursor, 1)[0]
    wanted = {
        "backends": slugs,
        "before": before,
        "workspace": workspace,
        "page_size": limit + 1,
        "created_by": created_by,
        "search": None if search is None else _searched(search),
    }
    down_to = None
    async with ctx.db.connection() as tx:
        if state == "active":
            rows = await raps.list_active_page.all(tx, **wanted)
        else:
            if search is not None or created_by is not None:
                down_to = await _down_to(tx, slugs, workspace, before)
            rows = await raps.list_page.all(tx, **wanted, only_finished=state == "finished", down_to=down_to)
    last = rows[limit - 1].seq if len(rows) > limit else down_to
    return Page(
        raps=tuple(rap_summary(row) for row in rows[:limit]),
        next_cursor=None if last is None else _encode(last),
    )


async def _down_to(tx: Tx, slugs: list[str], workspace: str | None, before: int | None) -> int | None:
    """The oldest RAP that a page which looks for something may look at; None: all that there are."""
    newest = _NEWEST if before is None else before - 1
    window = await raps.window.all(tx, backends=slugs, workspace=workspace, before=newest, look=LOOK_RAPS)
    return window[-1].seq if len(window) == LOOK_RAPS else None


def _searched(text: str) -> str:
    """:raises Rejected: no text that is stored could have it."""
    if not is_storable(text):
        raise Rejected("search contains characters that cannot be stored", field="search")
    return text


async def list_jobs(
    ctx: Context,
    principal: Principal,
    *,
    backend: str | None,
    workspace: str | None,
    state: str | None,
    code: str | None,
    limit: int,
    cursor: str | None,
    created_by: str | None = None,
    search: str | None = None,
) -> JobPage:
    """One page of jobs. `state` is one of `STATES`; `code` a status code of that state, or of any if there is none.

    :param created_by: the user for whom it was asked, in full.
    :param search: what is somewhere in the job's ids, workspace and action; no character of it means anything else.

    :raises Rejected: the cursor is none of ours for these filters, or state or code are unknown or contradictory.
    """
    state = _check(state, code)
    slugs = [slug for slug in principal.backends_for(Verb.READ) if backend in (None, slug)]
    wanted = {
        "state": None if state == ACTIVE else state,
        "code": code,
        "created_by": created_by,
        "search": None if search is None else _searched(search),
    }
    async with ctx.db.connection() as tx:
        if state in (ACTIVE, JobState.PENDING, JobState.RUNNING):
            (after,) = (0,) if cursor is None else _decode(cursor, 1)
            return await _active(tx, slugs, workspace, wanted, limit, after)
        before, position = (_NEWEST, _LAST) if cursor is None else _decode(cursor, 2)
        return await _history(tx, slugs, workspace, wanted, limit, before, position)


def _check(state: str | None, code: str | None) -> str | None:
    """The state that is meant: a code means its own."""
    if state is not None and state not in STATES:
        raise Rejected(f"state must be one of {', '.join(STATES)}", field="state")
    if code is None:
        return state
    if code not in {each.value for each in StatusCode}:
        raise Rejected("code is none of the status codes", field="code")
    meant = StatusCode(code).state
    if state not in (None, meant.value) and (state != ACTIVE or meant.is_terminal):
        raise Rejected(f"code {code} belongs to state {meant.value}, not to {state}", field="code")
    return meant.value


async def _active(
    tx: Tx, slugs: list[str], workspace: str | None, wanted: Mapping[str, str | None], limit: int, after: int
) -> JobPage:
    rows = await jobs.list_active_page.all(
        tx, backends=slugs, workspace=workspace, **wanted, page_size=limit + 1, after=after
    )
    more = len(rows) > limit
    return JobPage(jobs=await _summaries(tx, rows[:limit]), next_cursor=_encode(rows[limit - 1].seq) if more else None)


async def _history(
    tx: Tx,
    slugs: list[str],
    workspace: str | None,
    wanted: Mapping[str, str | None],
    limit: int,
    before: int,
    position: int,
) -> JobPage:
    # Without a filter every RAP has something for the page; the first may have been shown in full already.
    look = LOOK if any(value is not None for value in wanted.values()) else limit + 2
    window = await raps.window.all(tx, backends=slugs, workspace=workspace, before=before, look=look)
    seqs = {row.id: row.seq for row in window}
    rows = await jobs.list_page.all(
        tx,
        rap_ids=list(seqs),
        rap_seqs=list(seqs.values()),
        **wanted,
        page_size=limit + 1,
        before=before,
        before_position=position,
    )
    shown = await _summaries(tx, rows[:limit])
    if len(rows) > limit:
        last = rows[limit - 1]
        return JobPage(jobs=shown, next_cursor=_encode(seqs[last.rap_id], last.position))
    return JobPage(jobs=shown, next_cursor=_encode(window[-1].seq - 1, _LAST) if len(window) == look else None)


async def _summaries(tx: Tx, rows: Sequence[jobs.ListedRow]) -> tuple[JobSummary, ...]:
    owners = {owner.id: owner.created_by for owner in await raps.owners.all(tx, ids=[row.rap_id for row in rows])}
    # What was pruned since the rows were read is not there any more.
    return tuple(_summary(row, owners[row.rap_id]) for row in rows if row.rap_id in owners)


def rap_summary(row: raps.SummaryRow) -> RapSummary:
    """The line of a RAP."""
    return RapSummary(
        id=RapId(row.id),
        backend=row.backend,
        workspace=row.workspace,
        created_by=row.created_by,
        project=row.project,
        repo_url=row.repo_url,
        branch=row.branch,
        commit=row.commit,
        created_at=row.created_at,
        requested_actions=tuple(row.requested_actions),
        traceparent=row.traceparent,
        counts={JobState(state): count for state, count in row.counts.items()},
    )


def _encode(*place: int) -> str:
    text = ".".join(str(part) for part in place)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(cursor: str, parts: int) -> Sequence[int]:
    fault = Rejected("cursor is not one that this API gave out for these filters", field="cursor")
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        place = [int(part) for part in text.split(".")]
    except (ValueError, binascii.Error) as error:
        raise fault from error
    if len(place) != parts or not 0 <= place[0] < 2**63 or not all(0 <= part < 2**31 for part in place[1:]):
        raise fault
    return place


def _summary(row: jobs.ListedRow, created_by: str) -> JobSummary:
    return JobSummary(
        id=JobId(row.id),
        rap_id=RapId(row.rap_id),
        backend=row.backend,
        workspace=row.workspace,
        action=row.action,
        created_by=created_by,
        state=JobState(row.state),
        code=StatusCode(row.code),
        message=row.message,
        requires_db=row.requires_db,
        weight=row.weight,
        attempt=row.attempt,
        cancelled=row.cancelled,
        faults=row.faults,
        not_before=row.not_before,
        agent=row.agent,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        code_changed_at=row.code_changed_at,
    )
