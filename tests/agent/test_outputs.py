"""Files: what is found, checked, stored and listed; and what tries to get out of its folder."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from agent.core.definition import check_relative, parse_definition, parse_memory, time_limit
from agent.core.errors import BadDefinition, OutputClash, UnsafePath
from agent.outputs import collect, joblog, level4, manifest, metadata
from agent.outputs.copies import Batch, Copied
from agent.outputs.metadata import Ending, Kept
from agent.outputs.trees import remove_tree
from agent.outputs.workspaces import (
    TIMESTAMP,
    Stopped,
    enter_without_links,
    read_json,
    replacing,
    write_json,
)

GO = threading.Event()
RULES = level4.Rules(max_size=100, max_rows=2, file_types=[".csv", ".txt"])


def copy(source: Path, target: Path, stop: threading.Event) -> Copied:
    """One file, in a batch of its own."""
    with Batch(source.parent / ".staging", stop) as batch:
        return batch.copy(source, target)


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_star_does_not_cross_folders_and_only_files_match(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.csv", "a/b/y.csv", "a/dir.csv/z.csv", "c[1].csv", "c1.csv", "a/.hidden.csv", "d?.csv")
    assert collect.match(tmp_path, "a/*.csv") == ["a/.hidden.csv", "a/x.csv"]
    assert collect.match(tmp_path, "*/*/*.csv") == ["a/b/y.csv", "a/dir.csv/z.csv"]
    assert collect.match(tmp_path, "c[1].csv") == ["c[1].csv"]
    assert collect.match(tmp_path, "d?.csv") == ["d?.csv"]
    assert collect.match(tmp_path, "nothing/*.csv") == []


def test_findings_tell_what_did_not_match(tmp_path: Path) -> None:
    fill(tmp_path, "code.py", TIMESTAMP, "out/a.csv", "out/b.txt", "mixed.csv")
    for name, age in (("code.py", -10), ("out/a.csv", 10), ("out/b.txt", 10), ("mixed.csv", 10)):
        stamp = os.stat(tmp_path / TIMESTAMP).st_mtime_ns + age * 10**9
        os.utime(tmp_path / name, ns=(stamp, stamp))
    spec = {"out/*.csv": "highly_sensitive", "*/a.csv": "moderately_sensitive", "missing/*.csv": "highly_sensitive"}
    findings = collect.find(tmp_path, spec, GO)
    assert findings.outputs == {"out/a.csv": "highly_sensitive"}
    assert findings.unmatched_patterns == ("missing/*.csv",)
    assert findings.unmatched_outputs == ("mixed.csv", "out/b.txt")


def test_a_glob_full_of_stars_takes_no_longer_than_another(tmp_path: Path) -> None:
    fill(tmp_path, "a" * 250, "a" * 200 + ".csv")
    assert collect.match(tmp_path, "*a" * 20 + "*b") == []
    assert collect.match(tmp_path, "*a" * 20 + "*.csv") == ["a" * 200 + ".csv"]


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("a*", ["a", "aba", "abab"]), ("a*a", ["aba"]), ("*ab", ["abab"]), ("*b*b", ["abab"]), ("ab*ba", []), ("*", None)],
)
def test_what_stars_match(tmp_path: Path, pattern: str, matches: list[str] | None) -> None:
    names = ["a", "aba", "abab", "c"]
    fill(tmp_path, *names)
    assert collect.match(tmp_path, pattern) == (names if matches is None else matches)


def test_what_the_agent_keeps_in_a_workspace_is_no_output(tmp_path: Path) -> None:
    fill(tmp_path, "metadata/manifest.json", "metadata/other.log", "output/a.json", TIMESTAMP)
    spec = {"*/*.json": "moderately_sensitive", "metadata/other.log": "moderately_sensitive"}
    findings = collect.find(tmp_path, spec, GO)
    assert findings.outputs == {"output/a.json": "moderately_sensitive"}
    assert findings.unmatched_patterns == ("metadata/other.log",)


def test_modes_that_the_job_chose_hide_nothing_from_the_agent(tmp_path: Path) -> None:
    volume = fill(tmp_path / "volume", "out/sub/a.csv", TIMESTAMP)
    elsewhere = fill(tmp_path, "elsewhere") / "elsewhere"
    (volume / "link").symlink_to(elsewhere)
    elsewhere.chmod(0o040)
    for path in ("out/sub/a.csv", "out/sub", "out", "."):
        (volume / path).chmod(0)
    assert collect.find(volume, {"out/*/*.csv": "highly_sensitive"}, GO).outputs == {
        "out/sub/a.csv": "highly_sensitive"
    }
    assert (volume / "out/sub/a.csv").stat().st_mode & 0o400
    assert elsewhere.stat().st_mode & 0o777 == 0o040


@pytest.mark.parametrize("link", ["file", "folder", "relative"])
def test_an_output_that_is_a_link_out_of_the_volume_is_refused(tmp_path: Path, link: str) -> None:
    secret = fill(tmp_path / "elsewhere", "secret.csv") / "secret.csv"
    volume = fill(tmp_path / "volume", "code.py")
    if link == "folder":
        (volume / "out").symlink_to(secret.parent)
    else:
        (volume / "out").mkdir()
        (volume / "out/secret.csv").symlink_to(secret if link == "file" else "../../elsewhere/secret.csv")
    with pytest.raises(UnsafePath, match="leaves"):
        collect.find(volume, {"out/*.csv": "moderately_sensitive"}, GO)


def test_a_link_inside_the_volume_is_stored_as_the_file_it_names(tmp_path: Path) -> None:
    volume = fill(tmp_path / "volume", "real.csv")
    (volume / "link.csv").symlink_to("real.csv")
    (volume / "loop.csv").symlink_to("loop.csv")
    with Batch(tmp_path / "staging", GO) as batch:
        stored = collect.persist(volume, tmp_path / "ws", {"link.csv": "x"}, batch)
    assert (tmp_path / "ws/link.csv").read_text() == "real.csv"
    assert not (tmp_path / "ws/link.csv").is_symlink()
    assert stored["link.csv"].size == 8
    with pytest.raises(UnsafePath):
        collect.match(volume, "loop.csv")


def test_a_pipe_is_no_output_and_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert collect.match(tmp_path, "*.csv") == []
    with pytest.raises(UnsafePath):
        copy(tmp_path / "pipe.csv", tmp_path / "copy.csv", GO)


def test_copying_replaces_in_one_move_and_leaves_nothing_when_stopped(tmp_path: Path) -> None:
    fill(tmp_path, "old", "new")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        copy(tmp_path / "new", tmp_path / "old", stop)
    assert (tmp_path / "old").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    copied = copy(tmp_path / "new", tmp_path / "old", GO)
    assert copied.sha256 == "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"


def test_a_folder_and_a_file_of_one_name_clash_with_a_clear_error(tmp_path: Path) -> None:
    fill(tmp_path, "new", "ws/a", "ws/b/c")
    for target in ("ws/a/x", "ws/b"):
        with pytest.raises(OutputClash, match="cannot be stored"):
            copy(tmp_path / "new", tmp_path / target, GO)


def test_inputs_do_not_go_through_links_of_the_repository(tmp_path: Path) -> None:
    volume = fill(tmp_path / "volume", "code.py")
    (volume / "output").symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="link"):
        enter_without_links(volume, "output/evil.csv")
    assert enter_without_links(volume, "fresh/a.csv") == volume / "fresh/a.csv"


def test_a_tree_that_the_job_made_unwritable_is_removed(tmp_path: Path) -> None:
    fill(tmp_path, "volume/a/b")
    (tmp_path / "volume/a").chmod(0o500)
    (tmp_path / "volume/link").symlink_to("/")
    (tmp_path / "volume").chmod(0)
    remove_tree(tmp_path / "volume")
    remove_tree(tmp_path / "volume")
    assert not (tmp_path / "volume").exists()


@pytest.mark.parametrize(
    ("name", "text", "message", "counts"),
    [
        ("a.txt", "x" * 101, "File size of 0.0Mb is larger that limit of 0.0Mb.", (None, None)),
        ("a.csv.gz", "x", "File type of .gz is not valid level 4 file", (None, None)),
        ("a.CSV", "x", "File type of .CSV is not valid level 4 file", (None, None)),
        ("a.csv", "x,patient_id\n1,2\n", "File has patient_id column", (1, 2)),
        ("a.csv", "patient_ids\n1\n", None, (1, 1)),
        ("a.csv", "a\n1\n2\n3\n", "File row count (3) exceeds maximum allowed rows (2)", (3, 1)),
        (
            "a.csv",
            "patient_id\n1\n2\n3\n",
            "File has patient_id column,File row count (3) exceeds maximum allowed rows (2)",
            (3, 1),
        ),
        ("a.csv", "a,b\n", None, (0, 0)),
        ("a.csv", "", None, (0, 0)),
        ("a.csv", "\udcff\udcfe", None, (None, None)),
        ("b.csv", f"patient_id\n{'1' * 140_000}\n", "File has patient_id column", (1, 1)),
        ("b.csv", f"a\n{'1' * 140_000}\n", None, (1, 1)),
        ("b.csv", f"a\n{'1' * 140_000}\n" * 2, "File row count (3) exceeds maximum allowed rows (2)", (3, 1)),
        ("a.txt", "patient_id", None, (None, None)),
    ],
)
def test_level4(tmp_path: Path, name: str, text: str, message: str | None, counts: tuple[Any, Any]) -> None:
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    rules = evolve(RULES, max_size=300_000) if name == "b.csv" else RULES
    checked = level4.check(tmp_path / name, Path(name).suffix, rules)
    assert checked.message == message
    assert (checked.row_count, checked.col_count) == counts


def entry(action: str, **changes: Any) -> manifest.Entry:
    values = {"level": "moderately_sensitive", "job_id": "j", "job_request": "r", "action": action, "user": "u"}
    more = {"repo": "repo", "commit": "c", "size": 1, "timestamp": 1.5, "content_hash": "h"}
    return manifest.Entry(**(values | more | changes))


def test_the_manifest_keeps_account_of_what_is_out_of_date(tmp_path: Path) -> None:
    def update(action: str, names: list[str], actions: set[str] | None) -> dict[str, Any]:
        manifest.update(tmp_path, "ws", action, {name: entry(action) for name in names}, actions)
        outputs: dict[str, Any] = read_json(tmp_path / "manifest.json")["outputs"]
        return outputs

    update("one", ["a", "b"], {"one", "two"})
    outputs = update("two", ["c"], {"one", "two"})
    assert {name: value["out_of_date_action"] for name, value in outputs.items()} == dict.fromkeys("abc", False)
    outputs = update("one", ["a"], {"one"})
    assert outputs["b"]["out_of_date_output"] is True
    assert outputs["a"]["out_of_date_output"] is False
    assert outputs["c"]["out_of_date_action"] is True
    outputs = update("one", ["a", "b"], None)
    assert outputs["b"]["out_of_date_output"] is False
    assert outputs["c"]["out_of_date_action"] is True
    whole = read_json(tmp_path / "manifest.json")
    assert (whole["workspace"], whole["repo"]) == ("ws", None)
    assert whole["outputs"]["c"]["content_hash"] == "h"


@pytest.mark.parametrize("broken", ["{", "[]", '{"outputs": []}', '{"outputs": {"a": 1}}', "\x00"])
def test_a_broken_manifest_is_kept_aside(tmp_path: Path, broken: str) -> None:
    (tmp_path / "manifest.json").write_text(broken)
    manifest.update(tmp_path, "ws", "one", {"a": entry("one")}, None)
    assert list(read_json(tmp_path / "manifest.json")["outputs"]) == ["a"]
    assert next(tmp_path.glob("manifest.json.corrupt-*")).read_text() == broken


def definition(**changes: Any) -> dict[str, Any]:
    return {
        "id": "job",
        "repo_url": "/r",
        "commit": "a" * 40,
        "workspace": "ws",
        "action": "act",
        "created_at": 1,
        "image": "python:v2",
        "unknown": "ignored",
    } | changes


def test_metadata_have_every_key_and_come_back(tmp_path: Path) -> None:
    kept = Kept(path="a.csv", level="l", size=1, sha256="h", excluded=True, message="why")
    composed = metadata.compose(parse_definition(definition()), "job-001", Ending(outputs=[kept]), None, 5 * 10**9)
    metadata.write(tmp_path, composed)
    assert metadata.read(tmp_path) == composed
    assert composed["outputs"] == {"a.csv": "l"}
    assert composed["level4_excluded_files"] == {"a.csv": "why"}
    assert composed["exit_code"] == "None"
    assert composed["completed_at"] == 5
    assert composed["base_revision"] == "unknown"
    (tmp_path / "metadata.json").write_text('{"task_id"')
    assert metadata.read(tmp_path) is None


def test_the_log_ends_with_a_summary() -> None:
    lines = joblog.summarise(
        {
            "exit_code": "0",
            "status_message": None,
            "commit": "abc",
            "outputs": {"a.csv": "highly_sensitive", "longer.csv": "moderately_sensitive"},
            "level4_excluded_files": {"longer.csv": "too big"},
        }
    )
    text = "\n".join([*lines, ""])
    assert text.startswith("\n=============JOB SUMMARY=============\ncommit: abc\nexit_code: 0\n")
    assert "  a.csv       - highly_sensitive\n  longer.csv  - moderately_sensitive\n" in text
    assert "Invalid moderately_sensitive outputs:\n  longer.csv  - too big\n" in text
    assert "(no outputs)" in "".join(joblog.summarise({}))


@pytest.mark.parametrize(
    ("limit", "size"),
    [("4G", 4 * 1024**3), ("512m", 512 * 1024**2), ("1073741824", 1024**3), (1024, 1024), ("1.5g", 1536 * 1024**2)],
)
def test_memory_limits(limit: object, size: int) -> None:
    assert parse_memory(limit) == size


@pytest.mark.parametrize(
    "limit", ["", "lots", "4X", "-1G", "0", None, True, [], "4G; rm", "9" * 400, f"1.{'0' * 5000}G"]
)
def test_wrong_memory_limits_name_the_field(limit: object) -> None:
    with pytest.raises(BadDefinition, match=r"memory_limit: .* is not a size .*_JOB_MEMORY_LIMIT"):
        parse_memory(limit)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id": "../x"}, "id"),
        ({"workspace": "a/b"}, "workspace"),
        ({"action": "a/b"}, "action"),
        ({"action": ".."}, "action"),
        ({"commit": "HEAD"}, "commit"),
        ({"commit": "--upload-pack=x"}, "commit"),
        ({"cpu_count": 0}, "cpu_count"),
        ({"cpu_count": "2"}, "cpu_count"),
        ({"created_at": -5}, "created_at"),
        ({"output_spec": {"../*.csv": "x"}}, "output_spec"),
        ({"output_spec": {"/etc/*.csv": "x"}}, "output_spec"),
        ({"input_job_ids": ["../x"]}, "input_job_ids"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"args": ["a\x00"]}, "args"),
        ({"image": None}, "image"),
    ],
)
def test_definitions_that_lead_astray_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadDefinition, match=named):
        parse_definition(definition(**changes))


@pytest.mark.parametrize(
    ("offered", "own", "limit"), [(None, None, None), (60, None, 60), (None, 60, 60), (60, 90.5, 60), (90.5, 60, 60)]
)
def test_of_two_time_limits_the_smaller_one_holds(
    offered: float | None, own: float | None, limit: float | None
) -> None:
    assert time_limit(offered, own) == limit


@pytest.mark.parametrize("offered", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_refused(offered: float) -> None:
    with pytest.raises(BadDefinition, match="time_limit"):
        time_limit(offered, 60)


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/../b", ".", "a\\b", "a\x00"])
def test_paths_that_lead_astray_are_refused(path: str) -> None:
    with pytest.raises(BadDefinition):
        check_relative(path, "input")


def break_half_way(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"half")
        raise RuntimeError("killed")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "\udcff"})
    with pytest.raises(RuntimeError, match="killed"):
        break_half_way(tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == {"name": "\udcff"}
    assert len(list(tmp_path.iterdir())) == 1
    assert read_json(tmp_path / "absent.json") is None
