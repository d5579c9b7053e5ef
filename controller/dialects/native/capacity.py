"""`GET limits`, `POST backends/{backend}/limits`: how much of a backend jobs may use, changed while it runs."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web
from attrs import frozen

from controller.dialects.native import query
from controller.engine import capacity
from controller.web import auth, body, json_api
from controller.web.keys import ENGINE

BODY: Final = query.CONTRACT.shape("newLimits")


@frozen(kw_only=True)
class Pool:
    """One of a backend's two pools, in sums of weights."""

    configured: float
    override: float | None
    limit: float
    in_use: float
    running: int
    pending: int
    too_heavy: int


@frozen(kw_only=True)
class Capacity:
    """A backend's pools: of ordinary jobs, and of those that use the database."""

    backend: str
    workers: Pool
    db_workers: Pool


@frozen(kw_only=True)
class Limits:
    """Answer to `GET limits`."""

    limits: tuple[Capacity, ...]


@frozen(kw_only=True)
class LimitsSet:
    """Answer to `POST backends/{backend}/limits`: `changed` is empty if everything was so already."""

    changed: tuple[str, ...]
    capacity: Capacity


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/limits", list_limits)
    app.router.add_post("/backends/{backend}/limits", set_limits)


async def list_limits(request: web.Request) -> web.Response:
    """Limits and use of the backends that the caller manages, or of one of them."""
    principal = await auth.client(request)
    wanted = query.only_backend(request.query)
    return json_api.send(limits(await request.config_dict[ENGINE].limits(principal, wanted)))


async def set_limits(request: web.Request) -> web.Response:
    """Change the limits of a backend."""
    principal = await query.caller(request)
    changes = new_limits(await body.read(request, query.MAX_BODY))
    done = await request.config_dict[ENGINE].set_limits(principal, request.match_info["backend"], changes)
    return json_api.send(LimitsSet(changed=done.changed, capacity=_capacity(done.capacity)))


def new_limits(raw: bytes) -> dict[str, float | None]:
    """The body of `POST backends/{backend}/limits`: only the limits that are to change; null is the settings' value.

    What numbers are limits is the engine's to say: JSON's own text can spell infinities and NaN.

    :raises MalformedBody: it is not what the contract says.
    """
    found = body.parse_unicode(raw)
    BODY.check(found)
    return {name: None if value is None else float(value) for name, value in found.items()}


def limits(values: Sequence[capacity.CapacityView]) -> Limits:
    """The limits of several backends."""
    return Limits(limits=tuple(_capacity(each) for each in values))


def _capacity(value: capacity.CapacityView) -> Capacity:
    return Capacity(backend=value.backend, workers=_pool(value.workers), db_workers=_pool(value.db_workers))


def _pool(value: capacity.PoolView) -> Pool:
    return Pool(
        configured=value.configured,
        override=value.override,
        limit=value.limit,
        in_use=value.in_use,
        running=value.running,
        pending=value.pending,
        too_heavy=value.too_heavy,
    )
