"""CSV files are counted as Python's own reader counts them, and larger ones than it takes."""

import csv
import io
import tracemalloc
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.outputs import tables
from agent.outputs.tables import PIECE, Table


class _Drops(io.BytesIO):
    """A file that gives a few bytes at a time, so that everything is split somewhere."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3)


def measure(body: bytes, drops: bool) -> Table:
    table = Table(wanted="patient_id")
    table.read(cast(BinaryIO, _Drops(body) if drops else io.BytesIO(body)))
    return table


cells = st.sampled_from(["a", "é", ",", '"', '""', "\n", "\r", "\r\n", " ", "patient_id", "\x00", "\u2028", "1,2\n"])


@given(st.lists(cells, max_size=40).map("".join), st.booleans())
def test_rows_and_columns_are_those_of_the_csv_module(text: str, drops: bool) -> None:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    rows = sum(1 for row in reader if row)
    table = measure(text.encode(), drops)
    assert (table.columns, table.rows, table.found, table.readable) == (
        len(header),
        rows,
        "patient_id" in header,
        True,
    )


@given(st.lists(st.lists(st.text(alphabet='ab,"\n', max_size=4), min_size=1, max_size=4), min_size=1, max_size=9))
def test_what_the_csv_module_writes_is_counted(rows: list[list[str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    assert measure(file.getvalue().encode(), drops=True).rows == len(rows) - 1


@pytest.mark.parametrize("before", ["patient_id,b\n1,2\n", "patient_id,b\n" + "1,2\n" * PIECE])
def test_what_comes_before_bytes_that_are_no_text_counts(before: str) -> None:
    table = measure(before.encode() + b"\xff\n1\n1\n", drops=False)
    assert (table.found, table.rows, table.readable) == (True, before.count("\n") - 1, False)
    assert not measure(b"a\n\xc3", drops=False).readable


@pytest.mark.parametrize(
    ("begin", "fill", "end", "rows"),
    [
        (b"a\n", b"x" * PIECE, b"\n1\n", 2),
        (b'a\n"', (b"x" * 1000 + b'""\n,') * (PIECE // 1004), b'"\n1\n', 2),
        (b"a\n", b"x," * (PIECE // 2), b"\n1\n", 2),
        (b"", b"x" * PIECE, b"\n1\n", 1),
        (b"", b"x," * (PIECE // 2), b"\n1\n", 1),
        (b"a\n", b"\n" * PIECE, b"1\n", 1),
        (b"a\n", b"1\n" * (PIECE // 2), b"", 64 * (PIECE // 2)),
    ],
    ids=["line", "quoted", "fields", "name", "names", "empty", "rows"],
)
def test_gigantic_lines_and_fields_take_no_more_memory(
    tmp_path: Path, begin: bytes, fill: bytes, end: bytes, rows: int
) -> None:
    times = 64 if begin else 2
    with (tmp_path / "a.csv").open("wb") as file:
        file.write(begin)
        for _ in range(times):
            file.write(fill)
        file.write(end)
    tracemalloc.start()
    table = tables.measure(tmp_path / "a.csv", "patient_id")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (table.rows, table.readable) == (rows, True)
    assert peak < 2 * 1024 * 1024
