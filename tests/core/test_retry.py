"""Back-off: it grows, it is bounded, and it is spread."""

from hypothesis import given
from hypothesis import strategies as st

from controller.core.retry import FIRST_DELAY, LONGEST_DELAY, delay


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_delays_are_bounded_and_never_shrink(faults: int, jitter: float) -> None:
    assert FIRST_DELAY / 2 <= delay(faults, jitter) <= LONGEST_DELAY
    assert delay(faults + 1, jitter) >= delay(faults, jitter)


def test_delays_double_and_jitter_spreads_them() -> None:
    assert [delay(n, 0.0).total_seconds() for n in (1, 2, 3)] == [2.5, 5, 10]
    assert delay(1, 0.5) > delay(1, 0.0)
