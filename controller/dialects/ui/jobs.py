"""`/ui/jobs/{job}`: one job: its history by attempts, what it used, the end of its log, its outputs."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from aiohttp import web
from attrs import frozen

from common import quantities
from controller.core.codes import MESSAGE, JobState, StatusCode
from controller.core.model import Job, Principal, Verb
from controller.dialects.ui import asking, live, plot, session, turns
from controller.engine.facade import Engine
from controller.engine.measuring import Series
from controller.engine.results import HistoryEntry, JobDetail
from controller.web.keys import CLOCK, ENGINE

_LOG_CHARACTERS: Final = 20_000


@frozen(kw_only=True)
class Attempt:
    """A part of the history: before the first attempt, number 0."""

    number: int
    entries: tuple[tuple[HistoryEntry, float | None, bool], ...]
    """With how long (seconds) each lasted, or has lasted so far, and whether that is over; None: for ever."""


@frozen(kw_only=True)
class Usage:
    """How much of one resource a job uses or used."""

    name: str
    unit: str
    mean: float
    peak: float
    limit: float | None
    """In the same unit, where there is a limit."""
    plot: plot.Plot | None

    @property
    def share(self) -> float | None:
        """The peak as a part of the limit, 0 to 1."""
        return min(self.peak / self.limit, 1.0) if self.limit else None


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/jobs/{job}", show)


async def show(request: web.Request) -> web.Response:
    """One job."""
    visitor, job_id = await session.visitor(request), asking.job_id(request)
    engine: Engine = request.config_dict[ENGINE]
    principal = visitor.principal
    detail = await engine.job_detail(principal, job_id)
    watch = await live.source(engine, principal, rap=detail.job.spec.rap_id)
    detail = await engine.job_detail(principal, job_id)
    job = detail.job
    report = await engine.status(principal, [job.spec.rap_id])
    tail = await engine.log_tail(principal, job_id, attempt=None, characters=_LOG_CHARACTERS)
    series = await engine.job_metrics(principal, job_id, attempt=None)
    agents = [each for each in await engine.agents(principal) if each.backend == job.spec.backend]
    backend = next((each for each in await engine.backends(principal) if each.slug == job.spec.backend), None)
    siblings = {each.spec.action: each for each in report.jobs}
    around = turns.Surroundings(siblings=siblings, backend=backend, agents=agents, holder=detail.agent)
    values = {
        "section": "raps",
        "watch": watch,
        "detail": detail,
        "job": job,
        "turn": turns.of_job(job, around),
        "attempts": attempts(detail.history, request.config_dict[CLOCK].now()),
        "standard": MESSAGE.get(job.progress.code, MESSAGE[StatusCode.INITIATED]),
        "standard_of": lambda code: MESSAGE.get(code, MESSAGE[StatusCode.INITIATED]),
        "usages": usages(detail, series),
        "tail": tail,
        "policy": next((each.policy for each in agents if each.id == detail.agent), None),
        "needs": [(name, siblings.get(name)) for name in job.spec.needs],
        "dependants": [each for each in siblings.values() if job.spec.action in each.spec.needs],
        "actions": allowed(principal, job),
    }
    return asking.render(request, visitor, "job.html", values)


def allowed(principal: Principal, job: Job) -> Sequence[str]:
    """What the caller may do to a job as it is now."""
    over = job.progress.state.is_terminal
    may = []
    if principal.may(Verb.RUN, job.spec.backend) and not over:
        may.append("cancel")
    if principal.may(Verb.MANAGE, job.spec.backend):
        if job.progress.state is not JobState.SUCCEEDED and not job.progress.cancelled:
            may.append("retry")
        if not over:
            may.append("kill")
    return may


def attempts(history: Sequence[HistoryEntry], now: datetime) -> list[Attempt]:
    """The history by attempts, newest last."""
    ends = [each.at for each in history[1:]]
    told: list[tuple[HistoryEntry, float | None, bool]] = [
        (entry, (end - entry.at).total_seconds(), True) for entry, end in zip(history, ends, strict=False)
    ]
    if history:
        last = history[-1]
        told.append((last, None if last.state.is_terminal else (now - last.at).total_seconds(), False))
    return [Attempt(number=number, entries=tuple(part)) for number, part in groupby(told, lambda each: each[0].attempt)]


def usages(detail: JobDetail, series: Series) -> list[Usage]:
    """Processor and memory, as far as the backend's policy lets them be known."""
    metrics: Mapping[str, Any] = detail.job.metrics
    limits = detail.limits
    found = []
    for name, unit, key, limit, values in (
        (
            "Processor",
            "%",
            "cpu",
            limits.cpu_count * 100 if limits else None,
            [(point.at, point.cpu) for point in series.points],
        ),
        (
            "Memory",
            "MiB",
            "mem_mb",
            quantities.memory(limits.memory_limit) / 1024**2 if limits else None,
            [(point.at, point.mem_mb) for point in series.points],
        ),
    ):
        mean, peak = metrics.get(f"{key}_mean"), metrics.get(f"{key}_peak")
        if isinstance(mean, int | float) and isinstance(peak, int | float):
            found.append(Usage(name=name, unit=unit, mean=mean, peak=peak, limit=limit, plot=plot.draw(values, limit)))
    return found
