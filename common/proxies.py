"""When the environment's HTTP proxy is meant: for the outside, never for a program on the same machine."""

from typing import Final

from yarl import URL

_LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def apply_to(url: str) -> bool:
    """Whether requests to `url` go through HTTPS_PROXY or HTTP_PROXY, if set (NO_PROXY is heeded besides)."""
    return URL(url).host not in _LOCAL_HOSTS
