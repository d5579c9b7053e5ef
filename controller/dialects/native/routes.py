"""The native API, mounted at `/api`: lists, details, history and logs for the CLI and the dashboard, and operators'
commands.

RAPs are made and cancelled through the RAP API. Tokens are the same clients' tokens; what an operator's may do besides
is the engine's to decide. Contract: schemas/native/openapi.yaml.
"""

from aiohttp import web

from controller.core.model import JobId, Principal, RapId
from controller.dialects.native import capacity, diagnosis, jobs, mapping, retention, tokens, wire
from controller.web import auth, body, json_api
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
    app.router.add_get("/flags", list_flags)
    app.router.add_post("/backends/{backend}/flags", set_flags)
    app.router.add_post("/backends/{backend}/pause", pause)
    app.router.add_post("/backends/{backend}/unpause", unpause)
    app.router.add_post("/backends/{backend}/maintenance", maintain)
    app.router.add_post("/backends/{backend}/prepare-for-reboot", prepare_for_reboot)
    app.router.add_get("/backends/{backend}/reboot-status", show_reboot_status)
    app.router.add_post("/backends/{backend}/agents/{agent}/forget", forget_agent)
    capacity.add_to(app)
    diagnosis.add_to(app)
    jobs.add_to(app)
    retention.add_to(app)
    tokens.add_to(app)
    return app


async def list_raps(request: web.Request) -> web.Response:
    """One page of RAPs, newest first."""
    principal = await auth.client(request)
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
    principal = await auth.client(request)
    mapping.no_query(request.query)
    rap = RapId(mapping.identifier("RAP", request.match_info["rap"]))
    return json_api.send(mapping.rap_detail(await request.config_dict[ENGINE].rap_detail(principal, rap)))


async def show_job(request: web.Request) -> web.Response:
    """A job with its outputs and history."""
    principal = await auth.client(request)
    mapping.no_query(request.query)
    job = JobId(mapping.identifier("job", request.match_info["job"]))
    return json_api.send(mapping.job(await request.config_dict[ENGINE].job_detail(principal, job)))


async def show_log(request: web.Request) -> web.Response:
    """A part of a job's log."""
    principal = await auth.client(request)
    job = JobId(mapping.identifier("job", request.match_info["job"]))
    query = mapping.log_query(request.query)
    page = await request.config_dict[ENGINE].job_log(
        principal, job, attempt=query.attempt, offset=query.offset, limit=query.limit
    )
    return json_api.send(mapping.log(page, query.offset))


async def list_agents(request: web.Request) -> web.Response:
    """The agents of the caller's backends."""
    principal = await auth.client(request)
    mapping.no_query(request.query)
    return json_api.send(mapping.agents(await request.config_dict[ENGINE].agents(principal)))


async def list_backends(request: web.Request) -> web.Response:
    """The caller's backends."""
    principal = await auth.client(request)
    mapping.no_query(request.query)
    return json_api.send(mapping.backends(await request.config_dict[ENGINE].backends(principal)))


async def list_flags(request: web.Request) -> web.Response:
    """The switches of the caller's backends, or of one of them."""
    principal = await auth.client(request)
    wanted = mapping.flags_query(request.query)
    return json_api.send(mapping.flags(await request.config_dict[ENGINE].flags(principal, wanted)))


async def set_flags(request: web.Request) -> web.Response:
    """Set single switches of a backend."""
    principal, backend = await _operator(request)
    wanted = mapping.new_flags(await body.read(request, wire.MAX_BODY))
    return json_api.send(mapping.flags_set(await request.config_dict[ENGINE].set_flags(principal, backend, wanted)))


async def pause(request: web.Request) -> web.Response:
    """Start no more jobs on a backend."""
    principal, backend = await _operator(request)
    return json_api.send(mapping.flags_set(await request.config_dict[ENGINE].pause(principal, backend)))


async def unpause(request: web.Request) -> web.Response:
    """Start jobs on a backend again."""
    principal, backend = await _operator(request)
    return json_api.send(mapping.flags_set(await request.config_dict[ENGINE].unpause(principal, backend)))


async def maintain(request: web.Request) -> web.Response:
    """Begin or end the maintenance of a backend's database."""
    principal, backend = await _operator(request)
    wanted = mapping.maintenance(await body.read(request, wire.MAX_BODY))
    engine = request.config_dict[ENGINE]
    if wanted.on:
        done = await engine.start_maintenance(principal, backend, disable_checks=wanted.disable_checks)
    else:
        done = await engine.end_maintenance(principal, backend)
    return json_api.send(mapping.flags_set(done))


async def prepare_for_reboot(request: web.Request) -> web.Response:
    """Pause a backend and send its running jobs back to the queue."""
    principal, backend = await _operator(request)
    return json_api.send(
        mapping.reboot_prepared(await request.config_dict[ENGINE].prepare_for_reboot(principal, backend))
    )


async def show_reboot_status(request: web.Request) -> web.Response:
    """Whether a backend's machines can be switched off."""
    principal, backend = await _operator(request)
    return json_api.send(mapping.reboot_status(await request.config_dict[ENGINE].reboot_status(principal, backend)))


async def forget_agent(request: web.Request) -> web.Response:
    """Take all work from an agent that is gone for good."""
    principal, backend = await _operator(request)
    agent = mapping.agent_name(request.match_info["agent"])
    return json_api.send(await request.config_dict[ENGINE].forget_agent(principal, backend, agent))


async def _operator(request: web.Request) -> tuple[Principal, str]:
    """The caller and the backend in the path; whether the one may manage the other is the engine's to say.

    :raises Unauthorized: no token, or an unknown one.
    :raises Rejected: there are parameters.
    """
    principal = await auth.client(request)
    mapping.no_query(request.query)
    return principal, request.match_info["backend"]
