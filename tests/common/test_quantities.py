"""Sizes and times as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import quantities


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 << 30), ("512m", 512 << 20), ("1.5GiB", 3 << 29), ("1024", 1024), (" 2 kb ", 2048), ("1T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert quantities.memory(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0G", "4X", "4 G B", "9999999T", "0.0001", "٤G", "nan", "4G\n5"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as 4G"):
        quantities.memory(text)


@given(st.integers(1, 2**50))
def test_a_written_size_is_read_back_exactly(size: int) -> None:
    assert quantities.memory(quantities.written_memory(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1d 12h", 129_600), ("1.5H", 5400), (" 1m1s ", 61)],
)
def test_times(text: str, seconds: float) -> None:
    assert quantities.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "90", "0s", "-1h", "30m2h", "1h1h", "2 hours", "٣h", "999999999d", "inf"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as 90s"):
        quantities.seconds(text)


@pytest.mark.parametrize(("text", "limit"), [("0", None), ("0.0", None), ("90", 90), (" 1.5 ", 1.5), ("2h", 7200)])
def test_limits_of_settings(text: str, limit: float | None) -> None:
    assert quantities.time_limit(text) == limit


@pytest.mark.parametrize("text", ["-1", "0.5", "0.5s", "inf", "nan", "1e99", "soon", ""])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is (not a time such as|neither 0 nor)"):
        quantities.time_limit(text)


@given(st.integers(1, 10**9))
def test_a_written_time_is_read_back_exactly(seconds: int) -> None:
    assert quantities.seconds(quantities.written_seconds(seconds)) == seconds


@pytest.mark.parametrize(("written", "again"), [("2.2d", "2d4h48m"), ("1.1h", "1h6m"), ("0.1m", "6s")])
def test_parts_of_a_unit_are_told_as_people_write_them(written: str, again: str) -> None:
    assert quantities.written_seconds(quantities.seconds(written)) == again
