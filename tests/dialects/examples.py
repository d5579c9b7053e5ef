"""The golden pairs in schemas/<dialect>/examples: how they are read, asked and compared.

A file is `{"name", "given", "request": {method, path, headers, body | raw | form}, "response": {status, headers,
body}}`. `given` names a state of the world (`worlds.py`). A `body` of a response is JSON, `""` for none, or
`"<html>"` for any page; in it `"<timestamp>"`, `"<traceparent>"` and `"<id>"` stand for values that differ each time.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from attrs import frozen

SCHEMAS: Final = Path(__file__).parents[2] / "schemas"

PLACEHOLDERS: Final = {
    "<timestamp>": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z"),
    "<traceparent>": re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "<id>": re.compile(r"[a-z2-7]{16}"),
}


@frozen
class Example:
    """One golden pair."""

    name: str
    given: str
    request: dict[str, Any]
    response: dict[str, Any]

    async def ask(self, client: TestClient[Any, Any]) -> ClientResponse:
        """Send the request."""
        asked = self.request
        content: dict[str, Any] = {}
        if "raw" in asked:
            content["data"] = asked["raw"].encode()
        elif "form" in asked:
            content["data"] = asked["form"]
        elif "body" in asked:
            content["json"] = asked["body"]
        return await client.request(
            asked["method"], asked["path"], headers=asked["headers"], allow_redirects=False, **content
        )

    async def check(self, response: ClientResponse) -> None:
        """Compare what came with what should."""
        expected = self.response
        text = await response.text()
        assert response.status == expected["status"], text
        assert {name: response.headers.get(name) for name in expected["headers"]} == expected["headers"]
        if expected["body"] == "<html>":
            assert text.startswith("<!doctype html>")
        elif expected["body"] == "":
            assert text == ""
        else:
            compare(json.loads(text), expected["body"])


def load(dialect: str) -> list[Example]:
    """Every example of a dialect."""
    files = sorted((SCHEMAS / dialect / "examples").glob("*.json"))
    return [Example(**json.loads(file.read_text())) for file in files]


def compare(actual: Any, expected: Any, path: str = "$") -> None:
    """Fail where `actual` is not what `expected` says, placeholders included."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        assert list(actual) == list(expected), f"other keys at {path}"
        for key in expected:
            compare(actual[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(actual, list):
        assert len(actual) == len(expected), f"another length at {path}"
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            compare(one, other, f"{path}[{index}]")
    elif isinstance(expected, str) and expected in PLACEHOLDERS:
        assert PLACEHOLDERS[expected].fullmatch(str(actual)), f"{actual!r} is no {expected} at {path}"
    else:
        assert actual == expected, f"at {path}"
