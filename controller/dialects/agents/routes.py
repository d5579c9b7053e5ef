"""The protocol of our agents, mounted at `/agent/v1`: declare, claim, report, send logs, hand back.

Everything an agent may say is in `common.protocol`; the contract for other implementers is
schemas/agents/openapi.yaml. Every path begins with the backend, and the token must be one of that backend's.
"""

from functools import partial
from typing import Final

import structlog
from aiohttp import hdrs, web

from controller.dialects.agents import mapping
from controller.web import body, json_api
from controller.web.errors import Unauthorized
from controller.web.keys import ENGINE, TOKENS

SMALL: Final = 64 * 1024
MEDIUM: Final = 2 * 1024 * 1024
LARGE: Final = 8 * 1024 * 1024
"""Bytes that a body may have: declarations; claims, logs and releases; reports."""


def make_app() -> web.Application:
    """The sub-application; the root application holds the engine, the tokens and the clock."""
    app = web.Application(middlewares=json_api.MIDDLEWARES)
    app.router.add_put("/{backend}/agents/{agent}", declare)
    app.router.add_post("/{backend}/claim", claim)
    app.router.add_post("/{backend}/reports", report)
    app.router.add_post("/{backend}/logs", append_log)
    app.router.add_post("/{backend}/release", release)
    return app


async def declare(request: web.Request) -> web.Response:
    """An agent says what it is; answered by the terms of its leases."""
    backend, agent = await _admit(request), request.match_info["agent"]
    declaration = mapping.declaration(await body.read(request, SMALL), agent)
    return json_api.send(await request.config_dict[ENGINE].declare_agent(backend, agent, declaration))


async def claim(request: web.Request) -> web.Response:
    """Heartbeat, lease renewal and long-poll for tasks.

    An agent that goes away takes its claim along: the server cancels this handler (`controller.app.make_runner`).
    One whose token is revoked meanwhile is told so at once.
    """
    backend = await _admit(request)
    wanted = mapping.claim(await body.read(request, MEDIUM))
    claimed = await request.config_dict[ENGINE].claim(backend, wanted, admit=partial(_admit, request))
    return json_api.send(claimed)


async def report(request: web.Request) -> web.Response:
    """A batch of statements about tasks; each is answered by a verdict."""
    backend = await _admit(request)
    batch = mapping.reports(await body.read(request, LARGE))
    return json_api.send(await request.config_dict[ENGINE].report(backend, batch))


async def append_log(request: web.Request) -> web.Response:
    """A chunk of a log."""
    backend = await _admit(request)
    chunk = mapping.log_chunk(await body.read(request, MEDIUM))
    return json_api.send(await request.config_dict[ENGINE].append_log(backend, chunk))


async def release(request: web.Request) -> web.Response:
    """Tasks go back to the queue."""
    backend = await _admit(request)
    wanted = mapping.release(await body.read(request, MEDIUM))
    return json_api.send(await request.config_dict[ENGINE].release(backend, wanted))


async def _admit(request: web.Request) -> str:
    """The backend in the path, if the request's token is one of its agents'.

    :raises Unauthorized: it is not, or there is no such backend: from outside, the two look the same.
    """
    backend = request.match_info["backend"]
    header = request.headers.get(hdrs.AUTHORIZATION)
    principal = await request.config_dict[TOKENS].find_agent(backend, header)
    if principal is None:
        raise Unauthorized(
            "This token does not open this backend." if header else "No token: send `Authorization: Bearer`."
        )
    structlog.contextvars.bind_contextvars(principal=principal.name)
    return backend
