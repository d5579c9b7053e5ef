"""Workspaces are put away and brought back whole, whatever happens in between."""

import asyncio
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.core.errors import ArchivedWorkspace
from agent.outputs import archives, trees
from agent.outputs.archives import NotPossible
from agent.outputs.workspaces import Places
from cli.main import rap
from tests.agent.stage import stand
from tests.agent.test_loop import T1, until_forgotten

FILES = {
    "output/a.csv": "a,b\n1,2\n",
    "output/deep/b.txt": "b",
    "metadata/run.log": "log",
    "output/.lock": "",
    "empty": "",
}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Storage with one workspace, `study`."""
    made = Places(
        high=tmp_path / "high", medium=tmp_path / "medium", archive=tmp_path / "archives", work=tmp_path / "work"
    )
    for path, text in FILES.items():
        target = made.high_workspace("study") / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return made


def content(places: Places) -> dict[str, str]:
    folder = places.high_workspace("study")
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def left_over(places: Places) -> list[str]:
    found = [*places.archive.glob("*"), *(places.high / "workspaces").glob("*")]
    return sorted(path.name for path in found)


def test_a_workspace_goes_and_comes_back(places: Places) -> None:
    path = archives.put_away(places, "study")
    assert left_over(places) == ["study.tar.gz"]
    assert path.stat().st_mode & 0o777 == 0o600
    (found,) = archives.find_all(places)
    assert (found.name, found.files, found.archive) == ("study", 0, path)
    assert archives.bring_back(places, "study") == places.high_workspace("study")
    assert content(places) == FILES
    assert left_over(places) == ["study"]
    (found,) = archives.find_all(places)
    assert (found.files, found.bytes, found.archive) == (len(FILES), sum(map(len, FILES.values())), None)


@pytest.mark.parametrize("kind", ["xz", "gz"])
def test_archives_of_other_makers_come_back(places: Places, kind: str) -> None:
    archives.put_away(places, "study")
    (places.archive / "study.tar.gz").unlink()
    other = places.archive / f"study.tar.{kind}"
    with tarfile.open(other, f"w:{kind}") as tar:
        (places.work / "study").mkdir(parents=True)
        (places.work / "study" / "x").write_text("x")
        tar.add(places.work / "study", arcname="study")
    archives.bring_back(places, "study")
    assert content(places) == {"x": "x"}


@pytest.mark.parametrize("again", [archives.put_away, archives.bring_back])
def test_a_kill_after_the_archive_was_made_is_made_good_by_doing_it_again(
    places: Places, monkeypatch: pytest.MonkeyPatch, again: Callable[[Places, str], Path]
) -> None:
    class Killed(BaseException): ...

    def die(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(archives, "remove_tree", die)
        with pytest.raises(Killed):
            archives.put_away(places, "study")
    assert left_over(places) == [".study.leaving", "study.tar.gz"]
    again(places, "study")
    assert left_over(places) == ["study.tar.gz" if again is archives.put_away else "study"]
    if again is archives.put_away:
        archives.bring_back(places, "study")
    assert content(places) == FILES


def test_a_kill_before_the_archive_was_removed_is_made_good_by_doing_it_again(places: Places) -> None:
    archive = archives.put_away(places, "study")
    body = archive.read_bytes()
    archives.bring_back(places, "study")
    archive.write_bytes(body)
    archives.bring_back(places, "study")
    assert left_over(places) == ["study"]


def test_what_differs_from_its_archive_is_kept(places: Places) -> None:
    archive = archives.put_away(places, "study")
    body = archive.read_bytes()
    archives.bring_back(places, "study")
    archive.write_bytes(body)
    (places.high_workspace("study") / "output/a.csv").write_text("new")
    for work in (archives.put_away, archives.bring_back):
        with pytest.raises(NotPossible, match=r"is not what"):
            work(places, "study")
    assert content(places) == FILES | {"output/a.csv": "new"}
    assert archive.read_bytes() == body


def test_a_change_meanwhile_gives_the_archive_up(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    real = archives._compare

    def compare(archive: Path, folder: Path, name: str) -> None:
        real(archive, folder, name)
        (folder / "late").write_text("late")

    monkeypatch.setattr(archives, "_compare", compare)
    with pytest.raises(NotPossible, match="changed while it was archived"):
        archives.put_away(places, "study")
    assert left_over(places) == ["study"]
    assert "late" in content(places)


def test_what_another_agent_stores_at_the_last_moment_is_kept(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trees.remove_tree
    late = places.high_workspace("study") / "late"

    def remove(folder: Path) -> None:
        late.parent.mkdir()
        late.write_text("late")
        real(folder)

    monkeypatch.setattr(archives, "remove_tree", remove)
    archives.put_away(places, "study")
    assert late.read_text() == "late"
    assert left_over(places) == ["study", "study.tar.gz"]
    monkeypatch.undo()
    with pytest.raises(NotPossible, match="is there as well"):
        archives.bring_back(places, "study")
    assert late.exists()


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_archive_changes_nothing(places: Places, damage: bytes | None) -> None:
    archive = archives.put_away(places, "study")
    archive.write_bytes(archive.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(NotPossible):
        archives.bring_back(places, "study")
    assert left_over(places) == ["study.tar.gz"]


def test_nothing_comes_out_beside_the_workspace(places: Places) -> None:
    places.archive.mkdir()
    (places.work / "evil").mkdir(parents=True)
    (places.work / "evil" / "x").write_text("x")
    for name in ("../evil", "/evil", "other"):
        with tarfile.open(places.archive / "bad.tar.gz", "w:gz") as tar:
            tar.add(places.work / "evil", arcname=name)
        with pytest.raises(NotPossible):
            archives.bring_back(places, "bad")
    assert left_over(places) == ["bad.tar.gz", "study"]


@pytest.mark.parametrize("name", ["nothing", "../study", "", "a b"])
def test_a_name_that_is_none(places: Places, name: str) -> None:
    for work in (archives.put_away, archives.bring_back, archives.describe):
        with pytest.raises(NotPossible):
            work(places, name)
    assert content(places) == FILES


def test_a_workspace_at_work_stays(places: Places) -> None:
    notes = places.notes("j-001")
    notes.mkdir(parents=True)
    (notes / "offer.json").write_text(json.dumps({"job_id": "j", "definition": {"workspace": "study"}}))
    with pytest.raises(NotPossible, match="Job j of workspace 'study' is at work here"):
        archives.put_away(places, "study")
    assert content(places) == FILES


def make_and_put_away(places: Places) -> None:
    places.high_workspace("ws").mkdir(parents=True)
    (places.high_workspace("ws") / "old").write_text("old")
    archives.put_away(places, "ws")


async def test_a_job_of_an_archived_workspace_fails_with_a_clear_message(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        found = Places(
            high=tmp_path / "high",
            medium=tmp_path / "medium",
            archive=stage.settings.archive_dir,
            work=stage.settings.work_dir,
        )
        await asyncio.to_thread(make_and_put_away, found)
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
        error = stage.controller.final(T1)["results"]["error"]
        assert error["fatal"] is True
        assert error["exception"] == ArchivedWorkspace.__name__


def invoke(places: Places, *arguments: str) -> Result:
    environ = {
        "HIGH_PRIVACY_STORAGE_BASE": str(places.high),
        "MEDIUM_PRIVACY_STORAGE_BASE": str(places.medium),
        "HIGH_PRIVACY_ARCHIVE_DIR": str(places.archive),
        "WORKDIR": str(places.work),
        "XDG_STATE_HOME": str(places.work / "state"),
    }
    return CliRunner().invoke(rap, ["workspace", *arguments], env=environ)


def test_the_command_lists_shows_archives_and_brings_back(places: Places) -> None:
    metadata = places.medium_workspace("study") / "metadata"
    metadata.mkdir(parents=True)
    entry = {"level": "moderately_sensitive", "action": "run", "job_id": "j", "size": 8, "excluded": True}
    (metadata / "manifest.json").write_text(json.dumps({"outputs": {"output/a.csv": entry}}))
    shown = json.loads(invoke(places, "show", "study", "--json").stdout)
    assert (shown["files"], shown["outputs"]) == (len(FILES), {"output/a.csv": entry})
    assert "excluded" in invoke(places, "show", "study").stdout
    asked = invoke(places, "archive", "study")
    assert asked.exit_code == 2
    assert "give -y" in asked.stderr
    done = invoke(places, "archive", "study", "-y", "--json")
    assert json.loads(done.stdout)["path"] == str(places.archive / "study.tar.gz")
    assert "study.tar.gz" in invoke(places, "ls").stdout
    again = invoke(places, "archive", "study", "-y")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "is archived already" in again.stderr
    assert invoke(places, "unarchive", "study").exit_code == 0
    (listed,) = json.loads(invoke(places, "ls", "--json").stdout)["workspaces"]
    assert (listed["name"], listed["files"], listed["archive"]) == ("study", len(FILES), None)


def test_an_archive_folder_that_cannot_be_written_is_told(places: Places) -> None:
    places.archive.write_text("in the way")
    with pytest.raises(NotPossible, match="cannot be written"):
        archives.put_away(places, "study")
    assert content(places) == FILES
