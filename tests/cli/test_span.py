"""Spans of time as people type them."""

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.span import Span

SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}


@given(st.integers(1, 100), st.sampled_from(sorted(SECONDS)))
def test_a_number_with_a_unit_is_seconds(number: int, unit: str) -> None:
    assert Span("1m").convert(f"{number}{unit}", None, None) == number * SECONDS[unit]


@pytest.mark.parametrize("typed", ["", "90", "d", "-1d", "1.5d", "1 d", "23h", "0d", "101y", "9" * 10 + "m", "\u0661d"])
def test_anything_else_is_refused_with_its_bounds(typed: str) -> None:
    with pytest.raises(click.BadParameter, match="from 1d to 100y, such as"):
        Span("1d").convert(typed, None, None)
