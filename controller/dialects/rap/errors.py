"""The RAP API's error bodies: which error is which status and text (reference sections 1.1 to 1.4).

A body with `details` is a verdict: the portal fails the RAP at once. So what may pass (503) or may have left
jobs behind (500) is answered by a page without any.
"""

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from controller.core.errors import BackendNotAllowed, Conflict, DomainError, NotFound, Rejected, Unavailable
from controller.dialects.rap.wire import send
from controller.web import errors
from controller.web.errors import MalformedBody, Unauthorized


def unauthorized(error: Unauthorized) -> web.Response:
    return _refusal(401, "Unauthorized", error.message)


def malformed(error: MalformedBody) -> web.Response:
    return _refusal(400, "Validation error", error.message)


def forbidden_backend(_: BackendNotAllowed) -> web.Response:
    """Opaque on purpose: the answer must not tell which backends exist."""
    return _refusal(400, "Error creating jobs", "Unknown error")


def rejected(error: Rejected) -> web.Response:
    return _refusal(400, "Error creating jobs", error.message)


def conflict(error: Conflict) -> web.Response:
    rap_id = error.fields["rap_id"]
    details = f"Jobs already created for rap_id '{rap_id}' are inconsistent with request data"
    return _refusal(400, "Inconsistent request data", details)


def not_found(error: NotFound) -> web.Response:
    """No such RAP for this caller; or, with `not_found`, no such actions in it."""
    rap_id, actions = error.fields["rap_id"], error.fields.get("not_found")
    if not isinstance(actions, list | tuple):
        return _refusal(404, "jobs not found", f"No jobs found for rap_id {rap_id}", rap_id=rap_id)
    names = sorted(map(str, actions))
    details = f"Jobs matching requested cancelled actions could not be found: {','.join(names)}"
    return _refusal(404, "jobs not found", details, rap_id=rap_id, not_found=names)


def unforeseen(_: DomainError) -> web.Response:
    """An error that no operation of this API is meant to meet: ours, so no verdict on the RAP."""
    return errors.bug()


def _refusal(status: int, error: str, details: str, **more: object) -> web.Response:
    return send({"error": error, "details": details, **more}, status=status)


ANSWERS: Final[Mapping[type[DomainError], errors.Answer]] = {
    Unauthorized: unauthorized,
    MalformedBody: malformed,
    BackendNotAllowed: forbidden_backend,
    Rejected: rejected,
    Conflict: conflict,
    NotFound: not_found,
    Unavailable: errors.unavailable,
    DomainError: unforeseen,
}
