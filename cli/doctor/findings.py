"""Findings of checks that are made here, as those of the controller's diagnosis."""

import os
import shutil
from pathlib import Path
from typing import Final

from cli.report import size
from controller.core.diagnosis import Finding, Severity

LITTLE: Final = 0.10
"""Part of a disk that is free when somebody should look at it."""
VERY_LITTLE: Final = 0.02
LEAST_BYTES: Final = 1 << 30
"""A large disk is not full at this part; a small one is."""


def ok(name: str, message: str) -> Finding:
    """All is well."""
    return Finding(name=name, level=Severity.OK, message=message)


def warning(name: str, message: str, advice: str) -> Finding:
    """Somebody should look at it."""
    return Finding(name=name, level=Severity.WARNING, message=message, advice=advice)


def problem(name: str, message: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(name=name, level=Severity.PROBLEM, message=message, advice=advice)


def disk(name: str, what: str, folder: Path, *, reserve: int = 0) -> Finding:
    """How much room is left where `folder` lies, or would lie.

    :param reserve: bytes without which an agent takes no jobs.
    """
    there = nearest(folder)
    try:
        usage = shutil.disk_usage(there)
    except OSError as error:
        return warning(name, f"The disk of {what} ({there}) cannot be looked at: {error.strerror}.", f"df -h {there}")
    told = f"{size(usage.free)} of {size(usage.total)} are free for {what} ({folder})."
    advice = f"see what takes the room: du -xh --max-depth=1 {there} | sort -h"
    if usage.free < reserve:
        return problem(name, f"{told} Below {size(reserve)} (RAP_DISK_RESERVE) the agent takes no jobs.", advice)
    part = usage.free / usage.total if usage.total else 1.0
    if part < VERY_LITTLE and usage.free < 10 * LEAST_BYTES:
        return problem(name, told, advice)
    if (part < LITTLE and usage.free < 10 * LEAST_BYTES) or usage.free < LEAST_BYTES:
        return warning(name, told, advice)
    return ok(name, told)


def nearest(folder: Path) -> Path:
    """The folder, or what of its path there is, as far as it may be seen: a look makes nothing that was not there."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.isdir(each))
