"""What operators, their scripts and agents get wrong in names, queries and numbers is told them as their mistake."""

import asyncio
import json
from typing import Any

import pytest
from yarl import URL

from tests.e2e.conftest import AGENT_TOKEN, OPERATOR_TOKEN, LiveController

ID = "a" * 16
DIGEST = "0" * 64
ODD_NAMES = (
    b"%00",
    b"a%00b",
    b"%FF",
    b"%C3%28",
    b"\xff",
    b"\xed\xa0\x80",
    b"%ED%A0%80",
    b"x" * 4000,
    b"%20",
    b"%F0%9F%98%80",
)
ODD_CURSORS = (b"OTIyMzM3MjAzNjg1NDc3NTgwOA", b"OTIyMzM3MjAzNjg1NDc3NTgwNy4yMTQ3NDgzNjQ3", b"LTE", b"MC4w", b"4pml")
"""2**63, 2**63 - 1 and 2**31 - 1, -1, 0.0, a heart."""
ODD_NUMBERS = (
    "1.0",
    "0.5",
    "-0.0",
    "-1",
    "NaN",
    "Infinity",
    "1e308",
    "1e400",
    str(10**400),
    str(2**63),
    "9.223372036854775e18",
    "86400.0",
    "true",
    '"1"',
    "null",
    "[]",
)


async def send(live: LiveController, method: str, target: bytes, body: bytes = b"", token: str = OPERATOR_TOKEN) -> int:
    """The status of the answer to a request whose target is sent byte for byte."""
    url = URL(live.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"Host: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(method.encode() + b" " + target + b" HTTP/1.1\r\n" + head.encode() + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/api/backends/%s/pause", b""),
        (b"/api/backends/%s/maintenance", b'{"on": true}'),
        (b"/api/backends/%s/prepare-for-reboot", b""),
        (b"/api/backends/%s/agents/a/forget", b""),
        (b"/api/backends/test/agents/%s/forget", b""),
        (b"/api/backends/%s/limits", b'{"workers": 1}'),
        (b"/api/backends/%s/prune", b'{"older_than_seconds": 86400}'),
        (b"/api/tokens/%s/revoke", b""),
        (b"/api/jobs/%s/kill", b""),
        (b"/api/jobs/%s/retry", b""),
    ],
)
async def test_no_odd_name_in_a_path_is_a_fault_of_ours(live: LiveController, path: bytes, body: bytes) -> None:
    answers = {name: await send(live, "POST", path % name, body) for name in ODD_NAMES}
    assert {name: status for name, status in answers.items() if status not in (400, 404)} == {}


@pytest.mark.parametrize(
    "path",
    [
        b"/api/jobs?workspace=%s",
        b"/api/jobs?backend=%s",
        b"/api/jobs?cursor=%s",
        b"/api/jobs?state=active&cursor=%s",
        b"/api/jobs?code=%s",
        b"/api/jobs?%s=1",
        b"/api/jobs?state=%s",
        b"/api/raps?workspace=%s",
        b"/api/raps?cursor=%s",
        b"/api/limits?backend=%s",
        b"/api/flags?backend=%s",
        b"/api/diagnosis?%s",
        b"/api/backends/%s/reboot-status",
    ],
)
async def test_no_odd_query_is_a_fault_of_ours(live: LiveController, path: bytes) -> None:
    answers = {text: await send(live, "GET", path % text) for text in (*ODD_NAMES, *ODD_CURSORS)}
    assert {text: status for text, status in answers.items() if status not in (200, 400, 404)} == {}


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("backends/test/limits", '{"workers": %s}'),
        ("backends/test/limits", '{"workers": 1, "db_workers": %s}'),
        ("backends/test/maintenance", '{"on": %s}'),
        ("backends/test/prune", '{"older_than_seconds": %s}'),
        ("backends/test/prune", '{"older_than_seconds": 86400, "after": %s}'),
        (f"jobs/{ID}/retry", '{"attempt": %s}'),
        ("tokens", f'{{"name": "a", "digest": "{DIGEST}", "grants": {{"test": ["read"]}}, "lifetime_seconds": %s}}'),
        ("tokens", f'{{"name": "a", "digest": "{DIGEST}", "grants": {{"test": %s}}}}'),
        ("tokens", f'{{"name": %s, "digest": "{DIGEST}", "grants": {{"test": ["read"]}}}}'),
        ("tokens", '{"name": "a", "digest": %s, "grants": {"test": ["read"]}}'),
    ],
)
async def test_no_odd_number_is_a_fault_of_ours(live: LiveController, path: str, template: str) -> None:
    bodies = {number: (template % number).encode() for number in ODD_NUMBERS}
    answers = {number: await send(live, "POST", f"/api/{path}".encode(), body) for number, body in bodies.items()}
    assert {number: status for number, status in answers.items() if status not in (200, 400, 404, 409)} == {}


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"slots": 0}, 400),
        ({"slots": 10**400}, 400),
        ({"slots": True}, 400),
        ({"on_loss": "\0"}, 400),
        ({"on_loss": None}, 400),
        ({"version": "\0"}, 200),
        ({"egress": {"\0": 1}}, 200),
    ],
    ids=lambda odd: str(odd)[:40],
)
async def test_no_odd_declaration_is_a_fault_of_ours(live: LiveController, odd: dict[str, Any], expected: int) -> None:
    declaration = json.dumps({"protocol": 1, "version": "1", "executor": "fake", "slots": 1} | odd).encode()
    assert await send(live, "PUT", b"/agent/v1/test/agents/a", declaration, AGENT_TOKEN) == expected
