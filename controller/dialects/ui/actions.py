"""What people do from the pages: first a page that asks, then a form that does. Nothing is changed by a link."""

from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web
from attrs import frozen

from controller.core.codes import JobState
from controller.core.errors import NotFound
from controller.core.model import RapId, Verb
from controller.dialects.ui import asking, session
from controller.engine.facade import Engine
from controller.engine.retrying import RetryOutcome
from controller.web.keys import ENGINE


@frozen(kw_only=True)
class Question:
    """What is asked before something is done."""

    title: str
    consequence: str
    """Empty: it depends on the state."""
    button: str
    dangerous: bool = True


_OF_A_JOB: Final[Mapping[str, Question]] = {
    "cancel": Question(
        title="Cancel this job?",
        consequence="It is stopped at once and counts as failed; actions that need it do not start. "
        "It cannot be undone; the action can be asked for again.",
        button="Cancel the job",
    ),
    "retry": Question(
        title="Retry this job?",
        consequence="",
        button="Retry the job",
        dangerous=False,
    ),
    "kill": Question(
        title="Kill this job?",
        consequence="It is stopped at once and fails as killed by an operator, and with it every action that needs it. "
        "It cannot be undone.",
        button="Kill the job",
    ),
}
_RETRY: Final[Mapping[JobState, str]] = {
    JobState.PENDING: "If it rests after an error of the platform, it starts as soon as there is room.",
    JobState.RUNNING: "The attempt that runs is stopped, and the job goes back to the queue for another.",
    JobState.FAILED: "What is finished stays as it is. A new RAP is made that runs this action again, "
    "and only those that it needs and that failed.",
    JobState.SUCCEEDED: "It has succeeded: there is nothing to retry.",
}
_OF_A_BACKEND: Final[Mapping[str, Question]] = {
    "pause": Question(
        title="Pause this backend?",
        consequence="No more jobs are started on it; those that run, run on. Requests are accepted, and wait.",
        button="Pause the backend",
    ),
    "unpause": Question(
        title="Unpause this backend?",
        consequence="Jobs are started again, those that a reboot sent back included.",
        button="Unpause the backend",
        dangerous=False,
    ),
}
_CANCEL_ALL: Final = Question(
    title="Cancel what is not finished of this RAP?",
    consequence="Every waiting and running job of it is stopped at once and counts as failed. It cannot be undone.",
    button="Cancel them",
)


def add_to(app: web.Application) -> None:
    """Serve them."""
    app.router.add_get("/jobs/{job}/{action:cancel|retry|kill}", ask_job)
    app.router.add_post("/jobs/{job}/{action:cancel|retry|kill}", do_job)
    app.router.add_get("/raps/{rap}/cancel", ask_rap)
    app.router.add_post("/raps/{rap}/cancel", do_rap)
    app.router.add_get("/backends/{backend}/{action:pause|unpause}", ask_backend)
    app.router.add_post("/backends/{backend}/{action:pause|unpause}", do_backend)


async def ask_job(request: web.Request) -> web.Response:
    """Whether to do something to a job."""
    visitor, job_id = await session.visitor(request), asking.job_id(request)
    job = (await request.config_dict[ENGINE].job_detail(visitor.principal, job_id)).job
    question = _OF_A_JOB[request.match_info["action"]]
    values = {
        "question": question,
        "consequence": question.consequence or _RETRY[job.progress.state],
        "what": f"{job.spec.action} of workspace {job.spec.workspace} on backend {job.spec.backend}",
        "state": job.progress,
        "back": f"/ui/jobs/{job_id}",
        "fields": {"attempt": str(job.progress.attempt)},
    }
    return asking.render(request, visitor, "confirm.html", values)


async def do_job(request: web.Request) -> web.Response:
    """Do it."""
    (visitor, fields), job_id = await session.read_form(request), asking.job_id(request)
    engine: Engine = request.config_dict[ENGINE]
    place = f"/ui/jobs/{job_id}"
    match request.match_info["action"]:
        case "cancel":
            job = (await engine.job_detail(visitor.principal, job_id)).job
            await engine.cancel(visitor.principal, job.spec.rap_id, [job.spec.action])
            said = "cancelled"
        case "kill":
            said = "killed" if (await engine.kill(visitor.principal, job_id)).changed else "over"
        case _:
            attempt = fields.get("attempt", "")
            known = int(attempt) if attempt.isascii() and attempt.isdecimal() and len(attempt) < 9 else None
            done = await engine.retry(visitor.principal, job_id, attempt=known)
            said = done.outcome.value
            if done.outcome is RetryOutcome.RESUBMITTED and done.rap_id is not None:
                place = f"/ui/raps/{done.rap_id}"
    return _to(place, said)


async def ask_rap(request: web.Request) -> web.Response:
    """Whether to cancel what is left of a RAP."""
    visitor, rap_id = await session.visitor(request), asking.rap_id(request)
    rap, actions = await _unfinished(request, visitor, rap_id)
    values = {
        "question": _CANCEL_ALL,
        "consequence": _CANCEL_ALL.consequence,
        "what": f"RAP {rap_id} of workspace {rap}: {len(actions)} not finished",
        "state": None,
        "back": f"/ui/raps/{rap_id}",
        "fields": {},
    }
    return asking.render(request, visitor, "confirm.html", values)


async def do_rap(request: web.Request) -> web.Response:
    """Do it."""
    (visitor, _), rap_id = await session.read_form(request), asking.rap_id(request)
    _, actions = await _unfinished(request, visitor, rap_id)
    if actions:
        await request.config_dict[ENGINE].cancel(visitor.principal, rap_id, actions)
    return _to(f"/ui/raps/{rap_id}", "cancelled" if actions else "unchanged")


async def ask_backend(request: web.Request) -> web.Response:
    """Whether to pause, or to unpause, a backend."""
    visitor, slug = await session.visitor(request), asking.backend(request)
    if not visitor.principal.may(Verb.MANAGE, slug):
        raise NotFound("There is no backend of this name that this token manages.")
    question = _OF_A_BACKEND[request.match_info["action"]]
    values = {
        "question": question,
        "consequence": question.consequence,
        "what": f"Backend {slug}",
        "state": None,
        "back": session.HOME,
        "fields": {},
    }
    return asking.render(request, visitor, "confirm.html", values)


async def do_backend(request: web.Request) -> web.Response:
    """Do it."""
    (visitor, _), slug = await session.read_form(request), asking.backend(request)
    engine: Engine = request.config_dict[ENGINE]
    action = request.match_info["action"]
    done = await (engine.pause if action == "pause" else engine.unpause)(visitor.principal, slug)
    return _to(session.HOME, f"{action}d" if done.changed else "unchanged")


async def _unfinished(request: web.Request, visitor: session.Visitor, rap_id: RapId) -> tuple[str, list[str]]:
    """The workspace, and the actions that are not finished.

    :raises NotFound: no such RAP for this caller.
    """
    detail = await request.config_dict[ENGINE].rap_detail(visitor.principal, rap_id)
    return detail.rap.workspace, [
        each.job.spec.action for each in detail.jobs if not each.job.progress.state.is_terminal
    ]


def _to(place: str, said: str) -> web.Response:
    return web.Response(status=303, headers={hdrs.LOCATION: f"{place}?said={said}"})
