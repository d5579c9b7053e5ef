"""Outputs that lead astray: whatever a job leaves in its volume, the agent brings home files of that volume only.

When outputs are collected no process of the job is left (`test_daemons_end_with_their_job` on every executor), so
nobody changes a volume under the agent's hands; what could be changed just before is changed here.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.executors.base import Run
from agent.outputs import collect, level4
from tests.agent.stage import Stage, stand, write_output
from tests.agent.test_loop import T1, until_forgotten

pytestmark = pytest.mark.slow  # a whole agent for each

CANARY = "canary-of-another-workspace"
OUTPUTS = {"output/*.csv": "moderately_sensitive"}


def plant(folder: Path) -> Path:
    """A secret beside the job's volume."""
    secret = folder / "high" / "workspaces" / "other" / "output" / "table.csv"
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text(CANARY)
    return secret


def found(folder: Path) -> list[Path]:
    """Files of the workspace, and of its medium-privacy area, that have the secret in them."""
    areas = (folder / "high" / "workspaces" / "ws", folder / "medium", folder / "high" / "logs")
    files = [path for area in areas for path in area.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if CANARY.encode() in path.read_bytes()]


async def collected(stage: Stage, hostile: Callable[[Path, Path], None], **changes: Any) -> dict[str, Any]:
    """The final report of a job that does something hostile to its volume and ends well."""
    secret = await asyncio.to_thread(plant, stage.folder)

    def script(run: Run) -> int:
        (run.volume / "output").mkdir(exist_ok=True)
        hostile(run.volume, secret)
        return 0

    stage.executor.script = script
    async with stage.agent():
        await stage.controller.offer(stage.run_task(output_spec=changes.pop("output_spec", OUTPUTS), **changes))
        await until_forgotten(stage, T1)
    assert await asyncio.to_thread(found, stage.folder) == []
    assert not (stage.folder / "high" / "volumes" / T1).exists()
    assert secret.read_text() == CANARY
    return stage.controller.final(T1)


def link_to_a_file(volume: Path, secret: Path) -> None:
    (volume / "output" / "table.csv").symlink_to(secret)


def relative_link(volume: Path, secret: Path) -> None:
    (volume / "output" / "table.csv").symlink_to(os.path.relpath(secret, volume / "output"))


def link_to_a_folder(volume: Path, secret: Path) -> None:
    (volume / "output").rmdir()
    (volume / "output").symlink_to(secret.parent)


def link_to_a_folder_that_is_not_there(volume: Path, secret: Path) -> None:
    (volume / "output").rmdir()
    (volume / "output").symlink_to(secret.parent / "patients")


def link_to_a_file_in_a_folders_place(volume: Path, secret: Path) -> None:
    (volume / "output").rmdir()
    (volume / "output").symlink_to(secret)


def chain_of_links(volume: Path, secret: Path) -> None:
    (volume / "output" / "table.csv").symlink_to("../first")
    (volume / "first").symlink_to("second")
    (volume / "second").symlink_to(secret)


def folder_behind_a_folder(volume: Path, secret: Path) -> None:
    (volume / "elsewhere").symlink_to(secret.parents[1])
    (volume / "output").rmdir()
    (volume / "output").symlink_to("elsewhere/output")


def environment_of_the_agent(volume: Path, secret: Path) -> None:
    (volume / "output" / "table.csv").symlink_to("/proc/self/environ")


def device_without_end(volume: Path, secret: Path) -> None:
    (volume / "output" / "table.csv").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "hostile",
    [link_to_a_file, relative_link, link_to_a_folder, link_to_a_folder_that_is_not_there,
     link_to_a_file_in_a_folders_place, chain_of_links, folder_behind_a_folder, environment_of_the_agent,
     device_without_end],
)  # fmt: skip
async def test_links_that_leave_the_volume(tmp_path: Path, hostile: Callable[[Path, Path], None]) -> None:
    """All are answered alike: how a job ends must not tell what there is at the other end."""
    async with stand(tmp_path) as stage:
        final = await collected(stage, hostile)
    assert final["results"]["error"]["exception"] == "UnsafePath"
    assert final["results"]["error"]["fatal"] is True


def pipe(volume: Path, secret: Path) -> None:
    os.mkfifo(volume / "output" / "table.csv")


def listening_socket(volume: Path, secret: Path) -> None:
    here = Path.cwd()
    os.chdir(volume / "output")  # a socket's path has about a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("table.csv")
    finally:
        os.chdir(here)


def device(volume: Path, secret: Path) -> None:
    os.mknod(volume / "output" / "table.csv", 0o20666, os.makedev(1, 5))


def link_to_itself(volume: Path, secret: Path) -> None:
    (volume / "output" / "table.csv").symlink_to("table.csv")


def folder_of_that_name(volume: Path, secret: Path) -> None:
    (volume / "output" / "table.csv").mkdir()


@pytest.mark.parametrize(
    "hostile",
    [
        pipe,
        listening_socket,
        pytest.param(device, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")),
        folder_of_that_name,
    ],
)
async def test_what_is_no_file_is_no_output(tmp_path: Path, hostile: Callable[[Path, Path], None]) -> None:
    async with stand(tmp_path) as stage:
        final = await collected(stage, hostile)
    assert final["results"]["error"] is False
    assert final["results"]["has_unmatched_patterns"] is True


async def test_a_link_to_itself_ends_the_job_and_not_the_agent(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        final = await collected(stage, link_to_itself)
    assert final["results"]["has_unmatched_patterns"] or final["results"]["error"]["exception"] == "UnsafePath"


@pytest.mark.parametrize(("levels", "name"), [(20, "n" * 250), (3000, "deep")])
async def test_trees_without_end(tmp_path: Path, levels: int, name: str) -> None:
    def dig(volume: Path, secret: Path) -> None:
        write_output_at(volume)
        here = os.open(volume, os.O_RDONLY)
        for _ in range(levels):
            os.mkdir(name, dir_fd=here)
            inner = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("file.csv", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        os.close(here)

    async with stand(tmp_path) as stage:
        final = await collected(stage, dig, output_spec=OUTPUTS | {"*/*/*/*/*.csv": "highly_sensitive"})
    assert final["results"]["error"] is False
    assert (tmp_path / "high/workspaces/ws/output/table.csv").exists()


def write_output_at(volume: Path) -> None:
    (volume / "output" / "table.csv").write_text("a,b\n1,2\n")


async def test_names_that_are_no_text(tmp_path: Path) -> None:
    names = [b"new\nline.csv", b"\xff\xfe.csv", b"-rf.csv", b"\x1b[2J.csv", b"%s%n{0}.csv", b"x" * 251 + b".csv"]

    def name_them(volume: Path, secret: Path) -> None:
        for name in names:
            (volume / "output" / os.fsdecode(name)).write_text("a\n1\n")

    async with stand(tmp_path) as stage:
        final = await collected(stage, name_them)
    assert final["results"]["error"] is False
    stored = {os.fsencode(path.name) for path in (tmp_path / "high/workspaces/ws/output").iterdir()}
    assert stored == set(names)


async def test_a_folder_that_becomes_a_link_between_looking_and_copying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = collect.find

    def find(volume: Path, *rest: Any) -> collect.Findings:
        findings = original(volume, *rest)
        (volume / "output").rename(volume / "moved")
        (volume / "output").symlink_to(tmp_path / "high" / "workspaces" / "other" / "output")
        return findings

    monkeypatch.setattr(collect, "find", find)
    async with stand(tmp_path) as stage:
        final = await collected(stage, lambda volume, secret: write_output_at(volume))
    assert final["results"]["error"]["exception"] == "UnsafePath"


async def test_a_file_that_becomes_a_link_between_looking_and_copying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = collect.find

    def find(volume: Path, *rest: Any) -> collect.Findings:
        findings = original(volume, *rest)
        (volume / "output" / "table.csv").unlink()
        (volume / "output" / "table.csv").symlink_to(tmp_path / "high" / "workspaces" / "other" / "output/table.csv")
        return findings

    monkeypatch.setattr(collect, "find", find)
    async with stand(tmp_path) as stage:
        final = await collected(stage, lambda volume, secret: write_output_at(volume))
    assert final["results"]["error"]["exception"] == "UnsafePath"


async def test_another_action_that_writes_the_same_file_while_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = level4.check

    def check(path: Path, *rest: Any) -> level4.Checked:
        checked = original(path, *rest)
        output = tmp_path / "high/workspaces/ws/output/table.csv"
        output.with_name("new").write_text(f"patient_id\n{CANARY}\n")
        output.with_name("new").replace(output)
        return checked

    monkeypatch.setattr(level4, "check", check)
    async with stand(tmp_path) as stage:
        stage.executor.script = write_output
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
    checked = await asyncio.to_thread((tmp_path / "medium/workspaces/ws/output/table.csv").read_text)
    assert checked == "a,b\n1,2\n", "only what was checked is there"


async def test_the_name_that_counts_for_a_check_is_the_outputs(tmp_path: Path) -> None:
    def link(volume: Path, secret: Path) -> None:
        (volume / "table.txt").write_text("patient_id\n1\n")
        (volume / "output" / "table.csv").symlink_to("../table.txt")

    async with stand(tmp_path) as stage:
        final = await collected(stage, link)
    assert final["results"]["has_level4_excluded_files"] is True
    assert not (tmp_path / "medium/workspaces/ws/output/table.csv").exists()


async def test_the_search_notices_what_it_looks_for(tmp_path: Path) -> None:
    """That `collected` finds nothing means something."""
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: write_output(run, CANARY)
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
    assert await asyncio.to_thread(found, tmp_path)
