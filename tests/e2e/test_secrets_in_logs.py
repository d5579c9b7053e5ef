"""No log line of a controller or an agent has a secret: planted in settings, headers, queries, paths and bodies."""

import asyncio
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from attrs import define, field

from common import tokens
from tests.e2e.processes import Process, address, agent_process, controller_process, ended, eventually, portal, running
from tests.engine.conftest import Study, commit_project


@define
class Planted:
    """Secrets by what they are planted as; each is found again in any text by its random part."""

    values: dict[str, str] = field(factory=dict)

    def make(self, kind: str) -> str:
        self.values[kind] = f"{kind}-{secrets.token_hex(12)}"
        return self.values[kind]

    def found(self, lines: list[str]) -> set[str]:
        text = "\n".join(lines)
        return {kind for kind, value in self.values.items() if value.rpartition("-")[2] in text}


def controller_settings(planted: Planted, dsn: str) -> dict[str, str]:
    """A controller all of whose secrets are planted, that tells as much as it can."""
    return {
        "RAP_DATABASE_URL": dsn.replace("postgres@", f"postgres:{planted.make('database')}@"),
        "TEST_CLIENT_TOKENS": planted.make("client"),
        "TEST_OPERATOR_TOKENS": planted.make("operator"),
        "TEST_JOB_SERVER_TOKEN": planted.make("agent"),
        "RAP_METRICS_TOKEN": planted.make("metrics"),
        "PRIVATE_REPO_ACCESS_TOKEN": planted.make("repository"),
        "STATA_LICENSE": planted.make("licence"),
        "LOGLEVEL": "debug",
    }


def agent_settings(planted: Planted, name: str) -> dict[str, str]:
    return {
        "RAP_AGENT_ID": name,
        "PRIVATE_REPO_ACCESS_TOKEN": planted.values["repository"],
        "DEFAULT_DATABASE_URL": f"mssql://user:{planted.make('patients')}@db/x",
        "LOGLEVEL": "debug",
    }


async def run_a_job(where: str, study: Study, token: str) -> None:
    async with portal(where) as live:
        live.portal.headers["Authorization"] = token
        status, created = await live.create(study, "work")
        assert status == 201, created

        async def done() -> bool:
            (job,) = (await live.jobs(created["rap_id"])).values()
            return bool(job["status"] in ("succeeded", "failed"))

        await eventually(done)


async def misuse(where: str, planted: Planted) -> None:
    """Send secrets wherever a client might by mistake."""
    wrong = {kind: planted.make(kind) for kind in ("header", "query", "path", "body", "cookie", "basic", "key", "name")}
    ours = planted.values["ours"] = tokens.make()
    good = planted.values["operator"]
    tries: list[tuple[str, str, Mapping[str, str], bytes]] = [
        ("GET", "/api/raps", {"Authorization": f"Bearer {wrong['header']}"}, b""),
        ("GET", "/api/raps", {"Authorization": ours}, b""),
        ("GET", f"/api/raps?token={wrong['query']}&limit=x", {"Authorization": good}, b""),
        ("GET", f"/api/jobs/{wrong['path']}", {"Authorization": good}, b""),
        ("POST", f"/{wrong['path']}/task/update/", {"Authorization": good}, b""),
        ("POST", "/controller/v1/rap/create/", {"Authorization": good}, json.dumps({"token": wrong["body"]}).encode()),
        ("POST", "/controller/v1/rap/create/", {"Authorization": good}, f'{{"token": "{wrong["body"]}"'.encode()),
        ("POST", "/agent/v1/test/claim", {"Authorization": planted.values["agent"]}, f'"{wrong["body"]}'.encode()),
        ("GET", "/metrics", {"Cookie": f"session={wrong['cookie']}", "X-Api-Key": wrong["key"]}, b""),
        ("GET", "/metrics", {"Authorization": f"Basic {wrong['basic']}"}, b""),
        ("POST", f"/api/tokens/{wrong['name']}/revoke", {"Authorization": good}, b"{}"),
        ("PUT", f"/agent/v1/{wrong['path']}/agents/{wrong['name']}", {"Authorization": ours}, b"{}"),
    ]
    async with aiohttp.ClientSession() as session:
        for method, path, headers, body in tries:
            async with session.request(method, f"http://{where}{path}", headers=headers, data=body) as response:
                assert response.status < 500, (path, await response.text())
    await _send_nonsense(where, planted)


async def _send_nonsense(where: str, planted: Planted) -> None:
    """Requests that are no HTTP, which the library answers, and logs, before we see them."""
    host, _, port = where.rpartition(":")
    secret = planted.make("malformed")
    huge = b"x" * 50_000
    for request in (
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {secret}\x00\r\n\r\n".encode(),
        f"GET /?token={secret} HTTP/9.9.9\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nAuthorization: {secret}".encode() + huge + b"\r\n\r\n",
        f"Authorization: Bearer {planted.values['operator']}\r\n\r\n".encode(),
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_no_line_has_a_secret(database_dsn: str, tmp_path: Path) -> None:
    planted = Planted()
    action = {"run": "python:v2 write:out.csv=1", "outputs": {"highly_sensitive": {"out": "out.csv"}}}
    commit = commit_project(tmp_path / "study", {"version": "4", "actions": {"work": action}})
    controller = controller_process(database_dsn, tmp_path / "c", **controller_settings(planted, database_dsn))
    async with running(controller):
        where = await address(controller)
        token = planted.values["agent"]
        good = agent_process(
            "good", f"http://{where}", tmp_path, CONTROLLER_TASK_API_TOKEN=token, **agent_settings(planted, "good")
        )
        wrong = agent_process("wrong", f"http://{where}", tmp_path, CONTROLLER_TASK_API_TOKEN=planted.make("refused"))
        async with running(good, wrong):
            await wrong.wait_for("refuse")
            await run_a_job(where, Study(tmp_path / "study", commit), planted.values["client"])
            await misuse(where, planted)
            await controller.end()
            await good.wait_for("did not answer")
        said = [*controller.said, *good.said, *wrong.said]
    assert len([line for line in controller.said if '"event":"request"' in line]) > 12
    assert len([line for line in controller.said if "request_malformed" in line]) == 4
    assert planted.found(said) == set()
    assert not [line for line in said if "x" * 1000 in line and len(line) > 20_000]


async def test_a_controller_that_cannot_start_does_not_say_why_with_a_password(tmp_path: Path) -> None:
    planted = Planted()
    for dsn in (
        "postgresql://rap:{}@127.0.0.1:1/rap",
        "postgresql://rap:{}@[::bad/rap",
        "postgresql://rap:{}@h:port/rap",
    ):
        controller: Process = controller_process(dsn.format(planted.make("database")), tmp_path)
        async with ended(controller):
            await controller.start()
            assert controller.process is not None
            assert await controller.process.wait() == 2
            assert await controller.end() == 2
        assert controller.said
        assert planted.found(controller.said) == set()
