"""Two questions of a load balancer: are you alive, and can you work?"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from aiohttp import web

log = structlog.get_logger()

Check = Callable[[], Awaitable[object]]
"""Returns if a part works and raises if it does not."""

TIMEOUT: Final = 5.0
"""Seconds that a check may take; slower counts as not working."""


def add_to(app: web.Application, checks: Mapping[str, Check]) -> None:
    """Serve `/healthz` (we answer) and `/readyz` (all `checks` pass, else 503 naming the others)."""

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(_: web.Request) -> web.Response:
        verdicts = await asyncio.gather(*(_passes(name, check) for name, check in checks.items()))
        failing = [name for name, passed in zip(checks, verdicts, strict=True) if not passed]
        if failing:
            return web.json_response({"status": "unavailable", "failing": failing}, status=503)
        return web.json_response({"status": "ok"})

    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)


async def _passes(name: str, check: Check) -> bool:
    try:
        async with asyncio.timeout(TIMEOUT):
            await check()
    except Exception as error:
        # Whatever a part raises means "not ready"; the reason is for the log only.
        log.warning("not ready", check=name, reason=f"{type(error).__name__}: {error}")
        return False
    return True
