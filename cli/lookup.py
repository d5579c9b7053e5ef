"""What people type for a RAP or a job, as ids: a whole id, the unique beginning of one, or RAP/ACTION."""

import re
from collections.abc import Iterable
from typing import Any, Final

from cli.client import Client
from cli.errors import Missing, Problem

_ID: Final = re.compile(r"[a-z0-9]{16}")
_BEGINNING: Final = re.compile(r"[a-z0-9]{1,15}")
_NEWEST: Final = 1000
"""RAPs among which the beginning of a RAP's id is looked for."""
_NEWEST_JOBS: Final = 2000
"""The same for a job's id."""
_PAGE: Final = 200


async def rap(client: Client, text: str) -> str:
    """The id of the RAP that `text` names.

    :raises Problem: it names none, or several.
    """
    if _ID.fullmatch(text):
        return text
    if not _BEGINNING.fullmatch(text):
        raise Problem(f"{text!r} is no RAP id: ids have 16 of the characters a-z, 0-9")
    found = [each["id"] for each in await _newest(client, "raps", _NEWEST) if each["id"].startswith(text)]
    return _only(found, f"RAP id among the newest {_NEWEST} begins with {text}")


async def check_backend(client: Client, slug: str) -> None:
    """For commands that found nothing of a backend: a name with a slip must not look like an empty backend.

    :raises Problem: the token opens no such backend.
    """
    if all(each["slug"] != slug for each in (await client.read("backends"))["backends"]):
        raise Problem(f"there is no backend {slug!r} for this token: see `rap backends`")


async def job(client: Client, text: str) -> str:
    """The id of the job that `text` names.

    :raises Problem: it names none, or several.
    """
    if "/" in text:
        name, _, action = text.partition("/")
        return await _of_action(client, name, action)
    if _ID.fullmatch(text):
        await _explain_rap(client, text)
        return text
    if not _BEGINNING.fullmatch(text):
        raise Problem(f"{text!r} is no job: give its id, the beginning of its id, or RAP_ID/ACTION")
    found = [each["id"] for each in await _newest(client, "jobs", _NEWEST_JOBS) if each["id"].startswith(text)]
    return _only(found, f"job id among the newest {_NEWEST_JOBS} begins with {text}")


async def _of_action(client: Client, name: str, action: str) -> str:
    detail = await client.read("raps", await rap(client, name))
    for each in detail["jobs"]:
        if each["action"] == action:
            return str(each["id"])
    actions = ", ".join(str(each["action"]) for each in detail["jobs"])
    raise Problem(f"RAP {detail['rap']['id']} has no action {action!r}; it has {actions}")


async def _explain_rap(client: Client, text: str) -> None:
    """Say how to name a job, if `text` is a RAP's id instead of a job's."""
    try:
        await client.read("jobs", text)
    except Missing as missing:
        try:
            detail = await client.read("raps", text)
        except Missing:
            raise missing from None
        names = ", ".join(f"{text}/{each['action']}" for each in detail["jobs"])
        raise Problem(f"{text} is a RAP; its jobs are {names}") from None


async def _newest(client: Client, kind: str, count: int) -> list[dict[str, Any]]:
    """The newest `raps` or `jobs`, up to `count` of them."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < count:
        page = await client.read(kind, limit=min(_PAGE, count - len(found)), cursor=cursor)
        found.extend(page[kind])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return found


def _only(found: Iterable[str], what: str) -> str:
    ids = list(found)
    if not ids:
        raise Problem(f"no {what}")
    if len(ids) > 1:
        raise Problem(f"more than one {what}: {', '.join(ids[:10])}")
    return ids[0]
