"""The manifest of a backup comes from a file that anybody may have written: whatever it says, it is one sentence."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cli.backup import archive
from cli.errors import Problem

DUMP = b"a dump"
GOOD: dict[str, Any] = {
    "format": 1,
    "version": "1",
    "created_at": "2026-01-01T00:00:00+00:00",
    "server": 16,
    "pg_dump": 16,
    "migrations": [{"number": 1, "name": "0001_initial", "digest": "d"}],
    "raps": 1,
    "jobs": 2,
    "with_blobs": False,
    "sha256": {archive.DUMP: hashlib.sha256(DUMP).hexdigest()},
}


def written(folder: Path, manifest: bytes) -> Path:
    """A backup with this manifest."""
    file = folder / "backup.tar"
    with tarfile.open(file, "w") as tar:
        for name, data in ((archive.DUMP, DUMP), (archive.MANIFEST, manifest)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def test_a_good_one_is_read(tmp_path: Path) -> None:
    with archive.opened(written(tmp_path, json.dumps({**GOOD, "of a later version": 1}).encode())) as backup:
        assert (backup.manifest.raps, backup.manifest.jobs) == (1, 2)
        assert backup.manifest.migrations[0].name == "0001_initial"


@pytest.mark.parametrize(
    "changes",
    [
        {"server": "16"},
        {"server": None},
        {"pg_dump": [16]},
        {"raps": "many"},
        {"created_at": 5},
        {"format": True},
        {"sha256": None},
        {"sha256": []},
        {"sha256": {archive.DUMP: 5}},
        {"with_blobs": "yes"},
        {"migrations": None},
        {"migrations": [{"number": [], "name": "x", "digest": "d"}]},
        {"migrations": [{"number": 1, "name": 5, "digest": "d"}]},
        {"migrations": ["0001_initial"]},
    ],
)
def test_a_wrong_type_is_no_backup_of_ours(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = written(tmp_path, json.dumps({**GOOD, **changes}).encode())
    with pytest.raises(Problem, match="is no backup of ours"), archive.opened(file):
        raise AssertionError("opened")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[]", b"null", b"\0", b'{"format": ' + b"9" * 5000 + b"}"])
def test_what_is_no_manifest_is_no_backup_of_ours(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(Problem, match="is no backup of ours"), archive.opened(written(tmp_path, text)):
        raise AssertionError("opened")
