"""Who may operate a backend. A backend that a caller's token does not open looks like one that is not there."""

from controller.core.errors import Forbidden, NotFound
from controller.core.model import Principal, Verb


def admit_operator(principal: Principal, backend: str) -> None:
    """Let only those through who manage `backend`.

    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    """
    if backend not in principal.backends:
        raise NotFound(f"There is no backend {backend!r} for this token.", backend=backend)
    if not principal.may(Verb.MANAGE, backend):
        raise Forbidden(f"This token may use backend {backend!r}, but not manage it.", backend=backend)
