"""Errors of the web layer, and how a dialect turns errors into its own bodies.

A dialect lists (class of error -> answer) in its `errors.py` and wraps its handlers with `answering(list)`:
handlers never catch anything. What no dialect answers (unknown URL, wrong method, a bug) becomes a page here.

The pages are deliberately not JSON: the portal takes a JSON body with `details` as the final verdict on its
RAP, and anything else as "ask again later" (reference section 10, item 9).
"""

import math
from collections.abc import Callable, Mapping
from html import escape
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from controller.core.errors import DomainError, NotFound, Rejected, Unavailable

Answer = Callable[[Any], web.Response]
"""Makes a response of the error that it is listed for."""

RETRY_AFTER_A_BUG: Final = 5.0
"""Seconds; an unexpected error says nothing about when it will be over."""


class Unauthorized(DomainError):
    """No token, or not one that opens this door."""

    key = "unauthorized"


class UnknownBackend(NotFound):
    """The backend in the path does not exist."""

    key = "unknown_backend"


class MalformedBody(Rejected):
    """The body cannot be read as what it should be."""

    key = "malformed_body"


class BodyTooLarge(MalformedBody):
    """The body is longer than we read."""

    key = "body_too_large"


class SchemaMismatch(MalformedBody):
    """The body is JSON of another shape than the contract's."""

    key = "schema_mismatch"


def answering(answers: Mapping[type[DomainError], Answer]) -> Middleware:
    """A middleware that answers a `DomainError` by the entry for its nearest class in `answers`.

    :raises ValueError: at once, if `answers` does not list `DomainError` itself and so could miss one.
    """
    if DomainError not in answers:
        raise ValueError("answers must have an entry for DomainError, for all that is not listed")

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except DomainError as error:
            nearest = next(cls for cls in type(error).__mro__ if cls in answers)
            return answers[nearest](error)

    return middleware


def page(status: int, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """A self-contained HTML page that says what `status` means, and nothing else."""
    meaning = HTTPStatus(status)
    title, sentence = escape(meaning.phrase), escape(meaning.description)
    text = (
        f'<!doctype html>\n<html lang="en">\n<head><title>{title}</title></head>\n'
        f"<body><h1>{title} ({status})</h1><p>{sentence}</p></body>\n</html>\n"
    )
    return web.Response(status=status, text=text, content_type="text/html", charset="utf-8", headers=headers)


def unavailable(error: Unavailable) -> web.Response:
    """503 without a verdict: the same request may be sent again after `Retry-After` seconds."""
    return page(503, headers=_retry_after(error.retry_after))


def bug() -> web.Response:
    """500 without details: they are in the log, not on the wire."""
    return page(500, headers=_retry_after(RETRY_AFTER_A_BUG))


def empty(status: int, headers: Mapping[str, str]) -> web.Response:
    """An answer whose whole meaning is in its status and headers."""
    return web.Response(status=status, text="", content_type="text/html", charset="utf-8", headers=headers)


def of_http(answer: web.HTTPException) -> web.Response:
    """What aiohttp raised, in our form: redirects and 405 have an empty body, the rest is a page."""
    names = (hdrs.ALLOW, hdrs.LOCATION, hdrs.RETRY_AFTER, hdrs.WWW_AUTHENTICATE)
    headers = {str(name): answer.headers[name] for name in names if name in answer.headers}
    if answer.status < 400 or answer.status == 405:
        return empty(answer.status, headers)
    return page(answer.status, headers=headers)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(seconds))}
