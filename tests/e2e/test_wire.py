"""Every route's edges, as reference sections 1 and 2 tell them, on a real controller."""

import asyncio
import re

import pytest

from tests.e2e.conftest import AGENT_TOKEN, CLIENT_TOKEN, OTHER_TOKEN, LiveController
from tests.engine.conftest import Study

RAP_API = "/controller/v1/"
SAFE_HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

EDGES: list[tuple[str, str, str, int, dict[str, str]]] = [
    # method, path, token, status, headers
    *[
        (method, f"{RAP_API}{path}/", token, 405, {"Allow": "POST", "Content-Type": "text/html; charset=utf-8"})
        for path in ("rap/create", "rap/cancel", "rap/status")
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS")
        for token in ("", CLIENT_TOKEN)
    ],
    *[
        (method, f"{RAP_API}backend/status/", token, 405, {"Allow": "GET"})
        for method in ("HEAD", "POST", "OPTIONS")
        for token in ("", CLIENT_TOKEN)
    ],
    *[
        (method, f"{RAP_API}{path}", "", 301, {"Location": f"{RAP_API}{path}/"})
        for path in ("rap/create", "rap/cancel", "rap/status", "backend/status", "docs")
        for method in ("GET", "POST")
    ],
    ("POST", "/test/task/update", "", 301, {"Location": "/test/task/update/"}),
    ("GET", "/test/tasks?a=b", "", 301, {"Location": "/test/tasks/?a=b"}),
    ("POST", f"{RAP_API}docs/", "", 403, {}),
    ("POST", f"{RAP_API}spec.json", "", 403, {}),
    ("GET", f"{RAP_API}docs/", "", 200, {"Content-Type": "text/html; charset=utf-8"}),
    ("GET", f"{RAP_API}spec.json", "", 200, {"Content-Type": "application/json"}),
    ("GET", f"{RAP_API}spec.json/", "", 404, {}),
    ("GET", f"{RAP_API}backend/status/", "", 401, {"Content-Type": "application/json"}),
    ("GET", f"{RAP_API}backend/status/", "x", 401, {}),
    ("GET", f"{RAP_API}backend/status/", AGENT_TOKEN, 401, {}),
    ("GET", f"{RAP_API}backend/status/", f"Bearer {CLIENT_TOKEN}", 200, {}),
    ("POST", f"{RAP_API}rap/create/", CLIENT_TOKEN, 400, {"Content-Type": "application/json"}),
    ("GET", "/test/tasks/", "", 401, {}),
    ("GET", "/test/tasks/", CLIENT_TOKEN, 401, {}),
    ("GET", "/other/tasks/", AGENT_TOKEN, 401, {}),
    ("GET", "/mars/tasks/", AGENT_TOKEN, 404, {"Content-Type": "application/json"}),
    ("HEAD", "/test/tasks/", AGENT_TOKEN, 200, {}),
    ("POST", "/test/tasks/", AGENT_TOKEN, 403, {}),
    ("GET", "/test/task/update/", AGENT_TOKEN, 405, {"Allow": "POST"}),
    ("GET", "/test/task/update/", "", 401, {}),
    ("GET", "/mars/task/update/", "", 404, {}),
    ("DELETE", "/", "", 200, {"Content-Type": "application/json"}),
    ("GET", "/nothing/here/at/all", CLIENT_TOKEN, 404, {"Content-Type": "text/html; charset=utf-8"}),
    ("GET", "/agent/v1/test/claim", AGENT_TOKEN, 405, {"Allow": "POST"}),
    ("POST", "/agent/v1/other/claim", AGENT_TOKEN, 401, {}),
    ("POST", "/agent/v1/mars/claim", AGENT_TOKEN, 401, {}),
    ("PUT", "/agent/v1/test/agents/%2e%2e%2fx", AGENT_TOKEN, 400, {}),
    ("POST", "/api/raps", CLIENT_TOKEN, 405, {}),
    ("GET", "/api/raps?limit=0", CLIENT_TOKEN, 400, {}),
    ("GET", "/api/raps?limit=99999999999999999999", CLIENT_TOKEN, 400, {}),
    ("GET", "/api/raps?cursor=%00", CLIENT_TOKEN, 400, {}),
    ("GET", "/api/raps?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", CLIENT_TOKEN, 400, {}),
    ("GET", "/api/raps?workspace=%ff", CLIENT_TOKEN, 200, {}),
    ("GET", "/api/raps?backend=mars", CLIENT_TOKEN, 200, {}),
    ("GET", "/api/raps/%ff", CLIENT_TOKEN, 404, {}),
    ("GET", "/api/flags", CLIENT_TOKEN, 403, {}),
    ("POST", "/api/backends/test/pause", CLIENT_TOKEN, 403, {}),
    ("POST", "/api/backends/test/pause", AGENT_TOKEN, 401, {}),
    ("POST", "/api/backends/other/pause", CLIENT_TOKEN, 404, {}),
    ("POST", "/api/backends/mars%00/pause", CLIENT_TOKEN, 404, {}),
    ("GET", "/api/backends/test/pause", CLIENT_TOKEN, 405, {"Allow": "POST"}),
    ("POST", "/api/backends/test/prepare-for-reboot", CLIENT_TOKEN, 403, {}),
    ("GET", "/api/backends/test/reboot-status", CLIENT_TOKEN, 403, {}),
    ("GET", f"/api/jobs/{'a' * 16}/log?attempt=2147483648", CLIENT_TOKEN, 400, {}),
    ("GET", f"/api/jobs/{'a' * 16}/log?attempt=2147483647", CLIENT_TOKEN, 404, {}),
]


async def test_every_edge_of_every_route_is_as_the_reference_tells(live: LiveController) -> None:
    for method, path, token, status, headers in EDGES:
        sent = {"Authorization": token}  # the session's own would be sent instead of none
        async with live.portal.request(method, live.url + path, headers=sent, allow_redirects=False) as response:
            place = f"{method} {path} with {token!r}"
            assert response.status == status, place
            for name, value in (SAFE_HEADERS | headers).items():
                assert response.headers.get(name) == value, f"{place}: {name}"
            if status in (301, 405) and not path.startswith(("/agent", "/api")):
                assert await response.read() == b"", place


async def test_jobs_come_by_rap_and_in_the_order_of_their_needs(live: LiveController, study: Study) -> None:
    for rap_id in ("b" * 16, "a" * 16):
        status, _ = await live.create(study, "report", rap_id=rap_id, workspace=rap_id)
        assert status == 201
    _, body = await live.post("rap/status/", {"rap_ids": ["b" * 16, "z" * 16, "a" * 16, "z" * 16]})
    order = [(job["rap_id"][0], job["action"]) for job in body["jobs"]]
    actions = ("extract", "analyse", "count", "report")
    assert order == [(rap, action) for rap in "ab" for action in actions]
    assert body["unrecognised_rap_ids"] == ["z" * 16]
    for job in body["jobs"]:
        assert len(job) == 15
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", job["created_at"])


async def test_a_foreign_token_sees_and_changes_nothing(live: LiveController, study: Study) -> None:
    await live.create(study, "extract", rap_id="a" * 16)
    foreign = {"Authorization": OTHER_TOKEN}
    url = live.url + RAP_API
    async with live.portal.post(f"{url}rap/status/", json={"rap_ids": ["a" * 16]}, headers=foreign) as response:
        assert await response.json() == {"jobs": [], "unrecognised_rap_ids": ["a" * 16]}
    cancel = {"rap_id": "a" * 16, "actions": ["extract"]}
    async with live.portal.post(f"{url}rap/cancel/", json=cancel, headers=foreign) as response:
        assert response.status == 404
    async with live.portal.get(f"{live.url}/api/raps/{'a' * 16}", headers=foreign) as response:
        assert response.status == 404
    async with live.portal.get(f"{live.url}/api/raps", headers=foreign) as response:
        assert (await response.json())["raps"] == []
    (job,) = (await live.jobs("a" * 16)).values()
    assert job["status"] != "failed"
    async with live.portal.get(f"{live.url}/api/jobs/{job['identifier']}", headers=foreign) as response:
        assert response.status == 404


async def test_pages_of_raps_join_without_gap_or_repetition(live: LiveController, study: Study) -> None:
    ids = [f"{number:016d}" for number in range(7)]
    for number, rap_id in enumerate(ids):
        action = ("extract", "query", "analyse", "count")[number // 2]
        status, _ = await live.create(study, action, rap_id=rap_id, workspace=f"w{number % 2}")
        assert status == 201
    await live.post("rap/cancel/", {"rap_id": ids[3], "actions": ["query"]})

    async def pages(query: str) -> list[str]:
        found: list[str] = []
        cursor = ""
        while True:
            async with live.portal.get(f"{live.url}/api/raps?limit=2{query}{cursor}") as response:
                page = await response.json()
            found += [rap["id"] for rap in page["raps"]]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    newest = ids[::-1]
    assert await pages("") == newest
    assert await pages("&workspace=w1") == [rap for rap in newest if int(rap) % 2]
    assert await pages("&state=finished") == [ids[3]]
    assert await pages("&state=active") == [rap for rap in newest if rap != ids[3]]
    assert await pages("&state=active&workspace=w1") == [ids[5], ids[1]]
    assert await pages("&backend=other") == []


@pytest.mark.parametrize("older", [{"database_name": "include_t1oo"}, {"analysis_scope": None}], ids=str)
async def test_both_spellings_of_a_request_are_understood(
    live: LiveController, study: Study, older: dict[str, str | None]
) -> None:
    answers = await asyncio.gather(live.create(study, "query", **older), live.create(study, "extract"))
    assert [status for status, _ in answers] == [201, 201]
