"""Who asks and for what: the caller, paths, parameters and page bounds that the native API's capabilities share."""

import re
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from controller.core.errors import NotFound, Rejected
from controller.core.model import JobId, Principal
from controller.web import auth
from controller.web.contract import Contract

CONTRACT: Final = Contract.load("native")
MAX_BODY: Final = 4096
"""Bytes of a request's body."""
DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 200

_DIGITS: Final = re.compile(r"[0-9]{1,16}")
_ID: Final = re.compile(r"[a-z0-9]{16}")
_AGENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What an agent may call itself (schemas/agents/openapi.yaml)."""
_LONGEST: Final = 512
"""Characters of a text parameter."""


async def caller(request: web.Request) -> Principal:
    """Who asks, of a path without parameters. What they may do there is the engine's to say.

    :raises Unauthorized: no token, or an unknown one.
    :raises Rejected: there are parameters.
    """
    principal = await auth.client(request)
    no_query(request.query)
    return principal


def job_id(request: web.Request) -> JobId:
    """The job in the path.

    :raises NotFound: no job can have such an id, so there is none.
    """
    return JobId(identifier("job", request.match_info["job"]))


def identifier(kind: str, text: str) -> str:
    """`text`, if it can be the id of a RAP or job at all.

    :raises NotFound: it cannot, so there is none.
    """
    if not _ID.fullmatch(text):
        raise NotFound(f"There is no {kind} with this id.")
    return text


def agent_name(text: str) -> str:
    """`text`, if an agent can be called so at all.

    :raises NotFound: none can, so there is none.
    """
    if not _AGENT.fullmatch(text):
        raise NotFound("There is no agent with this name.")
    return text


class Parameters:
    """A query read parameter by parameter; `done` tells every fault at once."""

    def __init__(self, query: Mapping[str, str]) -> None:
        self._left = dict(query)
        self._faults: dict[str, str] = {}

    def number(self, name: str, *, least: int, most: int) -> int | None:
        """The integer called `name`; None if it is absent (or faulty)."""
        text = self._left.pop(name, None)
        if text is None:
            return None
        if _DIGITS.fullmatch(text) and least <= int(text) <= most:
            return int(text)
        self._faults[name] = f"must be an integer from {least} to {most}"
        return None

    def text(self, name: str, *, among: tuple[str, ...] = ()) -> str | None:
        """The text called `name`; None if it is absent (or faulty)."""
        text = self._left.pop(name, None)
        if text is None:
            return None
        if among and text not in among:
            self._faults[name] = f"must be {' or '.join(among)}"
        elif not text or len(text) > _LONGEST or "\0" in text:
            self._faults[name] = f"must have 1 to {_LONGEST} characters, none of them NUL"
        else:
            return text
        return None

    def done(self) -> None:
        """:raises Rejected: with every fault, by the parameter's name."""
        self._faults.update((name, "is not a parameter here") for name in self._left)
        if self._faults:
            faults = [f"{name[:_LONGEST]} {fault}" for name, fault in self._faults.items()]
            raise Rejected(f"Unusable query: {'; '.join(faults)}", faults=faults)


def no_query(query: Mapping[str, str]) -> None:
    """For a path without parameters.

    :raises Rejected: there are some.
    """
    Parameters(query).done()


def only_backend(query: Mapping[str, str]) -> list[str] | None:
    """The query of a list over backends: the one that it asks about, None for all.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = Parameters(query)
    backend = parameters.text("backend")
    parameters.done()
    return None if backend is None else [backend]
