"""The RAP API's endpoints. Mounted at `/controller/v1`.

Each handler reads like its entry in the contract: who asks, what for, one call of the engine, the answer in
the portal's words. Errors are answered in `errors.py`; wrong methods by the router, before any handler looks at a
token (reference section 1.1).
"""

from aiohttp import web

from controller.core.model import RapId
from controller.dialects.rap import docs, mapping, status_span, wire
from controller.dialects.rap.errors import ANSWERS
from controller.web import auth, routing
from controller.web.errors import answering
from controller.web.keys import CLOCK, ENGINE
from controller.web.middleware import about, traceparent


async def backend_status(request: web.Request) -> web.Response:
    """`GET backend/status/`: every backend that the token may see."""
    principal = await auth.client(request)
    return mapping.backends(await request.config_dict[ENGINE].backends(principal))


async def create(request: web.Request) -> web.Response:
    """`POST rap/create/`: jobs for the actions and all they need; the same RAP again is no error."""
    principal = await auth.client(request)
    body = await wire.receive(request, wire.CreateRap)
    asked = mapping.rap_request(body, traceparent(request))
    about(rap_id=asked.rap_id, backend=asked.backend if asked.backend in principal.backends else None)
    return mapping.creation(await request.config_dict[ENGINE].create_rap(principal, asked))


async def cancel(request: web.Request) -> web.Response:
    """`POST rap/cancel/`: all of the named actions, or none if one is not in the RAP."""
    principal = await auth.client(request)
    body = await wire.receive(request, wire.CancelRap)
    about(rap_id=body.rap_id)
    count = await request.config_dict[ENGINE].cancel(principal, RapId(body.rap_id), body.actions)
    return mapping.cancellation(count)


async def status(request: web.Request) -> web.Response:
    """`POST rap/status/`: the jobs of the RAPs that the token may see, and the ids of the others."""
    principal = await auth.client(request)
    body = await wire.receive(request, wire.StatusOfRaps)
    asked = [RapId(rap_id) for rap_id in dict.fromkeys(body.rap_ids)]
    engine, clock = request.config_dict[ENGINE], request.config_dict[CLOCK]
    began = clock.monotonic()
    report = await engine.status(principal, asked)
    await status_span.tell(engine, clock, principal, asked, report, clock.monotonic() - began)
    return mapping.status(report, clock.now())


def make_app() -> web.Application:
    """The RAP API, to be mounted in an application that holds ENGINE, TOKENS and CLOCK."""
    app = web.Application(middlewares=[answering(ANSWERS)])
    endpoints = [
        web.get("/backend/status/", backend_status, allow_head=False),
        web.post("/rap/create/", create),
        web.post("/rap/cancel/", cancel),
        web.post("/rap/status/", status),
    ]
    pages = [
        web.get("/docs/", docs.page(wire.CONTRACT.document)),
        web.get("/spec.json", docs.specification(wire.CONTRACT.document)),
    ]
    app.add_routes([*endpoints, *pages])
    app.add_routes(routing.forbid_writes(pages))
    app.add_routes(routing.add_slashes([*endpoints, *pages]))
    return app
