"""Checks of a controller over HTTP: does it answer, is it ready, is its clock right, and its own diagnosis."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp

from cli.connection import Connection
from cli.doctor import findings
from cli.errors import Problem
from common import proxies
from controller.core.diagnosis import Finding, Severity, skew

_TIMEOUT: Final = aiohttp.ClientTimeout(total=15, connect=10)


async def check(connected: Connection) -> list[Finding]:
    """What it says of its health, and what it finds wrong."""
    found = await check_health(connected.url)
    if any(each.level is Severity.PROBLEM and each.name == "controller" for each in found):
        return found
    try:
        async with connected.client() as client:
            document = await client.read("diagnosis")
    except Problem as error:
        return [*found, findings.problem("diagnosis", f"There is no diagnosis: {error.message}.", "rap backends")]
    return found + [_finding(each) for each in document["findings"]]


async def check_health(url: str) -> list[Finding]:
    """Without a token: does it answer, with which clock, and is it ready."""
    url = url.rstrip("/")
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=proxies.apply_to(url)) as session,
            session.get(f"{url}/readyz", allow_redirects=False) as response,
        ):
            status, date, text = response.status, response.headers.get("Date"), await response.text()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        advice = "start it (rap controller), or correct its address (RAP_URL, RAP_CONTROLLER_URL)"
        return [findings.problem("controller", f"No controller answers at {url}: {why}.", advice)]
    clock = _clock(date)
    return [_readiness(url, status, text), *([clock] if clock else [])]


def _readiness(url: str, status: int, text: str) -> Finding:
    if status == 200:
        return findings.ok("controller", f"The controller at {url} is ready.")
    if status == 503:
        advice = "look for `not ready` in the log of the controller; then check the database: rap doctor there"
        return findings.problem("readiness", f"The controller at {url} is not ready: {text[:200].strip()}", advice)
    message = f"{url} does not answer like a RAP controller (HTTP {status})."
    return findings.problem("controller", message, "correct its address (RAP_URL, RAP_CONTROLLER_URL)")


def _clock(date: str | None) -> Finding | None:
    """By the `Date` of the answer, which has whole seconds."""
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    ours = datetime.now(UTC)
    # A proxy may leave the zone out; HTTP knows only one.
    theirs = theirs.replace(tzinfo=UTC) if theirs.tzinfo is None else theirs
    return skew("controller_clock", "the controller", theirs, "here", ours.replace(microsecond=0))


def _finding(document: Mapping[str, Any]) -> Finding:
    return Finding(
        name=str(document["name"]),
        level=Severity(document["level"]),
        message=str(document["message"]),
        advice=str(document["advice"]),
        backend=document["backend"],
    )
