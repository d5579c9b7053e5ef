"""`POST backends/{backend}/prepare-for-reboot`, `GET backends/{backend}/reboot-status`: switching machines off."""

from aiohttp import web
from attrs import frozen

from controller.dialects.native import query
from controller.engine import operating
from controller.web import json_api
from controller.web.keys import ENGINE


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


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_post("/backends/{backend}/prepare-for-reboot", prepare_for_reboot)
    app.router.add_get("/backends/{backend}/reboot-status", show_reboot_status)


async def prepare_for_reboot(request: web.Request) -> web.Response:
    """Pause a backend and send its running jobs back to the queue."""
    principal, backend = await query.caller(request), request.match_info["backend"]
    return json_api.send(reboot_prepared(await request.config_dict[ENGINE].prepare_for_reboot(principal, backend)))


async def show_reboot_status(request: web.Request) -> web.Response:
    """Whether a backend's machines can be switched off."""
    principal, backend = await query.caller(request), request.match_info["backend"]
    return json_api.send(reboot_status(await request.config_dict[ENGINE].reboot_status(principal, backend)))


def reboot_prepared(value: operating.RebootPrepared) -> RebootPrepared:
    """What preparing for a reboot did."""
    return RebootPrepared(changed=value.changed, jobs=value.jobs, status=reboot_status(value.status))


def reboot_status(value: operating.RebootStatus) -> RebootStatus:
    """Whether a reboot would cut something short."""
    return RebootStatus(
        backend=value.backend,
        paused=value.paused,
        running=value.running,
        cancelling=value.cancelling,
        unconfirmed=value.unconfirmed,
        safe=value.safe,
    )
