"""What fits a laptop; the environment of `rap up` may say otherwise."""

from collections.abc import Mapping
from typing import Final

EXECUTOR: Final = "RAP_EXECUTOR"

AGENT: Final[Mapping[str, str]] = {
    "ALLOW_LOCAL_GIT_REPOS": "true",
    "RAP_AGENT_EXIT": "hand_back",
    "RAP_ALLOW_UNISOLATED": "true",
    "RAP_EGRESS": "open",
    "STATS_POLL_INTERVAL": "0.5",
}
"""Settings of the processes of a `rap up`."""
