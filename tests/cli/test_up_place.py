"""The folder of a `rap up`: its lock, its tokens, its port, its ready file."""

import json
import socket
import stat
from pathlib import Path

import pytest

from cli.errors import Problem
from cli.local import Local
from cli.stack import place
from cli.stack.service import Service, bound_log


def test_a_folder_has_one_user_at_a_time(tmp_path: Path):
    lock = place.Lock(tmp_path / "a" / "b")
    with pytest.raises(Problem, match=r"already running on .*/a/b \(process \d+\)"):
        place.Lock(tmp_path / "a" / "b")
    lock.release()
    place.Lock(tmp_path / "a" / "b").release()


def test_tokens_are_made_once_and_are_for_the_owner_only(tmp_path: Path):
    made = place.tokens(tmp_path)
    assert place.tokens(tmp_path) == made
    assert len({made.client, made.agent}) == 2
    assert min(len(made.client), len(made.agent)) >= 40
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600
    assert made.client not in repr(made)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"client": "a"}'])
def test_damaged_tokens_are_told_and_not_replaced(tmp_path: Path, content: str):
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(Problem, match=r"tokens\.json cannot be read"):
        place.tokens(tmp_path)
    assert (tmp_path / "tokens.json").read_text() == content


def test_ports():
    assert place.free_port(0) > 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Problem, match=f"port {port} is in use"):
            place.free_port(port)
    assert place.free_port(port) == port


def test_an_old_ready_file_does_not_outlive_the_next_start(tmp_path: Path):
    (tmp_path / "ready.json").write_text("{}")
    made = place.prepare(tmp_path)
    assert not made.ready_file.exists()
    assert made.logs.is_dir()


def test_the_ready_file_is_whole_and_private(tmp_path: Path):
    info = Local(controller_url="u", client_token="c", agent_token="a", backend="test", data_dir="d", pid=1)
    place.announce(tmp_path / "r.json", info)
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == 0o600
    assert json.loads((tmp_path / "r.json").read_text())["client_token"] == "c"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    with pytest.raises(Problem, match=r"missing/r\.json cannot be written"):
        place.announce(tmp_path / "missing" / "r.json", info)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert place.default_folder({}) == Path("/home/x/.local/share/rap")
    assert place.default_folder({"XDG_DATA_HOME": "/data"}) == Path("/data/rap")
    assert place.default_folder({"XDG_DATA_HOME": "relative"}) == Path("/home/x/.local/share/rap")


def test_a_log_is_cut_and_its_last_piece_kept(tmp_path: Path):
    log = tmp_path / "x.log"
    log.write_bytes(b"a" * 100)
    with log.open("ab") as writer:
        bound_log(log, 100)
        assert log.stat().st_size == 100
        bound_log(log, 99)
        assert log.stat().st_size == 0
        assert (tmp_path / "x.log.1").read_bytes() == b"a" * 100
        writer.write(b"b")
    assert log.read_bytes() == b"b"
    bound_log(tmp_path / "missing.log", 0)


@pytest.mark.parametrize(
    ("said", "gist"),
    [
        ("", "it said nothing (see LOG)"),
        ("A must be set\nB is wrong\n", "A must be set; B is wrong"),
        ('{"event": "failed", "exception": "Traceback\\nValueError: x"}\n', "ValueError: x"),
        ('{"event": "listening"}\nport 1 is in use\n', "port 1 is in use"),
        ("Traceback (most recent call last):\n  File x\nKeyError: y\n", "KeyError: y (see LOG)"),
    ],
)
def test_the_last_words_of_a_process(tmp_path: Path, said: str, gist: str):
    log = tmp_path / "x.log"
    log.write_text(said)
    service = Service("controller", {}, log, lambda _: None)
    assert service.last_words().replace(str(log), "LOG") == gist
