"""Checks of an agent's machine: settings, executor, disks, and the way to the controller."""

import os
import shutil
from collections.abc import Mapping

from agent import settings
from agent.executors import bubblewrap
from agent.executors.base import Unusable
from cli.doctor import controller, findings
from common.environ import ConfigurationError
from controller.core.diagnosis import Finding


def is_one(environ: Mapping[str, str]) -> bool:
    """Whether the environment is an agent's."""
    return bool(environ.get("RAP_CONTROLLER_URL") or environ.get("CONTROLLER_TASK_API_ENDPOINT"))


async def check(environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Everything that an agent with this environment needs."""
    try:
        found = settings.from_environ(environ)
    except ConfigurationError as error:
        return [findings.problem("agent_settings", f"{fault}.", "correct the setting") for fault in error.faults]
    return [
        findings.ok("agent_settings", f"The settings of an agent for {found.backend} are complete."),
        _executor(found),
        findings.disk("agent_disk", "the agent's WORKDIR", found.work_dir),
        findings.disk("storage_disk", "HIGH_PRIVACY_STORAGE_BASE", found.high_privacy_dir),
        *await controller.check_health(found.controller_url),
    ]


def _executor(found: settings.Settings) -> Finding:
    """Which executor jobs get, and whether it works here."""
    if found.executor != "sandbox":
        return findings.warning(
            "executor", f"RAP_EXECUTOR is {found.executor}.", "for jobs in a sandbox: RAP_EXECUTOR=sandbox"
        )
    try:
        path = shutil.which("bwrap")
        if path is None:
            raise Unusable("bubblewrap is not installed")
        bubblewrap.probe(path)
    except Unusable as reason:
        advice = "install the package `bubblewrap`, and allow user namespaces"
        if found.allow_unisolated:
            return findings.warning("executor", f"Jobs run WITHOUT isolation: {reason}.", advice)
        return findings.problem("executor", f"The sandbox does not work: {reason}.", advice)
    return findings.ok("executor", "Jobs run in a bubblewrap sandbox, which works here.")
