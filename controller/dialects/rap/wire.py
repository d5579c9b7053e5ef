"""The RAP API's bodies: what comes in, as attrs classes; and how JSON goes out.

The shapes are checked against the published contract first, so the messages are the ones that portals know
(reference section 1.1). Unknown keys are ignored, everywhere.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from aiohttp import web
from attrs import frozen

from common.convert import structure
from controller.web import body
from controller.web.contract import Contract, Shape

T = TypeVar("T")

CONTRACT: Final = Contract.load("rap")

LARGE: Final = 32_768
"""Bytes from which a body is decoded in a thread: tens of thousands of ids would make others wait."""


@frozen(kw_only=True)
class CreateRap:
    """Body of `rap/create/`."""

    backend: str
    rap_id: str
    workspace: str
    repo_url: str
    branch: str
    commit: str
    database_name: str
    requested_actions: tuple[str, ...]
    codelists_ok: bool
    force_run_dependencies: bool
    created_by: str
    project: str
    orgs: tuple[str, ...]
    analysis_scope: Mapping[str, tuple[str, ...]] | None = None


@frozen(kw_only=True)
class CancelRap:
    """Body of `rap/cancel/`."""

    rap_id: str
    actions: tuple[str, ...]


@frozen(kw_only=True)
class StatusOfRaps:
    """Body of `rap/status/`."""

    rap_ids: tuple[str, ...]


SHAPES: Final[Mapping[type, Shape]] = {
    CreateRap: CONTRACT.shape("createRequestBody"),
    CancelRap: CONTRACT.shape("cancelRequestBody"),
    StatusOfRaps: CONTRACT.shape("statusRequestBody"),
}


async def receive(request: web.Request, cls: type[T]) -> T:
    """The body of `request` as a `cls`.

    :raises MalformedBody: too large, not JSON, or not of the shape in the contract.
    """
    raw = await body.read(request)
    if len(raw) < LARGE:
        return _decode(raw, cls)
    return await asyncio.to_thread(_decode, raw, cls)


def send(data: Mapping[str, Any], *, status: int = 200, compact: bool = False) -> web.Response:
    """`data` as JSON, spaced as Python's `json` does by default or, for `backend/status/`, not at all."""
    text = json.dumps(data, separators=(",", ":") if compact else None)
    return web.Response(status=status, body=text.encode(), content_type="application/json")


def _decode(raw: bytes, cls: type[T]) -> T:
    data = body.parse_unicode(raw)
    SHAPES[cls].check(data)
    return structure(data, cls)
