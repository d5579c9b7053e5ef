"""Finding a `rap up` on this machine: by its registration, never by a stale one."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from cli import local
from tests.cli.fake_controller import TOKEN, invoke, serving


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return {"XDG_STATE_HOME": str(tmp_path)}


def info(**changes: Any) -> local.Local:
    values: dict[str, Any] = {
        "controller_url": "http://127.0.0.1:1",
        "client_token": TOKEN,
        "agent_token": "agent-token",
        "backend": "test",
        "data_dir": "/data",
        "pid": os.getpid(),
    }
    return local.Local(**(values | changes))


def test_what_is_registered_is_found(environ: dict[str, str]) -> None:
    local.write_registration(info(), environ)
    assert local.find(environ) == info()
    local.write_registration(info(backend="other"), environ)
    assert local.find(environ) == info(backend="other")


def test_the_file_is_its_owners_only(environ: dict[str, str]) -> None:
    before = os.umask(0)
    try:
        local.write_registration(info(), environ)
    finally:
        os.umask(before)
    path = local.path(environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["up.json"]
    document = json.loads(path.read_text())
    assert attrs.asdict(info()).items() <= document.items()


def test_a_process_that_has_ended_is_not_found(environ: dict[str, str]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        local.write_registration(info(pid=process.pid), environ)
        assert local.find(environ) is not None
        process.kill()
        process.wait()
        assert local.find(environ) is None


def test_another_process_with_the_same_number_is_not_found(environ: dict[str, str]) -> None:
    local.write_registration(info(), environ)
    document = json.loads(local.path(environ).read_text())
    local.path(environ).write_text(json.dumps(document | {"pid_started": document["pid_started"] - 3600}))
    assert local.find(environ) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "1"}', '{"pid": true}', '{"pid": -1}', "\0"])
def test_a_damaged_file_is_no_registration(environ: dict[str, str], text: str) -> None:
    local.path(environ).parent.mkdir(parents=True)
    local.path(environ).write_text(text)
    assert local.find(environ) is None
    local.remove_registration(os.getpid(), environ)


def test_only_ones_own_registration_is_removed(environ: dict[str, str]) -> None:
    local.remove_registration(1, environ)
    local.write_registration(info(), environ)
    local.remove_registration(os.getpid() + 1, environ)
    assert local.find(environ) is not None
    local.remove_registration(os.getpid(), environ)
    assert not local.path(environ).exists()


def test_the_place_follows_the_xdg_specification() -> None:
    assert local.path({"HOME": "/home/x"}) == Path("/home/x/.local/state/rap/up.json")
    assert local.path({"HOME": "/home/x", "XDG_STATE_HOME": "relative"}) == Path("/home/x/.local/state/rap/up.json")
    assert local.path({"HOME": "/home/x", "XDG_STATE_HOME": "/s"}) == Path("/s/rap/up.json")


def test_tokens_do_not_show() -> None:
    assert TOKEN not in repr(info())
    assert "agent-token" not in repr(info())


async def test_commands_find_it(environ: dict[str, str]) -> None:
    async with serving() as controller:
        controller.script["GET /api/raps"] = (200, {"raps": [], "next_cursor": None})
        local.write_registration(info(controller_url=controller.url), environ)
        assert (await invoke(None, "list")).stdout == "No RAPs.\n"
        # Its address may be given too; its token goes nowhere else.
        assert (await invoke(None, "list", RAP_URL=controller.url + "/")).exit_code == 0
        elsewhere = await invoke(None, "list", RAP_URL="http://127.0.0.1:9")
        assert elsewhere.exit_code == 2
        assert "RAP_TOKEN" in elsewhere.stderr
