"""`GET flags`, and the commands that set them: pausing, database maintenance, single switches."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web
from attrs import frozen

from controller.core.errors import Rejected
from controller.dialects.native import query, times
from controller.engine import operating
from controller.web import auth, body, json_api
from controller.web.keys import ENGINE

MAINTENANCE: Final = query.CONTRACT.shape("maintenance")
NEW_FLAGS: Final = query.CONTRACT.shape("newFlags")


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
class Maintenance:
    """Body of `POST backends/{backend}/maintenance`."""

    on: bool
    disable_checks: bool = False


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/flags", list_flags)
    app.router.add_post("/backends/{backend}/flags", set_flags)
    app.router.add_post("/backends/{backend}/pause", pause)
    app.router.add_post("/backends/{backend}/unpause", unpause)
    app.router.add_post("/backends/{backend}/maintenance", maintain)


async def list_flags(request: web.Request) -> web.Response:
    """The switches of the caller's backends, or of one of them."""
    principal = await auth.client(request)
    wanted = query.only_backend(request.query)
    return json_api.send(flags(await request.config_dict[ENGINE].flags(principal, wanted)))


async def set_flags(request: web.Request) -> web.Response:
    """Set single switches of a backend."""
    principal, backend = await query.caller(request), request.match_info["backend"]
    wanted = new_flags(await body.read(request, query.MAX_BODY))
    return json_api.send(flags_set(await request.config_dict[ENGINE].set_flags(principal, backend, wanted)))


async def pause(request: web.Request) -> web.Response:
    """Start no more jobs on a backend."""
    principal, backend = await query.caller(request), request.match_info["backend"]
    return json_api.send(flags_set(await request.config_dict[ENGINE].pause(principal, backend)))


async def unpause(request: web.Request) -> web.Response:
    """Start jobs on a backend again."""
    principal, backend = await query.caller(request), request.match_info["backend"]
    return json_api.send(flags_set(await request.config_dict[ENGINE].unpause(principal, backend)))


async def maintain(request: web.Request) -> web.Response:
    """Begin or end the maintenance of a backend's database."""
    principal, backend = await query.caller(request), request.match_info["backend"]
    wanted = maintenance(await body.read(request, query.MAX_BODY))
    engine = request.config_dict[ENGINE]
    if wanted.on:
        done = await engine.start_maintenance(principal, backend, disable_checks=wanted.disable_checks)
    else:
        done = await engine.end_maintenance(principal, backend)
    return json_api.send(flags_set(done))


def new_flags(raw: bytes) -> dict[str, str | None]:
    """The body of `POST backends/{backend}/flags`. Which flags there are is the engine's to say.

    :raises MalformedBody: it is not what the contract says.
    """
    found = body.parse_unicode(raw)
    NEW_FLAGS.check(found)
    return dict(found)


def maintenance(raw: bytes) -> Maintenance:
    """The body of `POST backends/{backend}/maintenance`.

    :raises MalformedBody: it is not what the contract says; an unknown key is a fault, as a misspelt one would be.
    :raises Rejected: checks are to be disabled by the end of maintenance, which makes no sense.
    """
    found = body.parse_unicode(raw)
    MAINTENANCE.check(found)
    asked = Maintenance(on=found["on"], disable_checks=found.get("disable_checks", False))
    if asked.disable_checks and not asked.on:
        raise Rejected(
            "disable_checks goes with on: checks are only disabled during maintenance", field="disable_checks"
        )
    return asked


def flags(values: Sequence[operating.FlagView]) -> Flags:
    """The switches of backends."""
    return Flags(flags=tuple(_flag(each) for each in values))


def flags_set(value: operating.FlagsSet) -> FlagsSet:
    """What a command did to a backend's switches."""
    return FlagsSet(backend=value.backend, changed=value.changed, flags=tuple(_flag(each) for each in value.flags))


def _flag(value: operating.FlagView) -> Flag:
    return Flag(backend=value.backend, id=value.id, value=value.value, changed_at=times.maybe(value.changed_at))
