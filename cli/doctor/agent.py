"""Checks of an agent's machine: settings, disks, and the way to the controller."""

import os
from collections.abc import Mapping

from agent import settings
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
        findings.disk("agent_disk", "the agent's WORKDIR", found.work_dir),
        findings.disk("storage_disk", "HIGH_PRIVACY_STORAGE_BASE", found.high_privacy_dir, reserve=found.disk_reserve),
        *await controller.check_health(found.controller_url),
    ]
