"""What a job may use, and what it uses or used, in words."""

from collections.abc import Mapping
from typing import Any

from common import quantities


def limits(job: Mapping[str, Any]) -> str:
    """Such as `2 CPUs, 4G of memory, 2h`; empty if the controller does not say."""
    said = job.get("limits")
    if not said:
        return ""
    cpus, time = said["cpu_count"], said["time_limit"]
    words = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}", f"{said['memory_limit']} of memory"]
    words.append("no time limit" if time is None else quantities.written_seconds(time))
    return ", ".join(words)


def used(job: Mapping[str, Any]) -> str:
    """Such as `CPU 97 % (at most 101 %), memory 120 MiB (at most 131 MiB)`; empty if nothing is known."""
    parts = []
    for noun, unit, name in (("CPU", "%", "cpu"), ("memory", "MiB", "mem_mb")):
        mean, peak = job["metrics"].get(f"{name}_mean"), job["metrics"].get(f"{name}_peak")
        if isinstance(mean, int | float) and isinstance(peak, int | float):
            parts.append(f"{noun} {mean:.0f} {unit} (at most {peak:.0f} {unit})")
    return ", ".join(parts)
