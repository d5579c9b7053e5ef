"""May a `moderately_sensitive` file be looked at for release? Reference section 5.3, messages included."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from agent.outputs import tables

LEVEL: Final = "moderately_sensitive"
"""The privacy level of outputs that people look at before anything else happens to them."""


@frozen(kw_only=True)
class Checked:
    """What a check found. `message` is None if the file may go to the medium-privacy area."""

    message: str | None = None
    row_count: int | None = None
    """Data rows, only for CSV files that could be read."""
    col_count: int | None = None


@frozen(kw_only=True)
class Rules:
    """The limits that a task's definition sets."""

    max_size: int
    """Bytes."""
    max_rows: int
    file_types: Sequence[str]
    """Suffixes with their dot; compared with the last suffix, case-sensitively."""


def _megabytes(size: int) -> float:
    return round(size / (1024 * 1024), 2)


def _check_csv(path: Path, rules: Rules) -> Checked:
    table = tables.measure(path, "patient_id")
    faults = []
    if table.found:
        faults.append("File has patient_id column")
    if table.rows > rules.max_rows:
        faults.append(f"File row count ({table.rows}) exceeds maximum allowed rows ({rules.max_rows})")
    message = ",".join(faults) or None
    if not table.readable:
        # Section 5.3: a CSV that cannot be read passes; a person looks at it before anything is released. What could
        # be read of it still counts.
        return Checked(message=message)
    return Checked(message=message, row_count=table.rows, col_count=table.columns if table.rows else 0)


def check(path: Path, suffix: str, rules: Rules) -> Checked:
    """Check one file; the first branch that matches decides. Blocking: for a thread.

    :param suffix: the output's, with its dot; `path` may have another.
    """
    size = path.stat().st_size
    if size > rules.max_size:
        return Checked(
            message=f"File size of {_megabytes(size)}Mb is larger that limit of {_megabytes(rules.max_size)}Mb."
        )
    if suffix not in rules.file_types:
        return Checked(message=f"File type of {suffix} is not valid level 4 file")
    return _check_csv(path, rules) if suffix == ".csv" else Checked()
