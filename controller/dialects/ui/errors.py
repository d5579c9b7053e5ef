"""What went wrong, as a page of the dashboard: whose fault, and what to do."""

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from controller.core.errors import Conflict, DomainError, Forbidden, NotFound, Rejected, Unavailable
from controller.dialects.ui import session, templating
from controller.dialects.ui.security import StaleForm
from controller.web.errors import Answer, BodyTooLarge, answering


def _page(status: int, title: str, sentence: str) -> web.Response:
    values = {"status": status, "title": title, "sentence": sentence}
    return templating.page("error.html", values, status=status)


def _as_page(status: int, title: str) -> Callable[[DomainError], web.Response]:
    def answer(error: DomainError) -> web.Response:
        return _page(status, title, error.message)

    return answer


def _later(error: Unavailable) -> web.Response:
    response = _page(503, "Not at the moment", "The controller cannot reach its database. Try again in a moment.")
    response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return response


ANSWERS: Final[Mapping[type[DomainError], Answer]] = {
    session.SignedOut: session.to_sign_in,
    StaleForm: _as_page(403, "This form is out of date"),
    BodyTooLarge: _as_page(413, "Too long"),
    Rejected: _as_page(400, "That cannot be done"),
    Forbidden: _as_page(403, "Not with this token"),
    NotFound: _as_page(404, "There is nothing here"),
    Conflict: _as_page(409, "That cannot be done now"),
    Unavailable: _later,
    DomainError: _as_page(400, "That cannot be done"),
}


@web.middleware
async def _answer_http(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Unknown paths and wrong methods, in the same form."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        meaning = HTTPStatus(error.status)
        response = _page(error.status, meaning.phrase, f"{meaning.description}.")
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response


MIDDLEWARES: Final = (answering(ANSWERS), _answer_http)
