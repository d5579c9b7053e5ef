"""The canaries, and the study whose jobs plant them.

All canaries of a run have one random seed in them, so "none is there" is one search. Nobody tells the seed to the
study: the database job has it from its secret environment and writes it into its data, the others read it there.
"""

import base64
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

PROGRAMS: Final = Path(__file__).parent / "programs"
LOGGED: Final = frozenset({"log", "stderr", "exception", "exit", "database-error"})
"""Kinds of canaries that jobs print: log text. (What a program raises it prints.)"""

OUTCOMES: Final[Mapping[str, str]] = {
    "succeed": "succeeded",
    "excluded": "succeeded",
    "bytes": "succeeded",
    "pipe": "succeeded",
    "unmatched": "unmatched_patterns",
    "exit": "nonzero_exit",
    "raise": "nonzero_exit",
    "database": "nonzero_exit",
    "segfault": "nonzero_exit",
    "kill": "nonzero_exit",
    "memory": "nonzero_exit",
    "limit": "nonzero_exit",
    "link": "job_error",
    "hang": "cancelled_by_user",
}
"""Mode of a job -> the status code that it ends with."""


_RESOURCES: Final[Mapping[str, Mapping[str, Mapping[str, str]]]] = {
    "memory": {"resources": {"memory": "256M"}},
    "limit": {"resources": {"time": "2s"}},
}


def _new_seed() -> str:
    return secrets.token_hex(8)


@frozen
class Canaries:
    """Those of one run."""

    seed: str = field(factory=_new_seed)

    def seen(self, data: bytes) -> set[str]:
        """The kinds of canaries in there, in clear or encoded as a program might."""
        found = {kind.decode() for kind in re.findall(rf"canary-{self.seed}-([a-z]+(?:-error)?)".encode(), data)}
        if self.seed.encode() in data.lower() and not found:
            found.add("seed")
        if any(variant in data for variant in self._encoded()):
            found.add("encoded")
        return found

    def _encoded(self) -> list[bytes]:
        plain = self.seed.encode()
        # In base64 the middle of a text looks three ways, depending on what stands before it.
        by_offset = [base64.b64encode(b"x" * before + plain)[4:-4] for before in (1, 2, 3)]
        return [plain.hex().encode(), plain.decode().encode("utf-16-le"), *by_offset]


def project() -> str:
    """The study's `project.yaml`."""
    actions: dict[str, object] = {
        "extract": {
            "run": "ehrql:v1 generate-dataset dataset.py --output output/patients.csv",
            "outputs": {"highly_sensitive": {"patients": "output/patients.csv"}},
        }
    }
    for mode in OUTCOMES:
        actions[mode] = {
            **_RESOURCES.get(mode, {}),
            "run": f"python:v2 python job.py {mode}",
            "needs": ["extract"],
            "outputs": {
                "moderately_sensitive": {
                    "texts": f"output/{mode}/*.txt",
                    "tables": f"output/{mode}/*.csv",
                    "deeper": f"output/{mode}/*/*.txt",
                }
            },
        }
    return json.dumps({"version": "4", "actions": actions})


def files() -> dict[str, bytes]:
    """The study."""
    return {
        "project.yaml": project().encode(),
        "dataset.py": (PROGRAMS / "canary_dataset.py").read_bytes(),
        "job.py": (PROGRAMS / "canary_job.py").read_bytes(),
    }
