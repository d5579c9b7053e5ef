"""What keeps other sites and hostile names out of the pages: headers, and proof that a form is one of ours."""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web

from controller.core.errors import DomainError
from controller.web import body
from controller.web.errors import MalformedBody

POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
"""Nothing inline, nothing from another host."""

CSRF_FIELD: Final = "csrf"
MAX_FORM: Final = 8192
"""Bytes of a form: a token, a few words."""
_PURPOSE: Final = b"rap-ui-form"


class StaleForm(DomainError):
    """A form that was not made for this session: an old page, or somebody else's."""

    key = "stale_form"


async def set_headers(_: web.Request, response: web.StreamResponse) -> None:
    """For every answer of the dialect, errors included."""
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=()"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")


def form_token(cookie: str) -> str:
    """What a form carries to prove that its page was made for the browser with this cookie.

    It is made of the cookie, which no other site can read, and the cookie cannot be made of it.
    """
    return hmac.new(cookie.encode(), _PURPOSE, hashlib.sha256).hexdigest()


async def read_form(request: web.Request, cookie: str) -> Mapping[str, str]:
    """The fields of a form of ours.

    :param cookie: the cookie that its page was made for; empty if the browser sent none.
    :raises MalformedBody: too long, or no form.
    :raises StaleForm: not a form of ours for this browser, or another site's.
    """
    raw = await body.read(request, MAX_FORM)
    try:
        fields = dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=20, errors="strict"))
    except ValueError as error:
        raise MalformedBody("The form cannot be read.") from error
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    told = fields.get(CSRF_FIELD, "").encode()
    if not cookie or site != "same-origin" or not hmac.compare_digest(told, form_token(cookie).encode()):
        raise StaleForm(
            "This form is out of date, or was not made by this page. Go back, load the page anew, and try again."
        )
    return fields
