"""The contracts in schemas/: what is published is what bodies are checked against, from one file."""

import functools
import importlib.resources
import itertools
import re
from collections.abc import Iterator
from typing import Any, Final

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError, best_match
from ruamel.yaml import YAML

from controller.web.errors import SchemaMismatch

MOST_FAULTS: Final = 1000
"""Faults looked at to choose the one to report: a body of nothing but faults must not keep us busy."""

LONGEST_FAULT: Final = 2000
"""Characters of a fault's text: it quotes the body, which may be megabytes."""


class Contract:
    """One dialect's OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    @classmethod
    def load(cls, dialect: str) -> "Contract":
        """The contract in `schemas/<dialect>/openapi.yaml`, from a checkout or an installation alike."""
        text = (importlib.resources.files("schemas") / dialect / "openapi.yaml").read_text(encoding="utf-8")
        return cls(YAML(typ="safe", pure=True).load(text))

    def shape(self, name: str) -> "Shape":
        """The shape called `name` under `components/schemas`."""
        return Shape(self.document["components"], name)


class Shape:
    """A named schema that bodies are checked against."""

    def __init__(self, components: dict[str, Any], name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        self._validator = _Validator(schema)

    def check(self, body: Any) -> None:
        """Return if `body` has this shape.

        :raises SchemaMismatch: with the one fault that tells most, and where it is (reference section 1.1).
        """
        faults = itertools.islice(self._validator.iter_errors(body), MOST_FAULTS)
        fault = best_match(faults)
        if fault is None:
            return
        place = "" if fault.json_path == "$" else f" at {fault.json_path}"
        text = fault.message
        if len(text) > LONGEST_FAULT:
            text = f"{text[: LONGEST_FAULT // 2]} [...] {text[-LONGEST_FAULT // 2 :]}"
        raise SchemaMismatch(f"Invalid request body received{place}: {text}")


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """`pattern` as JSON Schema means it: `$` is the very end, not also before a last newline."""
    return re.compile(re.sub(r"\$$", r"\\Z", pattern))


def _check_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not _compiled(pattern).search(value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


_Validator = validators.extend(  # type: ignore[no-untyped-call]  # the stubs leave its types out
    Draft202012Validator, {"pattern": _check_pattern}
)
