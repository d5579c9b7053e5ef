"""Copies are whole or not there: under a reader's eyes, on a full disk, when stopped, when the process is killed."""

import asyncio
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.definition import parse_definition
from agent.core.errors import MissingInput, OutputClash, UnsafePath
from agent.outputs import copies, documents, preparation
from agent.outputs.copies import CHUNK, Batch, bring
from agent.outputs.workspaces import TIMESTAMP, Places, Stopped, read_json, replacing, sweep, write_json
from agent.waits import in_thread
from tests.agent.stage import stand
from tests.agent.test_loop import T1, until_forgotten

GO = threading.Event()
LARGE = 3 * CHUNK + 17


class Countdown(threading.Event):
    """Is set when it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def make(path: Path, letter: str, size: int = LARGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(letter.encode() * size)
    return path


def make_sparse(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def store(source: Path, target: Path, stop: threading.Event = GO) -> copies.Copied:
    with Batch(target.parent / ".staging", stop) as batch:
        return batch.copy(source, target)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, LARGE])
def test_what_is_copied_is_hashed(tmp_path: Path, size: int) -> None:
    source = make(tmp_path / "source", "a", size)
    for target in ("new", "new", "source"):
        copied = store(source, tmp_path / target)
        assert (tmp_path / target).read_bytes() == source.read_bytes()
        assert (copied.size, copied.sha256) == (size, hashlib.sha256(source.read_bytes()).hexdigest())
        assert copied.changed_at == (tmp_path / target).stat().st_mtime
    bring(source, tmp_path / "brought", GO)
    assert (tmp_path / "brought").read_bytes() == source.read_bytes()


def test_blocks_that_are_shared_are_hashed_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def share(reader: int, writer: int) -> bool:
        os.pwrite(writer, os.pread(reader, LARGE, 0), 0)
        return True

    monkeypatch.setattr(copies, "_clone", share)
    source = make(tmp_path / "source", "a")
    assert store(source, tmp_path / "new").sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    bring(source, tmp_path / "brought", GO)
    assert (tmp_path / "new").read_bytes() == (tmp_path / "brought").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_kernel_that_does_not_copy_between_these_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: Any) -> int:
        raise OSError(number, "not between these")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    source = make(tmp_path / "source", "a")
    bring(source, tmp_path / "brought", GO)
    assert (tmp_path / "brought").read_bytes() == source.read_bytes()


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    sources = [make(tmp_path / letter, letter) for letter in "ab"]
    target, done = tmp_path / "target", threading.Event()
    store(sources[0], target)
    seen: set[bytes] = set()

    def look() -> None:
        while not done.is_set():
            body = target.read_bytes()
            seen.add(body[:1] if body == body[:1] * LARGE else b"torn")

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(1, 15):
        store(sources[turn % 2], target)
    done.set()
    reader.join()
    assert seen
    assert seen <= {b"a", b"b"}


def test_a_target_that_is_the_same_already_stays_where_it_is(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "a")
    target = make(tmp_path / "target", "a")
    os.utime(target, (1, 1))
    before = target.stat()
    assert store(source, target).changed_at == target.stat().st_mtime > 1
    assert target.stat().st_ino == before.st_ino
    source.write_bytes(b"a" * (LARGE - 1) + b"b")
    store(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_ino != before.st_ino


def test_a_file_is_on_disk_before_it_has_its_name_and_the_name_before_the_batch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def watch_fsync(file: int) -> None:
        done.append(("fsync", os.fstat(file).st_ino))
        fsync(file)

    def watch_replace(source: str, target: str) -> None:
        done.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "replace", watch_replace)
    sources = [make(tmp_path / f"source{number}", str(number), 10) for number in range(6)]
    with Batch(tmp_path / "staging", GO) as batch:
        for source in sources:
            batch.copy(source, tmp_path / "new/folder" / source.name)
    files = {path.stat().st_ino for path in (tmp_path / "new/folder").iterdir()}
    above = (tmp_path.parent, tmp_path, tmp_path / "new", tmp_path / "new/folder")
    folders = {path.stat().st_ino for path in above}
    assert set(done[:6]) == {("fsync", file) for file in files}
    assert set(done[6:12]) == {("replace", file) for file in files}
    assert set(done[12:]) == {("fsync", folder) for folder in folders}
    done.clear()
    with Batch(tmp_path / "staging", GO) as batch:  # what is there may be the work of a process that was killed
        for source in sources:
            batch.copy(source, tmp_path / "new/folder" / source.name)
    assert set(done) == {("fsync", folder) for folder in folders}


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    source, elsewhere = make(tmp_path / "source", "a"), make(tmp_path / "elsewhere", "b")
    for name, put in (("stored", store), ("brought", lambda one, other: bring(one, other, GO))):
        (tmp_path / name).symlink_to(elsewhere)
        put(source, tmp_path / name)
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == source.read_bytes()
    assert elsewhere.read_bytes() == b"b" * LARGE


def test_what_is_in_the_way_of_an_input_is_told(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "a", 1)
    (tmp_path / "folder").mkdir()
    for target in ("folder", "source/below", "n" * 300):
        with pytest.raises(OutputClash, match="cannot be stored"):
            bring(source, tmp_path / target, GO)
    with pytest.raises(UnsafePath):
        bring(tmp_path / "folder", tmp_path / "x", GO)


def test_files_are_replaced_and_removed_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", "1"), make(tmp_path / "two", "2")
    with Batch(tmp_path / "staging", GO) as batch:
        batch.copy(one, tmp_path / "out/a")
        batch.copy(two, tmp_path / "out/a")
        batch.write(tmp_path / "out/note", b"why")
        batch.remove(tmp_path / "out/note")
        batch.remove(tmp_path / "out/absent")
        batch.remove(tmp_path / "one/below")
        batch.copy(one, tmp_path / "out/b")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out/a").read_bytes() == two.read_bytes()
    with Batch(tmp_path / "staging", GO) as batch:
        batch.copy(one, tmp_path / "out/a")
        batch.copy(two, tmp_path / "out/a")  # what is there is the same, but will be replaced
    assert (tmp_path / "out/a").read_bytes() == two.read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert not (tmp_path / "staging").exists()


def test_a_batch_does_not_hold_back_more_than_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "source", "a", 10)
    monkeypatch.setattr(copies, "BATCH_FILES", 7)
    with Batch(tmp_path / "staging", GO) as batch:
        for number in range(20):
            batch.copy(source, tmp_path / f"out/{number}")
            assert len(list((tmp_path / "staging").iterdir())) < 7
    assert len(list((tmp_path / "out").iterdir())) == 20


@pytest.mark.parametrize("looks", [0, 1, 2, 3])
def test_a_stopped_copy_ends_within_a_buffer_and_leaves_the_old_file(tmp_path: Path, looks: int) -> None:
    source, target = make_sparse(tmp_path / "huge", 1 << 40), make(tmp_path / "target", "a")
    with pytest.raises(Stopped):
        store(source, target, Countdown(looks))
    assert target.read_bytes() == b"a" * LARGE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["huge", "target"]
    with pytest.raises(Stopped):
        bring(source, tmp_path / "brought", Countdown(looks))
    assert (tmp_path / "brought").stat().st_size <= looks * CHUNK
    make_sparse(target, 1 << 40)
    with pytest.raises(Stopped):
        store(source, target, Countdown(looks))  # comparing is no different


async def test_a_cancelled_copy_does_not_keep_anybody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, loop = asyncio.Event(), asyncio.get_running_loop()
    send = copies._send

    def tell(*arguments: Any) -> bool:
        loop.call_soon_threadsafe(begun.set)
        return send(*arguments)

    monkeypatch.setattr(copies, "_send", tell)
    source = await asyncio.to_thread(make_sparse, tmp_path / "huge", 1 << 40)
    work = asyncio.create_task(in_thread(lambda stop: bring(source, tmp_path / "brought", stop)))
    await begun.wait()
    work.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([work])
    assert work.cancelled()


async def test_a_job_is_cancelled_while_a_huge_input_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, loop = asyncio.Event(), asyncio.get_running_loop()
    send = copies._send

    def tell(*arguments: Any) -> bool:
        loop.call_soon_threadsafe(begun.set)
        return send(*arguments)

    monkeypatch.setattr(copies, "_send", tell)
    async with stand(tmp_path) as stage:
        await asyncio.to_thread(make_sparse, stage.places.high_workspace("ws") / "output/huge.csv", 1 << 40)
        recorded = {"task_id": "before-001", "outputs": {"output/huge.csv": "highly_sensitive"}}
        await asyncio.to_thread(write_json, stage.places.log_dir("before", 1) / "metadata.json", recorded)
        async with stage.agent():
            await stage.controller.offer(stage.run_task(input_job_ids=["before"]))
            async with asyncio.timeout(10):
                await begun.wait()
            del stage.controller.tasks[T1]
            await stage.controller.offer(stage.cancel_task())
            await until_forgotten(stage, f"{T1}-cancel")
        assert stage.executor.starts == []
        assert not (tmp_path / f"high/volumes/{T1}").exists()


def test_an_input_that_is_gone_is_missing(tmp_path: Path) -> None:
    places = Places(high=tmp_path / "h", medium=tmp_path / "m", archive=tmp_path / "a", work=tmp_path / "w")
    body = {"id": "job", "repo_url": "/r", "commit": "a" * 40, "workspace": "ws", "action": "act", "created_at": 1}
    definition = parse_definition(body | {"image": "i", "input_job_ids": ["before"]})
    for path, error in (("gone.csv", MissingInput), ("../x", UnsafePath), ("/x", UnsafePath), ("a//b", UnsafePath)):
        write_json(places.log_dir("before", 1) / "metadata.json", {"task_id": "t", "outputs": {path: "x"}})
        with pytest.raises(error):
            preparation._copy_inputs(places, definition, tmp_path / "volume", GO)


def test_a_volume_is_complete_for_the_system_that_made_it_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither git's files nor the inputs are forced to disk: after a power cut they may be empty."""
    assert not preparation.is_prepared(tmp_path, tmp_path)
    with replacing(tmp_path / "prepared") as note:
        note.write(preparation._read_boot())
    assert not preparation.is_prepared(tmp_path, tmp_path)
    (tmp_path / TIMESTAMP).touch()
    assert preparation.is_prepared(tmp_path, tmp_path)
    (tmp_path / "boot").write_bytes(b"another")
    monkeypatch.setattr(preparation, "_BOOT", tmp_path / "boot")
    assert not preparation.is_prepared(tmp_path, tmp_path)


_CHILD = """
import os, resource, signal, sys, threading
from pathlib import Path
from agent.outputs import copies
from agent.outputs.copies import Batch

folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if name == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))
else:
    original, left = getattr(os, name), [count]

    def die(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(os, name, die)
copies.BATCH_FILES = 3
with Batch(folder / "ws/metadata/.incoming/act", threading.Event()) as batch:
    for path in sorted((folder / "volume").iterdir()):
        batch.copy(path, folder / "ws" / path.name[:1] / path.name)
"""


def run_child(folder: Path, name: str, count: int) -> int:
    command = [sys.executable, "-c", _CHILD, str(folder), name, str(count)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, check=False, capture_output=True, cwd=root).returncode


def prepare(folder: Path) -> None:
    for name in ("a1", "a2", "b1", "b2", "b3"):
        make(folder / "volume" / name, "n", 100 if name != "b2" else LARGE)
        if name != "b3":
            make(folder / "ws" / name[:1] / name, "o", 50 if name != "b2" else LARGE)


def states(folder: Path) -> str:
    """A letter for each target: o(ld), n(ew), - (absent)."""
    said = ""
    for source in sorted((folder / "volume").iterdir()):
        target = folder / "ws" / source.name[:1] / source.name
        body = target.read_bytes() if target.exists() else b""
        assert not body or body in (source.read_bytes(), b"o" * (50 if source.name != "b2" else LARGE))
        said += body[:1].decode() or "-"
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "counts"), [("write", (3,)), ("fsync", (0, 4, 7)), ("replace", (0, 1, 4)), ("rmdir", (0,))]
)
def test_a_killed_copy_leaves_whole_files_and_the_next_one_no_litter(
    tmp_path: Path, call: str, counts: tuple[int, ...]
) -> None:
    for count in counts:
        folder = tmp_path / str(count)
        prepare(folder)
        assert run_child(folder, call, count) == -signal.SIGKILL
        left = states(folder)
        assert left.startswith("n" * left.count("n"))  # in order, and nothing in between
        assert run_child(folder, "limit", 1 << 40) == 0
        assert states(folder) == "nnnnn"
        found = {str(path.relative_to(folder / "ws")) for path in (folder / "ws").rglob("*") if path.is_file()}
        assert found == {"a/a1", "a/a2", "b/b1", "b/b2", "b/b3"}


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert run_child(tmp_path, "limit", CHUNK) == 1
    assert states(tmp_path) == "nnno-"  # the first batch of three was whole
    assert not list((tmp_path / "ws").rglob("*.tmp"))
    assert not (tmp_path / "ws/metadata/.incoming/act").exists()


def test_what_a_killed_writer_left_is_swept_up(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.json"):
        (left,) = tmp_path.iterdir()
        os.link(left, tmp_path / f".{'0' * 32}.tmp")
    (tmp_path / "a.json").unlink()
    (tmp_path / ".mine.tmp").touch()
    sweep(tmp_path)
    sweep(tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]


plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


@given(values)
def test_documents_come_back(value: Any) -> None:
    body = b"".join(documents.encode(value))
    assert documents.decode(body) == json.loads(body) == value


def test_documents_look_as_they_always_did(tmp_path: Path) -> None:
    value = {"a": {}, "b": [], "c": [1, {"d": [2, {"e": None}]}], "f": {"g": {"h": "i\n"}, "j": {}}, "k": 1.5}
    assert b"".join(documents.encode(value)).decode() == json.dumps(value, indent=2)
    odd = {"\udcff": {"\udcfe": 1}, "when": Path("x"), "numbers": {1: 2}, "large": 2**70}
    write_json(tmp_path / "odd.json", odd)
    assert read_json(tmp_path / "odd.json") == odd | {"when": "x", "numbers": {"1": 2}}
    assert b"".join(documents.encode(documents.Members(iter([])))) == b"{}"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"\x00"])
def test_what_is_no_document_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        documents.decode(body)
