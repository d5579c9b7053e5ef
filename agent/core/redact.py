"""What may leave the backend: the one place that decides it (brief section 9, reference section 2.5).

Every function builds what is sent from an allow-list; nothing is copied and then struck out. So a new key in
`metadata.json` stays inside until somebody lists it here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent.core.messages import KILLS, SAFE
from common.protocol import Egress

OUTPUTS_BYTES: Final = 1024 * 1024
"""Most that a report says about outputs. The controller takes bodies of some MiB (RAP_MAX_BODY); a report that it
does not take would lose the job's end, not only the list."""
TEXT_CHARACTERS: Final = 50_000
"""Most of one message, for the same reason."""

METRICS: Final = frozenset({"cpu_mean", "cpu_peak", "mem_mb_mean", "mem_mb_peak"})

_KEPT: Final = (
    "docker_image_id",
    "timestamp_ns",
    "action_version",
    "action_revision",
    "action_created",
    "base_revision",
    "base_created",
)
"""Read by the controller, and written by nobody inside the job."""

_OUTPUT: Final = ("path", "level", "size", "sha256", "excluded", "message")

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


def redact_error(error: Any, egress: Egress) -> Any:
    """`results.error`: False if all is well, else a text as full as the policy allows.

    A traceback and a message can quote anything that the job wrote, so they are log text to the policy.
    """
    if not error:
        return False
    return {
        "exception": error["exception"],
        "message": _text(error["message"]) if egress.logs else error["public"],
        "traceback": _text(error["traceback"]) if egress.logs else "",
        "fatal": bool(error["fatal"]),
    }


def _redact_texts(metadata: Mapping[str, Any], egress: Egress) -> tuple[str, str]:
    """The status message and the hint.

    Section 2.5 empties both when there were unmatched patterns or outputs, because they then name files. We keep
    the fixed wordings for a killed job, which name nothing: a job that ran out of memory usually lacks outputs,
    and the reason is what its owner needs.
    """
    message, hint = str(metadata.get("status_message") or ""), str(metadata.get("hint") or "")
    if egress.outputs:
        return _text(message), _text(hint)
    named = metadata.get("unmatched_patterns") or metadata.get("unmatched_outputs")
    allowed = KILLS if named else SAFE
    return message if allowed.fullmatch(message) else "", ""


def redact_results(metadata: Mapping[str, Any], egress: Egress) -> dict[str, Any]:
    """The results of a finished RUNJOB or CANCELJOB, from its whole `metadata.json`.

    Always has every key that the controller reads.
    """
    message, hint = _redact_texts(metadata, egress)
    results: dict[str, Any] = {key: metadata.get(key) for key in _KEPT}
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
    if egress.outputs:
        results |= _list_outputs(metadata.get("outputs_detail") or ())
    return results


def _list_outputs(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As many outputs as a report can hold, and how many more there are."""
    listed: list[dict[str, Any]] = []
    room = OUTPUTS_BYTES
    for output in outputs:
        entry = {key: _text(output[key]) for key in _OUTPUT}
        room -= len(json.dumps(entry))
        if room < 0:
            return {"outputs": listed, "outputs_left_out": len(outputs) - len(listed)}
        listed.append(entry)
    return {"outputs": listed}


def redact_text(text: str, secrets: Sequence[str]) -> str:
    """A message without the values that must never leave, whatever the policy."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return str(_text(text))


def _text(value: Any) -> Any:
    """A string that JSON and a database can hold: file names and messages may be long, and no valid UTF-8."""
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
