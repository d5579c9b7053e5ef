"""What people type for a RAP or a job, as ids: a whole id, the unique beginning of one, or RAP/ACTION."""

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Final

from cli.client import Client
from cli.errors import Missing, Problem

_ID: Final = re.compile(r"[a-z0-9]{16}")
_BEGINNING: Final = re.compile(r"[a-z0-9]{1,15}")
_NEWEST: Final = 1000
"""RAPs among which the beginning of a RAP's id is looked for."""
_NEWEST_FOR_JOBS: Final = 100
"""The same for a job's id, which needs each RAP's details."""
_AT_ONCE: Final = 8


async def rap(client: Client, text: str) -> str:
    """The id of the RAP that `text` names.

    :raises Problem: it names none, or several.
    """
    if _ID.fullmatch(text):
        return text
    if not _BEGINNING.fullmatch(text):
        raise Problem(f"{text!r} is no RAP id: ids have 16 of the characters a-z, 0-9")
    found = [each["id"] for each in await _newest(client, _NEWEST) if each["id"].startswith(text)]
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
    limit = asyncio.Semaphore(_AT_ONCE)

    async def ids_in(rap_id: str) -> list[str]:
        async with limit:
            return [each["id"] for each in (await client.read("raps", rap_id))["jobs"]]

    raps = await _newest(client, _NEWEST_FOR_JOBS)
    lists = await asyncio.gather(*(ids_in(each["id"]) for each in raps))
    found = [each for ids in lists for each in ids if each.startswith(text)]
    return _only(found, f"job id in the newest {_NEWEST_FOR_JOBS} RAPs begins with {text}")


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


async def _newest(client: Client, count: int) -> list[dict[str, Any]]:
    raps: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(raps) < count:
        page = await client.read("raps", limit=min(200, count - len(raps)), cursor=cursor)
        raps.extend(page["raps"])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return raps


def _only(found: Iterable[str], what: str) -> str:
    ids = list(found)
    if not ids:
        raise Problem(f"no {what}")
    if len(ids) > 1:
        raise Problem(f"more than one {what}: {', '.join(ids[:10])}")
    return ids[0]
