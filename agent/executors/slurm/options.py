"""What the operator decides about the cluster: the settings RAP_SLURM_*."""

import re
import shlex
import sys
from typing import Final

from attrs import frozen

from common.environ import Environ

PARTITION_SETTING: Final = "RAP_SLURM_PARTITION"
ARGS_SETTING: Final = "RAP_SLURM_ARGS"
PYTHON_SETTING: Final = "RAP_SLURM_PYTHON"
REFUSED: Final = frozenset({"array", "hold", "parsable", "test-only", "wait", "wrap"})
"""Options of `sbatch` that would make something else of a job than one job."""
_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+-]*")
_ARGUMENT: Final = re.compile(r"--([a-z][a-z-]*)(=.*)?", re.DOTALL)


@frozen(kw_only=True)
class Options:
    """What the operator decided about the cluster."""

    partition: str = ""
    """Empty for the cluster's default."""
    account: str = ""
    qos: str = ""
    args: tuple[str, ...] = ()
    """More options of `sbatch`; ours come after them and win."""
    python: str
    """The Python of the nodes."""
    poll_seconds: float = 5.0
    """Between two looks at the queue."""

    def placing(self) -> list[str]:
        """The options that every job of ours has."""
        options = [*self.args, "--export=NONE", "--no-requeue", "--chdir=/", "--nodes=1", "--ntasks=1"]
        for name in ("partition", "account", "qos"):
            if value := getattr(self, name):
                options.append(f"--{name}={value}")
        return options


def read(environ: Environ) -> Options:
    """Ask `environ` for the settings; faults stay in it until its `finish`."""
    return Options(
        partition=_word(environ, PARTITION_SETTING),
        account=_word(environ, "RAP_SLURM_ACCOUNT"),
        qos=_word(environ, "RAP_SLURM_QOS"),
        args=environ.converted(ARGS_SETTING, (), parse_args),
        python=environ.converted(PYTHON_SETTING, sys.executable, _absolute),
        poll_seconds=environ.number("RAP_SLURM_POLL_SECONDS", 5, least=0.5, most=600),
    )


def parse_args(raw: str) -> tuple[str, ...]:
    """Options of `sbatch`, quoted as a shell's: `--constraint=fast "--reservation=night run"`.

    :raises ValueError: a word that is no long option with its value, or an option that we cannot let pass.
    """
    try:
        words = shlex.split(raw)
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {error}") from error
    for word in words:
        found = _ARGUMENT.fullmatch(word)
        if found is None:
            raise ValueError(f"has the word {word!r}, which is no option of the form --name or --name=value")
        # sbatch takes the beginning of a name for the name.
        if len(found[1]) > 1 and any(name.startswith(found[1]) for name in REFUSED):
            raise ValueError(f"has the option --{found[1]}, which would not leave a job one job")
    return tuple(words)


def _word(environ: Environ, name: str) -> str:
    def check(raw: str) -> str:
        if not _WORD.fullmatch(raw):
            raise ValueError("is no name that Slurm could know")
        return raw

    return environ.converted(name, "", check)


def _absolute(raw: str) -> str:
    if not raw.startswith("/"):
        raise ValueError("is not an absolute path")
    return raw
