"""`/ui/raps`, `/ui/raps/{rap}`: the list, and one RAP with its graph, its timeline and what each job waits for."""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Final

from aiohttp import web
from attrs import frozen
from yarl import URL

from controller.core.codes import JobState, StatusCode
from controller.core.errors import NotFound, Rejected
from controller.core.model import JobId, Principal, RapId, Verb
from controller.dialects.ui import asking, graph, live, session, timeline, turns, words
from controller.engine.facade import Engine
from controller.engine.results import JobDetail
from controller.web.keys import CLOCK, ENGINE

_PAGE: Final = 50
_STATES: Final = ("active", "finished")
_FILTERS: Final = ("q", "workspace", "by", "backend", "state")


@frozen(kw_only=True)
class JobLine:
    """A job on the page of its RAP."""

    detail: JobDetail
    turn: turns.Turn
    bar: timeline.Bar

    @property
    def action(self) -> str:
        return self.detail.job.spec.action

    @property
    def state(self) -> JobState:
        return self.detail.job.progress.state


@frozen(kw_only=True)
class Answer:
    """Why a RAP is not done, or how it ended."""

    sentences: tuple[str, ...]
    whose: tuple[str, ...] = ()
    """Whose turn it is; empty once it has ended."""


def add_to(app: web.Application) -> None:
    """Serve them."""
    app.router.add_get("/raps", show_list)
    app.router.add_get("/raps/{rap}", show)


async def show_list(request: web.Request) -> web.Response:
    """One page of RAPs, newest first."""
    visitor = await session.visitor(request)
    engine: Engine = request.config_dict[ENGINE]
    wanted = {name: asking.text(request, name) for name in _FILTERS}
    found = wanted["q"]
    if found is not None and asking.ID.fullmatch(found):
        place = await _named(engine, visitor.principal, found)
        if place is not None:
            return web.Response(status=303, headers={"Location": place})
    fault, page = "", None
    watch = await live.source(engine, visitor.principal)
    try:
        page = await engine.list_raps(
            visitor.principal,
            backend=wanted["backend"],
            workspace=wanted["workspace"],
            state=wanted["state"],
            limit=_PAGE,
            cursor=asking.text(request, "cursor"),
            created_by=wanted["by"],
            search=found,
        )
    except Rejected as error:
        fault = f"{error.message[0].upper()}{error.message[1:]}."
    filters = {name: value for name, value in wanted.items() if value}
    more = page.next_cursor if page else None
    values = {
        "section": "raps",
        "watch": watch,
        "raps": page.raps if page else (),
        "fault": fault,
        "filters": filters,
        "states": _STATES,
        "first": "cursor" not in request.query,
        "newest": str(URL("/ui/raps").with_query(filters)),
        "older": str(URL("/ui/raps").with_query({**filters, "cursor": more})) if more else None,
    }
    return asking.render(request, visitor, "raps.html", values, status=400 if fault else 200)


async def show(request: web.Request) -> web.Response:
    """One RAP."""
    visitor, rap_id = await session.visitor(request), asking.rap_id(request)
    engine: Engine = request.config_dict[ENGINE]
    watch = await live.source(engine, visitor.principal, rap=rap_id)
    detail = await engine.rap_detail(visitor.principal, rap_id)
    slug = detail.rap.backend
    backend = next((each for each in await engine.backends(visitor.principal) if each.slug == slug), None)
    agents = [each for each in await engine.agents(visitor.principal) if each.backend == slug]
    siblings = {each.job.spec.action: each.job for each in detail.jobs}
    now = request.config_dict[CLOCK].now()
    line = timeline.of_jobs(detail.jobs, now, dict(words.CODES))
    lines = [
        JobLine(
            detail=bar.job,
            turn=turns.of_job(
                bar.job.job,
                turns.Surroundings(siblings=siblings, backend=backend, agents=agents, holder=bar.job.agent),
            ),
            bar=bar,
        )
        for bar in (line.bars if line else ())
    ]
    values = {
        "section": "raps",
        "watch": watch,
        "rap": detail.rap,
        "state": state_of(detail.rap.counts),
        "lines": lines,
        "answer": answer(lines, now),
        "timeline": line,
        "drawing": graph.draw({each.job.spec.action: each.job.spec.needs for each in detail.jobs}),
        "jobs": siblings,
        "may_cancel": visitor.principal.may(Verb.RUN, slug)
        and any(not job.progress.state.is_terminal for job in siblings.values()),
    }
    return asking.render(request, visitor, "rap.html", values)


def state_of(counts: object) -> JobState:
    """The state of a RAP as a whole: running while something does, failed if something did."""
    known = counts if isinstance(counts, dict) else {}
    for state in (JobState.RUNNING, JobState.PENDING, JobState.FAILED):
        if known.get(state):
            return state
    return JobState.SUCCEEDED


def answer(lines: Sequence[JobLine], now: datetime) -> Answer:
    """Why the RAP is not done and whose turn it is, or how it ended."""
    of_state = {state: [line for line in lines if line.state is state] for state in JobState}
    failed = of_state[JobState.FAILED]
    total = words.count(len(lines), "job")
    if not of_state[JobState.PENDING] and not of_state[JobState.RUNNING]:
        ends = [line.detail.job.progress.completed_at for line in lines]
        ended = max((end for end in ends if end is not None), default=None)
        when = f" {words.ago(ended, now)}" if ended else ""
        if not failed:
            return Answer(
                sentences=(f"It ended{when}, and {'its job' if len(lines) == 1 else f'all {total}'} succeeded.",)
            )
        return Answer(sentences=(f"It ended{when}; {len(failed)} of {total} did not succeed.", *_causes(failed)))
    sentences = [f"{len(of_state[JobState.SUCCEEDED])} of {total} succeeded."]
    sentences += _causes(failed)
    if of_state[JobState.RUNNING]:
        are = "is" if len(of_state[JobState.RUNNING]) == 1 else "are"
        sentences.append(f"{words.names([line.action for line in of_state[JobState.RUNNING]])} {are} at work.")
    waiting = [line for line in of_state[JobState.PENDING] if line.turn.whose != turns.NEEDED]
    for sentence, alike in groupby(
        sorted(waiting, key=lambda line: line.turn.sentence), lambda line: line.turn.sentence
    ):
        sentences.append(f"{words.names([line.action for line in alike])}: {sentence[0].lower()}{sentence[1:]}")
    dependent = len(of_state[JobState.PENDING]) - len(waiting)
    if dependent:
        sentences.append(f"{words.count(dependent, 'job')} {'needs' if dependent == 1 else 'need'} what these make.")
    unfinished = [*of_state[JobState.RUNNING], *waiting]
    movers = list(dict.fromkeys(line.turn.whose for line in unfinished))
    return Answer(
        sentences=tuple(sentences),
        whose=tuple(mover for mover in movers if mover != turns.ITSELF) or (turns.ITSELF,),
    )


def _causes(failed: Sequence[JobLine]) -> list[str]:
    """What failed by itself, rather than because something else did."""
    roots = [line.action for line in failed if line.detail.job.progress.code is not StatusCode.DEPENDENCY_FAILED]
    rest = len(failed) - len(roots)
    with_it = f", and with {'it' if len(roots) == 1 else 'them'} {words.count(rest, 'job')}" if rest else ""
    return [f"{words.names(roots)} failed{with_it}."] if roots else []


async def _named(engine: Engine, principal: Principal, found: str) -> str | None:
    """The page of the RAP or job with this id."""
    try:
        await engine.job_detail(principal, JobId(found))
    except NotFound:
        report = await engine.status(principal, [RapId(found)])
        return None if report.unrecognised else f"/ui/raps/{found}"
    return f"/ui/jobs/{found}"
