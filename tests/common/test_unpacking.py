"""Nothing comes out of an archive but plain files and folders, and nothing outside of where it belongs."""

import io
import tarfile
from pathlib import Path

import pytest

from common.unpacking import UnsafeMember, unpack


def archive(*members: tarfile.TarInfo) -> tarfile.TarFile:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    packed.seek(0)
    return tarfile.open(fileobj=packed, mode="r|")


def member(name: str, **more: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.mtime = 3, 1_000_000_000
    for key, value in more.items():
        setattr(made, key, value)
    return made


def test_files_and_folders(tmp_path: Path) -> None:
    with archive(member("a", type=tarfile.DIRTYPE, size=0), member("a/b/c.txt", mode=0o6777), member("d")) as tar:
        for each in tar:
            unpack(tar, each, tmp_path, each.name)
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"xxx"
    status = (tmp_path / "a/b/c.txt").stat()
    assert (status.st_mode & 0o7777, status.st_mtime) == (0o755, 1_000_000_000)
    assert (tmp_path / "d").is_file()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    with archive(member("x")) as tar:
        for each in tar:
            with pytest.raises(UnsafeMember):
                unpack(tar, each, tmp_path / "in", name)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_file(tmp_path: Path, kind: bytes) -> None:
    with archive(member("x", type=kind, size=0, linkname="/etc/passwd")) as tar:
        for each in tar:
            with pytest.raises(UnsafeMember):
                unpack(tar, each, tmp_path, each.name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    with archive(member("x"), member("x")) as tar:
        first, second = tar.next(), tar.next()
        assert first is not None
        assert second is not None
        (tmp_path / "x").write_text("here before")
        with pytest.raises(FileExistsError):
            unpack(tar, second, tmp_path, "x")
