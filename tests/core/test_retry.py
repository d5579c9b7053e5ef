"""Back-off: it grows, it is bounded, and it is spread."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from controller.core.retry import DEFAULT, RetryPolicy

DAY = timedelta(days=1)


@given(
    st.timedeltas(timedelta(), DAY),
    st.timedeltas(timedelta(), DAY),
    st.integers(1, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_delays_are_bounded_and_never_shrink(first: timedelta, more: timedelta, faults: int, jitter: float) -> None:
    policy = RetryPolicy(first=first, longest=first + more)
    second = timedelta(microseconds=1)
    assert first / 2 - second <= policy.delay(faults, jitter) <= policy.longest + second
    assert policy.delay(faults + 1, jitter) >= policy.delay(faults, jitter)


def test_delays_double_and_jitter_spreads_them() -> None:
    assert [DEFAULT.delay(n, 0.0).total_seconds() for n in (1, 2, 3)] == [2.5, 5, 10]
    assert DEFAULT.delay(1, 0.5) > DEFAULT.delay(1, 0.0)
