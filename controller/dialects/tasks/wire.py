"""The Task API's bodies: an update is JSON in the form field `payload` (reference section 2.2)."""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from aiohttp import web
from attrs import field, frozen

from common.convert import structure
from controller.core.storable import storable
from controller.web import body
from controller.web.contract import Contract
from controller.web.errors import MalformedBody

CONTRACT: Final = Contract.load("tasks")

UPDATE: Final = CONTRACT.shape("update")

MOST_FIELDS: Final = 100
"""Form fields that are looked through for `payload`."""


@frozen(kw_only=True)
class Update:
    """The JSON in `payload`: what an agent says about a task."""

    task_id: str
    stage: str
    complete: bool
    timestamp_ns: int | None
    """The agent's own time of the change, nanoseconds since 1970."""
    results: Mapping[str, Any] = field(factory=dict)


async def receive_update(request: web.Request) -> Update:
    """The update in the body of `request`.

    :raises MalformedBody: too large, no form, no `payload`, not JSON in it, or not of the contract's shape.
    """
    data = storable(body.parse(_payload(await body.read(request))), keep_integers=True)
    UPDATE.check(data)
    # Upstream's agents send null or "" where they have nothing to say.
    moment = data["timestamp_ns"]
    return structure(
        {**data, "results": data.get("results") or {}, "timestamp_ns": int(moment) if moment else None},
        Update,
    )


def send(data: Mapping[str, Any], *, status: int = 200) -> web.Response:
    """`data` as JSON."""
    return web.Response(status=status, body=json.dumps(data).encode(), content_type="application/json")


def _payload(raw: bytes) -> str:
    try:
        fields = parse_qs(raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError as error:  # not UTF-8, before or after the percent signs; or too many fields
        raise MalformedBody("could not parse a form from request body") from error
    if "payload" not in fields:
        raise MalformedBody("form field 'payload' is missing")
    return fields["payload"][-1]
