"""What comes from outside is made storable: text, keys, numbers, at any depth."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.storable import is_storable, storable, storable_text

ANY_TEXT = st.text(st.characters(exclude_categories=()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
)


@given(JSON)
def test_what_is_made_storable_can_be_stored_and_stays(value: Any) -> None:
    mended = storable(value)
    text = json.dumps(mended, ensure_ascii=False, allow_nan=False)
    assert text.encode()
    assert storable(mended) == mended


@given(ANY_TEXT)
def test_only_what_cannot_be_stored_is_replaced(text: str) -> None:
    mended = storable_text(text)
    assert is_storable(mended)
    assert len(mended) == len(text)
    assert (mended == text) is is_storable(text)
    assert all(after in (before, "\ufffd") for before, after in zip(text, mended, strict=True))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (2**63, float(2**63)),
        (10**400, None),
        (math.nan, None),
        (-math.inf, None),
        (True, True),
        (("a\0", {"\ud800": 1}), ["a\ufffd", {"\ufffd": 1}]),
    ],
)
def test_numbers_and_containers(value: Any, stored: Any) -> None:
    assert storable(value) == stored
    assert storable([2**64, math.nan], keep_integers=True) == [2**64, None]
