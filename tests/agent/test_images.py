"""The image table: names, command lines, and what an interpreter needs to be seen."""

import sys
import venv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.executors.base import ExecutorError
from agent.images import ImageTable, ImageTableError, Interpreter, parse_image_table

TABLE = parse_image_table(
    '{"python": "/opt/py/bin/python3.11", "python:v2": "/opt/py2/bin/python", "r": "/usr/bin/Rscript",'
    ' "ghcr.io/other/r": "/opt/other/bin/Rscript", "ehrql": ["/opt/ehrql/bin/python", "-m", "ehrql"]}'
)


@pytest.mark.parametrize(
    ("image", "args", "command"),
    [
        ("python", ("python", "a.py", "--x"), "/opt/py/bin/python3.11 a.py --x"),
        ("python", ("python3", "a.py"), "/opt/py/bin/python3.11 a.py"),
        ("python", ("python3.11", "a.py"), "/opt/py/bin/python3.11 a.py"),
        ("python", ("a.py", "python"), "/opt/py/bin/python3.11 a.py python"),
        ("python", (), "/opt/py/bin/python3.11"),
        ("python:latest", ("a.py",), "/opt/py/bin/python3.11 a.py"),
        ("python:v2", ("a.py",), "/opt/py2/bin/python a.py"),
        ("python:v2", ("python", "a.py"), "/opt/py2/bin/python a.py"),
        ("ghcr.io/opensafely-core/python:v2", ("a.py",), "/opt/py2/bin/python a.py"),
        ("ghcr.io/opensafely-core/python:v2@sha256:abc", ("a.py",), "/opt/py2/bin/python a.py"),
        ("localhost:5000/python", ("a.py",), "/opt/py/bin/python3.11 a.py"),
        ("r:v2", ("a.R",), "/usr/bin/Rscript a.R"),
        ("r:v2", ("Rscript", "a.R"), "/usr/bin/Rscript a.R"),
        ("ghcr.io/other/r:v2", ("a.R",), "/opt/other/bin/Rscript a.R"),
        ("ehrql:v1", ("generate-dataset", "d.py"), "/opt/ehrql/bin/python -m ehrql generate-dataset d.py"),
        ("ehrql:v1", ("ehrql", "generate-dataset"), "/opt/ehrql/bin/python -m ehrql generate-dataset"),
    ],
)
def test_command(image: str, args: tuple[str, ...], command: str) -> None:
    assert TABLE.command(image, args) == tuple(command.split())


def test_unknown_image() -> None:
    with pytest.raises(ExecutorError, match=r"'stata-mp:latest'.*RAP_SANDBOX_IMAGES.*ehrql") as caught:
        TABLE.command("stata-mp:latest", ("a.do",))
    assert caught.value.fatal


def test_list_format() -> None:
    table = parse_image_table(" python=/opt/py/bin/python , r:v2=/usr/bin/Rscript,")
    assert table.entries == {
        "python": Interpreter(command=("/opt/py/bin/python",)),
        "r:v2": Interpreter(command=("/usr/bin/Rscript",)),
    }


def test_read_paths() -> None:
    table = parse_image_table('{"python": {"command": ["/nix/store/x/bin/python"], "read": ["/nix/store"]}}')
    assert Path("/nix/store") in table.find("python").paths()


def test_empty_is_default() -> None:
    assert parse_image_table("  ") == ImageTable.default()
    assert ImageTable.default().command("python:v2", ("a.py",)) == (sys.executable, "a.py")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("python", "'python' is not name=path"),
        ("=/bin/x", "'' is not an image name"),
        ("py thon=/bin/x", "'py thon' is not an image name"),
        ("python=bin/python", "'python' needs the absolute path"),
        ("python=", "'python' needs the absolute path"),
        ("a=/bin/x,a=/bin/y", "'a' is there twice"),
        ("{", "not JSON"),
        ('{"a": 1}', "the command of 'a' is not"),
        ('{"a": []}', "'a' needs the absolute path"),
        ('{"a": [1]}', "the command of 'a' is not"),
        ('{"a": {"command": "/bin/x", "read": "/y"}}', "the read of 'a' is not"),
        ('{"a": {"command": "/bin/x", "read": ["y"]}}', "'a' may only read absolute paths"),
        ('{"a": {"command": "/bin/x", "write": []}}', "unknown key 'write'"),
        ('{"a": {"read": []}}', "the command of 'a' is not"),
    ],
)
def test_faults_name_the_setting(text: str, fault: str) -> None:
    with pytest.raises(ImageTableError, match=fault) as caught:
        parse_image_table(text)
    assert "RAP_SANDBOX_IMAGES" not in str(caught.value)  # the settings say it


@given(st.text())
def test_any_text_is_a_table_or_a_fault(text: str) -> None:
    try:
        table = parse_image_table(text)
    except ImageTableError:
        return
    assert all(entry.command[0].startswith("/") for entry in table.entries.values())


def test_virtual_environment_needs_what_it_was_made_from(tmp_path: Path) -> None:
    venv.create(tmp_path / "first", symlinks=True)
    link = tmp_path / "python"
    link.symlink_to("first/bin/python")
    paths = Interpreter(command=(str(link),)).paths()
    assert {link, tmp_path / "first"} <= set(paths)
    base = Path(sys.base_prefix).resolve()
    assert base.is_relative_to("/usr") or base in {path.resolve() for path in paths}
    assert tmp_path not in paths


def test_of_a_lone_program_only_the_file(tmp_path: Path) -> None:
    program = tmp_path / ".local" / "bin" / "stata"
    program.parent.mkdir(parents=True)
    program.touch()
    (tmp_path / ".local" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    assert Interpreter(command=(str(program), "-b")).paths() == (program,)


def test_the_system_is_there_anyway() -> None:
    assert Interpreter(command=("/bin/sh", "-c")).paths() == ()
