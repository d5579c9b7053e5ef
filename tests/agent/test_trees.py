"""Volumes that a job has made difficult: deep, wide, full of links and odd names. Nobody is kept busy by them."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import UnsafePath
from agent.outputs import collect, joblog, trees
from agent.outputs.copies import Batch
from agent.outputs.trees import make_folders, order, regain, remove_tree, walk
from agent.outputs.workspaces import TIMESTAMP, Stopped, read_json
from tests.agent.stage import stand
from tests.agent.test_loop import T1, until_forgotten

GO = threading.Event()
ROOT = Path(__file__).parents[2]
ODD = ["-rf.csv", "two\nlines.csv", "no\udcfftext.csv", "back\\slash.csv", " .csv", "é.csv", "a'b\"c.csv", "*.csv"]


def dig(folder: Path, levels: int, name: str = "d") -> None:
    """Folders within folders, deeper than any path can say, with a file at the bottom."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom.csv", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.fixture
def pit(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, even if `remove_tree` is broken: pytest could not remove it."""
    folder = tmp_path / "pit"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@given(st.lists(st.text(max_size=3)))
def test_names_come_in_order(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "_RUN", 3)
        assert list(order(names)) == sorted(names)


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "seen"), [(1000, True), (2500, False)])
def test_deep_folders_are_walked_searched_and_removed(pit: Path, levels: int, seen: bool) -> None:
    volume = pit / "volume"
    volume.mkdir()
    (volume / TIMESTAMP).touch()
    os.utime(volume / TIMESTAMP, (1, 1))
    dig(volume, levels)
    (volume / "top.csv").touch()
    bottom = "d/" * levels + "bottom.csv"
    regain(volume)
    assert list(walk(volume)) == [TIMESTAMP, "top.csv"] + [bottom] * seen
    patterns = {"*/" * levels + "*.csv": "deep", "top.csv": "high", "d/" * levels + "b*": "deep"}
    findings = collect.find(volume, patterns, GO)
    assert findings.outputs == {"top.csv": "high"} | ({bottom: "deep"} if seen else {})
    if seen:
        with Batch(pit / "staging", GO) as batch:
            collect.persist(volume, pit / "ws", findings.outputs, batch)
        assert (pit / "ws" / bottom).is_file()
        remove_tree(pit / "ws")
    remove_tree(volume)
    assert not list(pit.iterdir())


def test_a_tree_is_removed_whatever_is_in_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    volume = tmp_path / "volume"
    for path in ("a/b/c", "a/empty", "x/y/z"):
        (volume / path).mkdir(parents=True)
    for name in ODD:
        (volume / "a/b" / name).touch()
    (volume / "a/b/link").symlink_to(kept)
    (volume / "a/loop").symlink_to(".")
    os.mkfifo(volume / "x/pipe")
    remove_tree(volume)
    assert not volume.exists()
    assert (kept / "file").exists()
    (tmp_path / "link").symlink_to(kept)
    with pytest.raises(OSError, match="link"):
        remove_tree(tmp_path / "link")
    assert (kept / "file").exists()


def test_links_that_lead_around_do_not_lead_on_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "LINKED_LIMIT", 100)
    (tmp_path / "a.csv").touch()
    (tmp_path / "again").symlink_to(".")
    assert collect.match(tmp_path, "*/*/*.csv") == ["again/again/a.csv"]
    for number in range(10):
        (tmp_path / f"round{number}").symlink_to(".")
    with pytest.raises(UnsafePath, match="More than 100 folders"):
        collect.match(tmp_path, "*/" * 12 + "*.csv")
    (tmp_path / "self").symlink_to("self")
    assert collect.match(tmp_path, "*.csv") == ["a.csv"]


def test_a_folder_is_read_once_for_all_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    names = collect._Search._names

    def count(search: collect._Search, here: str, globs: collect._Globs) -> object:
        read.append(here)
        return names(search, here, globs)

    monkeypatch.setattr(collect._Search, "_names", count)
    for number in range(200):
        (tmp_path / f"out/part{number % 4}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"out/part{number % 4}/{number}.csv").touch()
    patterns = {f"out/*/*{number}.csv": str(number) for number in range(50)} | {"out/part1/*": "rest", "no/*": "none"}
    findings = collect.find(tmp_path, patterns, GO)
    assert len(read) == len(set(read)) == 6
    assert len(findings.outputs) == 200
    assert findings.outputs["out/part3/7.csv"] == "7"
    assert findings.outputs["out/part1/117.csv"] == "7"
    assert findings.outputs["out/part1/177.csv"] == "7"
    assert findings.unmatched_patterns == ("no/*",)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        collect.find(tmp_path, patterns, stop)


def test_folders_are_made_and_told(tmp_path: Path) -> None:
    assert make_folders(f"{tmp_path}/a/b") == [f"{tmp_path}/a", f"{tmp_path}"]
    assert make_folders(f"{tmp_path}/a/b") == []
    (tmp_path / "file").touch()
    for path in ("file", "file/x"):
        with pytest.raises((FileExistsError, NotADirectoryError)):
            make_folders(f"{tmp_path}/{path}")


def test_no_name_writes_lines_into_the_log() -> None:
    outputs = dict.fromkeys([*ODD, "x" * 3000], "high")
    lines = list(joblog.summarise({"outputs": outputs}))
    assert len(lines) == 4 + len(outputs)
    assert "  two\\nlines.csv" in lines[5]
    assert max(map(len, lines[:-1])) < 150


async def test_odd_names_come_home_and_go_on_to_dependants(tmp_path: Path) -> None:
    def write(run: object) -> int:
        volume: Path = run.volume  # type: ignore[attr-defined]  # an executor's Run
        (volume / "output").mkdir()
        for name in ODD:
            (volume / "output" / name).write_bytes(os.fsencode(name))
        return 0

    def inputs(run: object) -> int:
        folder: Path = run.volume / "output"  # type: ignore[attr-defined]  # an executor's Run
        assert {os.fsdecode(path.read_bytes()) for path in folder.iterdir()} == set(ODD)
        return 0

    async with stand(tmp_path) as stage:
        stage.executor.script = write
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
            stage.executor.script = inputs
            await stage.controller.offer(
                stage.run_task("jobtwo", action="next", input_job_ids=["jobone"], output_spec={"output/*": "x"})
            )
            await until_forgotten(stage, "jobtwo-001")
        assert stage.controller.final("jobtwo-001")["stage"] == "finalized"
        manifest = await asyncio.to_thread(read_json, tmp_path / "medium/workspaces/ws/metadata/manifest.json")
        assert {path.removeprefix("output/") for path in manifest["outputs"]} == set(ODD)


def _measure(folder: Path, case: str) -> Sequence[dict[str, float]]:
    command = [sys.executable, "-m", "bench.outputs_at_size", "--folder", str(folder), "--case", case, "--quick"]
    done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT, text=True)
    phases: list[dict[str, float]] = json.loads(done.stdout)
    return phases


@pytest.mark.slow
@pytest.mark.parametrize(("files", "size", "most"), [(3000, 100, 32), (4, 50 * 1024 * 1024, 48)])
def test_memory_does_not_grow_with_the_outputs(tmp_path: Path, files: int, size: int, most: int) -> None:
    """The bench's own phases, smaller; MiB of a whole process, with its threads and the code that it loads."""
    phases = _measure(tmp_path, f"{files}x{size}")
    grown = {str(phase["name"]): phase["mebibytes"] for phase in phases if phase["mebibytes"] is not None}
    assert set(grown) == {"finalize", "finalize again", "report", "prepare", "archive", "unarchive"}
    assert {name: size for name, size in grown.items() if size > most} == {}
