"""The dashboard, mounted at `/ui`: pages for operators and researchers, made by the server.

Every page works without scripts; with them, what changes is shown as it happens. It knows the engine and nothing
below it, and asks with the rights of whoever is signed in. docs/adr and docs/security.md say what guards it.
"""

from typing import Final

from aiohttp import web

from controller.dialects.ui import actions, jobs, live, overview, raps, security, session, static
from controller.dialects.ui.errors import MIDDLEWARES

CAPABILITIES: Final = (overview, raps, jobs, actions, session, live, static)


def make_app() -> web.Application:
    """The sub-application; the root application holds the engine and the tokens."""
    app = web.Application(middlewares=MIDDLEWARES)
    app.on_response_prepare.append(security.set_headers)
    for capability in CAPABILITIES:
        capability.add_to(app)
    return app


def add_to(root: web.Application) -> None:
    """Serve it, with and without the slash at the end of its name."""
    root.router.add_get("/ui", _to_slash)  # first: the sub-application would take it for a path of its own
    root.add_subapp("/ui", make_app())


async def _to_slash(_: web.Request) -> web.Response:
    return web.Response(status=308, headers={"Location": session.HOME})
