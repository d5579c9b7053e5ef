"""Who is at the browser: signing in with a token, the session's cookie, signing out.

The cookie holds the session's secret, never the token (`engine/sessions.py`). Scripts cannot read it, other sites
cannot have it sent, and it is sent over HTTPS only where the page came that way.
"""

import re
import secrets
from typing import Any, Final

import structlog
from aiohttp import hdrs, web
from attrs import field, frozen
from yarl import URL

from common import tokens
from controller.core.errors import DomainError
from controller.core.model import Principal
from controller.dialects.ui import security, templating
from controller.engine.sessions import LIFETIME
from controller.web.keys import CLOCK, ENGINE, TOKENS

log = structlog.get_logger(__name__)

HOME: Final = "/ui/"
SIGN_IN: Final = "/ui/sign-in"
_COOKIE: Final = "rap_session"
_FORM_COOKIE: Final = "rap_form"
"""Before anybody has signed in, what the sign-in form is bound to."""
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_INSIDE: Final = re.compile(r"/ui/(?!/)[A-Za-z0-9/_.~%?=&+,-]{0,500}")
"""Where a sign-in may lead: pages of ours, and nothing that a browser could take for another host."""


class SignedOut(DomainError):
    """There is no session, or it is over; `back` says what was asked for."""

    key = "signed_out"


@frozen(kw_only=True)
class Visitor:
    """Whoever is at the browser."""

    principal: Principal
    secret: str = field(repr=False)

    @property
    def form_token(self) -> str:
        """For the forms of their pages."""
        return security.form_token(self.secret)


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/sign-in", show)
    app.router.add_post("/sign-in", sign_in)
    app.router.add_post("/sign-out", sign_out)


async def visitor(request: web.Request) -> Visitor:
    """Whose session the request belongs to.

    :raises SignedOut: nobody's, or their token opens nothing any more.
    :raises Unavailable: the database is away.
    """
    secret = _cookie(request, _COOKIE)
    digest = await request.config_dict[ENGINE].session_token(secret) if secret else None
    principal = await request.config_dict[TOKENS].holder(digest) if digest else None
    if principal is None:
        back = request.raw_path if request.method == hdrs.METH_GET else HOME
        # Whoever follows a link from another site may be signed in: the browser only tells us once they come from here.
        arriving = not secret and request.headers.get("Sec-Fetch-Site") == "cross-site"
        raise SignedOut("Sign in first.", back=back, arriving=arriving)
    structlog.contextvars.bind_contextvars(principal=principal.name)
    return Visitor(principal=principal, secret=secret)


async def read_form(request: web.Request) -> tuple[Visitor, Any]:
    """Whose session a form belongs to, and its fields.

    :raises SignedOut: nobody's.
    :raises StaleForm: it is none of theirs.
    """
    found = await visitor(request)
    return found, await security.read_form(request, found.secret)


async def show(request: web.Request) -> web.Response:
    """The sign-in page."""
    return _form(request, "", 200)


async def sign_in(request: web.Request) -> web.Response:
    """Begin a session, if the token opens something."""
    fields = await security.read_form(request, _cookie(request, _FORM_COOKIE))
    token = fields.get("token", "").strip()
    engine, known = request.config_dict[ENGINE], request.config_dict[TOKENS]
    principal = await known.find_client(f"Bearer {token}") if token else None
    if principal is None:
        log.info("sign_in_refused")
        return _form(request, "This token opens nothing here. It may have been revoked, or have expired.", 403)
    begun = await engine.begin_session(tokens.digest(token))
    log.info("signed_in", principal=principal.name)
    answer = _to(_inside(fields.get("back", "")))
    answer.set_cookie(_COOKIE, begun.secret, max_age=int(LIFETIME.total_seconds()), **_flags(request))
    answer.del_cookie(_FORM_COOKIE, path=HOME)
    return answer


async def sign_out(request: web.Request) -> web.Response:
    """End the session."""
    found, _ = await read_form(request)
    await request.config_dict[ENGINE].end_session(found.secret)
    log.info("signed_out", principal=found.principal.name)
    answer = _to(SIGN_IN)
    answer.del_cookie(_COOKIE, path=HOME)
    return answer


def to_sign_in(error: DomainError) -> web.Response:
    """Where whoever is signed out has to go; they come back to what they asked for."""
    back = _inside(str(error.fields.get("back", HOME)))
    if error.fields.get("arriving"):
        return templating.page("continue.html", {"back": back})
    return _to(SIGN_IN if back == HOME else str(URL(SIGN_IN).with_query(back=back)))


def _form(request: web.Request, fault: str, status: int) -> web.Response:
    cookie = _cookie(request, _FORM_COOKIE) or secrets.token_urlsafe(32)
    values = {
        "fault": fault,
        "back": _inside(request.query.get("back", "")),
        "form_token": security.form_token(cookie),
        "now": request.config_dict[CLOCK].now(),
    }
    answer = templating.page("sign-in.html", values, status=status)
    answer.set_cookie(_FORM_COOKIE, cookie, max_age=3600, **_flags(request))
    return answer


def _flags(request: web.Request) -> Any:
    """A proxy in front that ends TLS says so; whoever lies about it only keeps a cookie from themselves."""
    https = "https" in (request.scheme, request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower())
    return {"path": HOME, "httponly": True, "samesite": "Strict", "secure": https}


def _cookie(request: web.Request, name: str) -> str:
    found = request.cookies.get(name, "")
    return found if _SECRET.fullmatch(found) else ""


def _inside(back: str) -> str:
    return back if _INSIDE.fullmatch(back) and not back.startswith(SIGN_IN) else HOME


def _to(place: str) -> web.Response:
    return web.Response(status=303, headers={hdrs.LOCATION: place})
