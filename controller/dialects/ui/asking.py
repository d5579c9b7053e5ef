"""What pages are asked with: ids in paths, filters, and what every page is filled with."""

import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from controller.core.errors import NotFound
from controller.core.model import JobId, RapId, Verb
from controller.dialects.ui import templating
from controller.dialects.ui.session import Visitor
from controller.web.keys import CLOCK

ID: Final = re.compile(r"[a-z0-9]{16}")
_NAME: Final = re.compile(r"[a-z0-9_-]{1,100}")
_LONGEST: Final = 200
"""Characters of a filter."""

SAID: Final[Mapping[str, str]] = {
    "cancelled": "Cancelled. What was finished already stays as it was, but later requests run it anew.",
    "killed": "The job was ended.",
    "over": "Nothing was done: the job was over already.",
    "stopped": "The attempt is stopped; the job is in the queue for another.",
    "hastened": "The job rests no longer; it starts as soon as there is room.",
    "resubmitted": "The finished job stays as it is; this request runs its action again.",
    "nothing": "There was nothing to retry.",
    "paused": "The backend is paused: what runs runs on, and nothing new is started.",
    "unpaused": "The backend starts jobs again.",
    "unchanged": "Nothing was done: it was so already.",
}
"""What an action has come to, by the word in the address it leads to: an address cannot make a page say anything."""


def rap_id(request: web.Request) -> RapId:
    """The RAP that the path names.

    :raises NotFound: no RAP can be called so.
    """
    return RapId(_id(request.match_info["rap"], "RAP"))


def job_id(request: web.Request) -> JobId:
    """The job that the path names.

    :raises NotFound: no job can be called so.
    """
    return JobId(_id(request.match_info["job"], "job"))


def backend(request: web.Request) -> str:
    """The backend that the path names, be there one or not.

    :raises NotFound: no backend can be called so.
    """
    found = request.match_info["backend"]
    if not _NAME.fullmatch(found):
        raise NotFound("There is no such backend.")
    return found


def text(request: web.Request, name: str) -> str | None:
    """A filter, None if it is not set; what the database cannot hold finds nothing."""
    found = request.query.get(name, "").strip().replace("\x00", "")[:_LONGEST]
    return found.encode("utf-8", "replace").decode() or None


def render(
    request: web.Request, visitor: Visitor, template: str, values: Mapping[str, Any], *, status: int = 200
) -> web.Response:
    """A page for somebody who is signed in."""
    common = {
        "visitor": visitor,
        "operates": bool(visitor.principal.backends_for(Verb.MANAGE)),
        "here": str(request.rel_url),
        "now": request.config_dict[CLOCK].now(),
        "said": SAID.get(request.query.get("said", ""), ""),
        "section": "",
    }
    return templating.page(template, common | dict(values), status=status)


def _id(found: str, noun: str) -> str:
    if not ID.fullmatch(found):
        raise NotFound(f"There is no such {noun}.")
    return found
