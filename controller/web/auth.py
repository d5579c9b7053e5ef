"""Who is asking: tokens to principals.

Only SHA-256 digests of tokens are kept, and every lookup compares with all of them in constant time: neither
a memory dump nor a stopwatch gives one away. A token comes in `Authorization`, bare or as `Bearer <token>`.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Final

import structlog
from aiohttp import hdrs, web

from controller.core.model import Principal, Verb
from controller.web.errors import Unauthorized, UnknownBackend
from controller.web.keys import TOKENS

NO_TOKEN: Final = "No token provided"  # noqa: S105  a sentence, not a secret


class Tokens:
    """The tokens that open this controller: clients' (portals, people) and agents' (one set per backend)."""

    def __init__(self, clients: Mapping[str, Principal], agents: Mapping[str, Iterable[str]]) -> None:
        """Keep the digests.

        :param clients: token -> who holds it.
        :param agents: backend -> tokens of its agents; its keys are the backends that exist. One token may
            serve several backends; two tokens for one backend let an operator replace one without a gap.
        :raises ValueError: a token is empty.
        """
        self._clients = [(_digest(token), principal) for token, principal in clients.items()]
        self._agents = {
            backend: [(_digest(token), _agent(backend)) for token in tokens] for backend, tokens in agents.items()
        }

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that exist, in the configured order."""
        return tuple(self._agents)

    def principal(self, header: str | None) -> Principal | None:
        """The client whose token an `Authorization` header carries."""
        return _find(header, self._clients)

    def agent_of(self, backend: str, header: str | None) -> Principal | None:
        """The agents' principal of `backend`, if the header carries one of its tokens."""
        return _find(header, self._agents.get(backend, []))


def client(request: web.Request) -> Principal:
    """The client that sent `request`.

    :raises Unauthorized: no token, or an unknown one.
    """
    header = request.headers.get(hdrs.AUTHORIZATION)
    principal = request.config_dict[TOKENS].principal(header)
    return _admit(principal, header, "Invalid token")


def agent(request: web.Request) -> Principal:
    """The agent that sent `request` to the backend in its path (`{backend}`).

    :raises UnknownBackend: there is no such backend, whatever the token (reference section 2.1).
    :raises Unauthorized: no token, or not one of this backend's.
    """
    tokens = request.config_dict[TOKENS]
    backend = request.match_info["backend"]
    if backend not in tokens.backends:
        raise UnknownBackend(f"Backend '{backend}' not found", backend=backend)
    header = request.headers.get(hdrs.AUTHORIZATION)
    return _admit(tokens.agent_of(backend, header), header, f"Invalid token for backend '{backend}'")


def _admit(principal: Principal | None, header: str | None, refusal: str) -> Principal:
    if principal is None:
        raise Unauthorized(refusal if header else NO_TOKEN)
    structlog.contextvars.bind_contextvars(principal=principal.name)
    return principal


def _agent(backend: str) -> Principal:
    return Principal(name=f"agent of {backend}", backends=(backend,), verbs=frozenset({Verb.AGENT}))


def _digest(token: str) -> bytes:
    if not token:
        raise ValueError("a token must not be empty")
    # surrogatepass: headers may carry bytes that are no UTF-8, and a wrong token is never a crash.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _find(header: str | None, known: Iterable[tuple[bytes, Principal]]) -> Principal | None:
    scheme, _, rest = (header or "").partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else header
    if not token:
        return None
    candidate = _digest(token)
    found = None
    for digest, principal in known:  # all of them, always: no early exit to measure
        if hmac.compare_digest(digest, candidate):
            found = principal
    return found
