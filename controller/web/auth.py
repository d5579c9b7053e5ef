"""Who is asking: tokens to principals.

Tokens of the settings are in memory, so they work while the database is away. Only their SHA-256 digests are kept, and
every lookup compares with all of them in constant time: neither a memory dump nor a stopwatch gives one away. A token
that is none of them is looked up among those that operators made, which are in the database (`engine/tokens.py`);
by its digest as well, so how long that takes tells nothing about any token. A token comes in `Authorization`, bare or
as `Bearer <token>`.
"""

import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import structlog
from aiohttp import hdrs, web

from common import tokens
from controller.core.model import Principal, Verb
from controller.core.tokens import TokenKind
from controller.web.errors import Unauthorized, UnknownBackend
from controller.web.keys import TOKENS

NO_TOKEN: Final = "No token provided"  # noqa: S105  a sentence, not a secret

Recognise = Callable[[bytes, TokenKind], Awaitable[Principal | None]]
"""Who holds the stored token with this digest, if it is of this kind."""


async def _nobody(_digest: bytes, _kind: TokenKind) -> None:
    """For a controller without tokens in a database."""


class Tokens:
    """The tokens that open this controller: clients' (portals, people) and agents' (one set per backend)."""

    def __init__(
        self,
        clients: Mapping[str, Principal],
        agents: Mapping[str, Iterable[str]],
        *,
        recognise: Recognise = _nobody,
    ) -> None:
        """Keep the digests.

        :param clients: token -> who holds it.
        :param agents: backend -> tokens of its agents; its keys are the backends that exist. One token may
            serve several backends; two tokens for one backend let an operator replace one without a gap.
        :param recognise: asked about tokens that are none of these.
        :raises ValueError: a token is empty.
        """
        self._clients = [(tokens.digest(token), principal) for token, principal in clients.items()]
        self._agents = {
            backend: [(tokens.digest(token), _agent(backend)) for token in of_backend]
            for backend, of_backend in agents.items()
        }
        self._recognise = recognise

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that exist, in the configured order."""
        return tuple(self._agents)

    def principal(self, header: str | None) -> Principal | None:
        """The client of the settings whose token an `Authorization` header carries."""
        return _find(header, self._clients)

    def agent_of(self, backend: str, header: str | None) -> Principal | None:
        """The agents' principal of `backend`, if the header carries one of its tokens in the settings."""
        return _find(header, self._agents.get(backend, []))

    async def find_client(self, header: str | None) -> Principal | None:
        """The client whose token an `Authorization` header carries, be it one of the settings or of the database.

        :raises Unavailable: it is none of the settings', and the database does not answer.
        """
        return self.principal(header) or await self._stored(header, TokenKind.CLIENT)

    async def holder(self, digest: bytes) -> Principal | None:
        """The client whose token has this digest, be it one of the settings or of the database.

        :raises Unavailable: it is none of the settings', and the database does not answer.
        """
        return _holder(digest, self._clients) or await self._recognise(digest, TokenKind.CLIENT)

    async def find_agent(self, backend: str, header: str | None) -> Principal | None:
        """The agents' principal of `backend`, and of no other, if the header carries one of its tokens.

        :raises Unavailable: it is none of the settings', and the database does not answer.
        """
        found = self.agent_of(backend, header)
        if found is not None or backend not in self._agents:
            return found
        stored = await self._stored(header, TokenKind.AGENT)
        if stored is None or not stored.may(Verb.AGENT, backend):
            return None
        return Principal(name=stored.name, grants={backend: frozenset({Verb.AGENT})})

    async def _stored(self, header: str | None, kind: TokenKind) -> Principal | None:
        token = _token(header)
        # What has another form was never made by us: no guess of that kind costs a query.
        return await self._recognise(tokens.digest(token), kind) if token and tokens.FORM.fullmatch(token) else None


async def client(request: web.Request) -> Principal:
    """The client that sent `request`.

    :raises Unauthorized: no token, or an unknown one.
    :raises Unavailable: the token is none of the settings', and the database does not answer.
    """
    header = request.headers.get(hdrs.AUTHORIZATION)
    principal = await request.config_dict[TOKENS].find_client(header)
    return _admit(principal, header, "Invalid token")


async def agent(request: web.Request) -> Principal:
    """The agent that sent `request` to the backend in its path (`{backend}`).

    :raises UnknownBackend: there is no such backend, whatever the token (reference section 2.1).
    :raises Unauthorized: no token, or not one of this backend's.
    :raises Unavailable: the token is none of the settings', and the database does not answer.
    """
    known = request.config_dict[TOKENS]
    backend = request.match_info["backend"]
    if backend not in known.backends:
        raise UnknownBackend(f"Backend '{backend}' not found", backend=backend)
    header = request.headers.get(hdrs.AUTHORIZATION)
    principal = await known.find_agent(backend, header)
    return _admit(principal, header, f"Invalid token for backend '{backend}'")


def _admit(principal: Principal | None, header: str | None, refusal: str) -> Principal:
    if principal is None:
        raise Unauthorized(refusal if header else NO_TOKEN)
    structlog.contextvars.bind_contextvars(principal=principal.name)
    return principal


def _agent(backend: str) -> Principal:
    return Principal(name=f"agent of {backend}", grants={backend: frozenset({Verb.AGENT})})


def _token(header: str | None) -> str | None:
    """The token in the header; empty and None: there is none."""
    scheme, _, rest = (header or "").partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else header


def _find(header: str | None, known: Iterable[tuple[bytes, Principal]]) -> Principal | None:
    token = _token(header)
    if not token:
        return None
    return _holder(tokens.digest(token), known)


def _holder(candidate: bytes, known: Iterable[tuple[bytes, Principal]]) -> Principal | None:
    found = None
    for digest, principal in known:  # all of them, always: no early exit to measure
        if hmac.compare_digest(digest, candidate):
            found = principal
    return found
