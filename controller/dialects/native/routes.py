"""The native API, mounted at `/api`: lists, details, history and logs for the CLI and the dashboard.

It only reads; RAPs are made and cancelled through the RAP API. Tokens are the same clients' tokens. Contract:
schemas/native/openapi.yaml.
"""

from aiohttp import web

from controller.core.model import JobId, RapId
from controller.dialects.native import mapping
from controller.web import auth, json_api
from controller.web.keys import ENGINE


def make_app() -> web.Application:
    """The sub-application; the root application holds the engine and the tokens."""
    app = web.Application(middlewares=json_api.MIDDLEWARES)
    app.router.add_get("/raps", list_raps)
    app.router.add_get("/raps/{rap}", show_rap)
    app.router.add_get("/jobs/{job}", show_job)
    app.router.add_get("/jobs/{job}/log", show_log)
    app.router.add_get("/agents", list_agents)
    app.router.add_get("/backends", list_backends)
    return app


async def list_raps(request: web.Request) -> web.Response:
    """One page of RAPs, newest first."""
    principal = auth.client(request)
    query = mapping.rap_query(request.query)
    page = await request.config_dict[ENGINE].list_raps(
        principal,
        backend=query.backend,
        workspace=query.workspace,
        state=query.state,
        limit=query.limit,
        cursor=query.cursor,
    )
    return json_api.send(mapping.page(page))


async def show_rap(request: web.Request) -> web.Response:
    """A RAP and its jobs."""
    principal = auth.client(request)
    mapping.no_query(request.query)
    rap = RapId(mapping.identifier("RAP", request.match_info["rap"]))
    return json_api.send(mapping.rap_detail(await request.config_dict[ENGINE].rap_detail(principal, rap)))


async def show_job(request: web.Request) -> web.Response:
    """A job with its outputs and history."""
    principal = auth.client(request)
    mapping.no_query(request.query)
    job = JobId(mapping.identifier("job", request.match_info["job"]))
    return json_api.send(mapping.job(await request.config_dict[ENGINE].job_detail(principal, job)))


async def show_log(request: web.Request) -> web.Response:
    """A part of a job's log."""
    principal = auth.client(request)
    job = JobId(mapping.identifier("job", request.match_info["job"]))
    query = mapping.log_query(request.query)
    page = await request.config_dict[ENGINE].job_log(
        principal, job, attempt=query.attempt, offset=query.offset, limit=query.limit
    )
    return json_api.send(mapping.log(page, query.offset))


async def list_agents(request: web.Request) -> web.Response:
    """The agents of the caller's backends."""
    principal = auth.client(request)
    mapping.no_query(request.query)
    return json_api.send(mapping.agents(await request.config_dict[ENGINE].agents(principal)))


async def list_backends(request: web.Request) -> web.Response:
    """The caller's backends."""
    principal = auth.client(request)
    mapping.no_query(request.query)
    return json_api.send(mapping.backends(await request.config_dict[ENGINE].backends(principal)))
