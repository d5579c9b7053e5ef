"""`GET jobs/{job}/metrics`: how a job used its machine over time."""

from collections.abc import Mapping

from aiohttp import web
from attrs import frozen

from controller.dialects.native import query, times
from controller.engine import measuring
from controller.web import auth, json_api
from controller.web.keys import ENGINE


@frozen(kw_only=True)
class MetricsQuery:
    """The query of `GET jobs/{id}/metrics`; without `attempt` it is about the newest one."""

    attempt: int | None = None


@frozen(kw_only=True)
class Point:
    """One sample."""

    at: str
    cpu: float | None
    mem_mb: float | None
    metrics: Mapping[str, float]


@frozen(kw_only=True)
class Series:
    """Answer to `GET jobs/{id}/metrics`: at most 500 points, the newest closest together."""

    job_id: str
    attempt: int
    complete: bool
    points: tuple[Point, ...]


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/jobs/{job}/metrics", show_metrics)


async def show_metrics(request: web.Request) -> web.Response:
    """The series of one attempt at a job."""
    principal = await auth.client(request)
    job = query.job_id(request)
    wanted = metrics_query(request.query)
    found = await request.config_dict[ENGINE].job_metrics(principal, job, attempt=wanted.attempt)
    return json_api.send(series(found))


def metrics_query(given: Mapping[str, str]) -> MetricsQuery:
    """The query of `GET jobs/{id}/metrics`.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = query.Parameters(given)
    found = MetricsQuery(attempt=parameters.number("attempt", least=1, most=2**31 - 1))
    parameters.done()
    return found


def series(value: measuring.Series) -> Series:
    """A series."""
    return Series(
        job_id=value.job_id,
        attempt=value.attempt,
        complete=value.complete,
        points=tuple(
            Point(at=times.timestamp(each.at), cpu=each.cpu, mem_mb=each.mem_mb, metrics=dict(each.metrics))
            for each in value.points
        ),
    )
