"""`GET diagnosis`: what the controller finds wrong about its database and the caller's backends."""

from aiohttp import web
from attrs import frozen

from controller.dialects.native import query, times
from controller.engine import diagnosing
from controller.web import json_api
from controller.web.keys import ENGINE


@frozen(kw_only=True)
class Finding:
    """One check's outcome; `backend` is null for what all backends share."""

    name: str
    level: str
    backend: str | None
    message: str
    advice: str


@frozen(kw_only=True)
class Diagnosis:
    """Answer to `GET diagnosis`: every check, those that found nothing included."""

    at: str
    findings: tuple[Finding, ...]


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/diagnosis", show)


async def show(request: web.Request) -> web.Response:
    """Every check."""
    principal = await query.caller(request)
    return json_api.send(diagnosis(await request.config_dict[ENGINE].diagnose(principal)))


def diagnosis(value: diagnosing.Diagnosis) -> Diagnosis:
    """The engine's findings in this API's words."""
    return Diagnosis(
        at=times.timestamp(value.at),
        findings=tuple(
            Finding(
                name=each.name,
                level=each.level.value,
                backend=each.backend,
                message=each.message,
                advice=each.advice,
            )
            for each in value.findings
        ),
    )
