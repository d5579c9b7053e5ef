"""What may leave the backend: the one place that decides it (docs/security.md, "What leaves"; reference 2.5).

Every function builds what is sent from an allow-list; nothing is copied and then struck out. So a new key in
`metadata.json` stays inside until somebody lists it here.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from agent.core.messages import KILLS, SAFE
from common.protocol import MOST_OF_AGENT_METRICS, Egress, Named

OUTPUTS_BYTES: Final = 1024 * 1024
"""Most that a report says about outputs. The controller takes bodies of some MiB (RAP_MAX_BODY); a report that it
does not take would lose the job's end, not only the list."""
TEXT_CHARACTERS: Final = 50_000
"""Most of one message, for the same reason."""

METRICS: Final = frozenset({"cpu_mean", "cpu_peak", "mem_mb_mean", "mem_mb_peak"})

_KEPT: Final = ("docker_image_id", "timestamp_ns")
"""Read by the controller, and written by nobody inside the job."""

_COMMIT: Final = re.compile(r"[0-9A-Fa-f]{3,64}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]{1,20} ?(Z|[+-][0-9:]{2,6})?)?")
_LABELS: Final = {
    "action_version": re.compile(r"v?[0-9][0-9A-Za-z._+-]{0,63}|latest"),
    "action_revision": _COMMIT,
    "action_created": _TIME,
    "base_revision": _COMMIT,
    "base_created": _TIME,
}
"""The image's labels that the controller reads (reference section 2.5), and what each looks like. Who makes an image
inside a backend may write anything into them, so what does not look so is not sent."""
UNKNOWN: Final = "unknown"

_OUTPUT: Final = ("path", "level", "size", "sha256", "excluded", "message")

_LEVELS: Final = {
    Named.NONE: frozenset[str](),
    Named.MINIMALLY_SENSITIVE: frozenset({"minimally_sensitive"}),
    Named.MODERATELY_SENSITIVE: frozenset({"minimally_sensitive", "moderately_sensitive"}),
}
"""What a policy for outputs permits; the one that is missing here permits all."""

ENVIRONMENT_SHOWN: Final = frozenset(
    {"PATH", "PYTHON_VERSION", "OPENSAFELY_BACKEND", "TZ", "LANG", "LC_ALL", "PYTHONPATH", "TEMP_DATABASE_NAME"}
    | {"EHRQL_PERMISSIONS", "HOME", "TRACEPARENT"}
)
"""Variables whose values may be stored (reference section 5.5)."""
REDACTED: Final = "xxxx-REDACTED-xxxx"


def redact_metrics(metrics: Mapping[str, Any], egress: Egress) -> dict[str, float]:
    """The resource metrics that may leave: the four known names, finite numbers, or none at all."""
    if not egress.metrics:
        return {}
    return {
        name: float(value)
        for name, value in metrics.items()
        if name in METRICS and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def redact_vitals(numbers: Mapping[str, float | None], egress: Egress) -> dict[str, float]:
    """What an agent tells of itself: the names of the protocol, within their bounds, or nothing at all."""
    if not egress.metrics:
        return {}
    return {
        name: float(value)
        for name, most in MOST_OF_AGENT_METRICS.items()
        if (value := numbers.get(name)) is not None and 0 <= value <= most
    }


def redact_error(error: Any, egress: Egress) -> Any:
    """`results.error`: False if all is well, else a text as full as the policy allows.

    A traceback and a message can quote anything: what the job wrote as well as names of files of every level. So
    they leave only where both may.
    """
    if not error:
        return False
    whole = egress.logs and egress.outputs is Named.ALL
    return {
        "exception": error["exception"],
        "message": shown(error["message"]) if whole else error["public"],
        "traceback": shown(error["traceback"]) if whole else "",
        "fatal": bool(error["fatal"]),
    }


def _redact_texts(metadata: Mapping[str, Any], egress: Egress) -> tuple[str, str]:
    """The status message and the hint.

    Section 2.5 empties both when there were unmatched patterns or outputs, because they then name files. We keep
    the fixed wordings for a killed job, which name nothing: a job that ran out of memory usually lacks outputs,
    and the reason is what its owner needs. Which patterns matched nothing would tell something of outputs of every
    level, and the hint names files that no pattern did: both are for open policies only.
    """
    message, hint = str(metadata.get("status_message") or ""), str(metadata.get("hint") or "")
    if egress.outputs is Named.ALL:
        return shown(message), shown(hint)
    named = metadata.get("unmatched_patterns") or metadata.get("unmatched_outputs")
    allowed = KILLS if named else SAFE
    return message if allowed.fullmatch(message) else "", ""


def redact_results(metadata: Mapping[str, Any], egress: Egress) -> dict[str, Any]:
    """The results of a finished RUNJOB or CANCELJOB, from its whole `metadata.json`.

    Always has every key that the controller reads.
    """
    message, hint = _redact_texts(metadata, egress)
    results: dict[str, Any] = {key: metadata.get(key) for key in _KEPT} | _redact_labels(metadata, egress)
    results |= {
        "error": redact_error(metadata.get("error"), egress),
        "exit_code": str(metadata.get("exit_code")),
        "status_message": message,
        "hint": hint,
        "cancelled": bool(metadata.get("cancelled")),
        "has_unmatched_patterns": bool(metadata.get("unmatched_patterns")),
        "has_level4_excluded_files": bool(metadata.get("level4_excluded_files")),
        "job_metrics": redact_metrics(metadata.get("job_metrics") or {}, egress),
    }
    if egress.outputs is not Named.NONE and not egress.reviewed:
        results |= _list_outputs([each for each in metadata.get("outputs_detail") or () if permits(egress, each)])
    return results


def _redact_labels(metadata: Mapping[str, Any], egress: Egress) -> dict[str, Any]:
    found = {key: metadata.get(key) for key in _LABELS}
    if egress.outputs is Named.ALL:
        return found
    return {
        key: value if value is None or _LABELS[key].fullmatch(str(value)) else UNKNOWN for key, value in found.items()
    }


def permits(egress: Egress, output: Mapping[str, Any]) -> bool:
    """Whether the policy lets an output (an entry of `outputs_detail`) be named, be it after a review.

    Nothing that checks have excluded, unless everything may be named.
    """
    if egress.outputs is Named.ALL:
        return True
    return output.get("level") in _LEVELS[egress.outputs] and output.get("excluded") is False


def _list_outputs(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As many outputs as a report can hold, and how many more there are."""
    listed = take_fitting({key: shown(output[key]) for key in _OUTPUT} for output in outputs)
    more = len(outputs) - len(listed)
    return {"outputs": listed} | ({"outputs_left_out": more} if more else {})


def take_fitting(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of these, from the first on, as one report can hold."""
    taken: list[dict[str, Any]] = []
    room = OUTPUTS_BYTES
    for entry in entries:
        room -= len(json.dumps(entry))
        if room < 0:
            break
        taken.append(entry)
    return taken


def redact_text(text: str, secrets: Sequence[str]) -> str:
    """A message without the values that must never leave, whatever the policy."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return str(shown(text))


def shown(value: Any) -> Any:
    """How a string is told: JSON and a database can hold it. Names and messages may be long, and no valid UTF-8."""
    if not isinstance(value, str):
        return value
    return value[:TEXT_CHARACTERS].encode(errors="replace").decode().replace("\x00", "?")


def redact_environment(value: Any) -> Any:
    """An engine's description of a run with the values of its environment struck out, for storing it."""
    if isinstance(value, Mapping):
        return {
            str(key): _redact_variables(inner) if str(key).lower() == "env" else redact_environment(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact_environment(inner) for inner in value]
    return value


def _redact_variables(env: Any) -> Any:
    """An environment, as `NAME=value` lines or as a mapping, with only harmless values left."""
    if isinstance(env, Mapping):
        return {str(k): v if k in ENVIRONMENT_SHOWN else REDACTED for k, v in env.items()}
    if isinstance(env, (list, tuple)):
        pairs = (str(line).partition("=") for line in env)
        return [f"{name}={value if name in ENVIRONMENT_SHOWN else REDACTED}" for name, _, value in pairs]
    return REDACTED
