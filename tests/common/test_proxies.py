"""Proxies are for the outside."""

import pytest

from common import proxies


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://controller.example.org", True),
        ("http://10.0.0.5:8000", True),
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000/", False),
        ("http://[::1]:8000", False),
    ],
)
def test_only_what_is_not_on_this_machine_goes_through_a_proxy(url: str, expected: bool) -> None:
    assert proxies.apply_to(url) is expected
