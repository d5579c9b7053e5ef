"""The Task API's error bodies (reference section 2.1).

Where upstream answers 500 to an agent's own mistake, the body stays and the status says whose it is.
"""

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from controller.core.errors import DomainError, NotFound, Rejected, Unavailable
from controller.dialects.tasks.wire import send
from controller.web import errors
from controller.web.errors import Unauthorized, UnknownBackend


def unauthorized(error: Unauthorized) -> web.Response:
    return send({"error": "Unauthorized", "details": error.message}, status=401)


def unknown_backend(error: UnknownBackend) -> web.Response:
    return send({"error": "Not found", "details": error.message}, status=404)


def unknown_task(error: NotFound) -> web.Response:
    """No such task on this backend; a task of another backend looks the same."""
    return send({"error": "Error updating task", "details": error.message}, status=404)


def rejected(error: Rejected) -> web.Response:
    return send({"error": "Error updating task", "details": error.message}, status=400)


def unforeseen(_: DomainError) -> web.Response:
    """An error that no operation of this API is meant to meet: ours."""
    return errors.bug()


ANSWERS: Final[Mapping[type[DomainError], errors.Answer]] = {
    Unauthorized: unauthorized,
    UnknownBackend: unknown_backend,
    NotFound: unknown_task,
    Rejected: rejected,
    Unavailable: errors.unavailable,
    DomainError: unforeseen,
}
