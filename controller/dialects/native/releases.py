"""`POST jobs/{job}/release`, `GET jobs/{job}/releases`: outputs that leave because somebody has reviewed them.

A release is answered by an agent of the backend, so the POST only says how it is called; the GET says what came of it.
"""

from collections.abc import Sequence
from typing import Final

from aiohttp import web
from attrs import frozen

from controller.core.releases import REFUSALS, Release
from controller.dialects.native import query, times
from controller.engine import releasing
from controller.web import body, json_api
from controller.web.keys import ENGINE

BODY: Final = query.CONTRACT.shape("newRelease")
MAX_BODY: Final = 1024 * 1024
"""Bytes of a body that names paths."""


@frozen(kw_only=True)
class Released:
    """An output that has left."""

    path: str
    level: str
    size: int
    sha256: str


@frozen(kw_only=True)
class Refused:
    """An output that was named and stays inside."""

    path: str
    message: str


@frozen(kw_only=True)
class ReleaseNow:
    """A release, as far as it is."""

    number: int
    state: str
    """`waiting`, `done` or `failed`."""
    message: str
    paths: tuple[str, ...] | None
    """Null: all that the policy lets out."""
    requested_by: str
    requested_at: str
    agent: str | None
    finished_at: str | None
    released: tuple[Released, ...]
    refused: tuple[Refused, ...]
    withheld: int
    left_out: int


@frozen(kw_only=True)
class Asked:
    """Answer to `POST jobs/{job}/release`: `changed` is false if the same was asked for and is not answered yet."""

    changed: bool
    job_id: str
    release: ReleaseNow


@frozen(kw_only=True)
class Releases:
    """Answer to `GET jobs/{job}/releases`, oldest first."""

    releases: tuple[ReleaseNow, ...]


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_post("/jobs/{job}/release", release)
    app.router.add_get("/jobs/{job}/releases", show)


async def release(request: web.Request) -> web.Response:
    """Let outputs out."""
    principal, job = await query.caller(request), query.job_id(request)
    paths = wanted_paths(await body.read(request, MAX_BODY))
    return json_api.send(asked(await request.config_dict[ENGINE].release_outputs(principal, job, paths)))


async def show(request: web.Request) -> web.Response:
    """The releases of a job."""
    principal, job = await query.caller(request), query.job_id(request)
    return json_api.send(releases(await request.config_dict[ENGINE].releases(principal, job)))


def wanted_paths(raw: bytes) -> Sequence[str] | None:
    """The outputs that a body names; None for an empty body, and if it names none.

    :raises MalformedBody: it is not what the contract says.
    """
    if not raw:
        return None
    found = body.parse_unicode(raw)
    BODY.check(found)
    paths: Sequence[str] | None = found.get("paths")
    return paths


def asked(value: releasing.ReleaseAsked) -> Asked:
    """What asking came to."""
    return Asked(changed=value.changed, job_id=value.job_id, release=_now(value.release))


def releases(values: Sequence[Release]) -> Releases:
    """Every release of a job."""
    return Releases(releases=tuple(_now(each) for each in values))


def _now(value: Release) -> ReleaseNow:
    return ReleaseNow(
        number=value.number,
        state=value.state.value,
        message=value.message,
        paths=value.paths,
        requested_by=value.by,
        requested_at=times.timestamp(value.at),
        agent=value.agent,
        finished_at=times.maybe(value.finished_at),
        released=tuple(
            Released(path=each.path, level=each.level, size=each.size, sha256=each.sha256) for each in value.released
        ),
        refused=tuple(Refused(path=each.path, message=REFUSALS[each.reason]) for each in value.refused),
        withheld=value.withheld,
        left_out=value.left_out,
    )
