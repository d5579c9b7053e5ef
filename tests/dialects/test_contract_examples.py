"""The contracts hold: every golden pair is replayed, and together they produce every answer that is documented."""

import json
import re
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from jsonschema import Draft202012Validator

from controller.dialects.rap import wire as rap_wire
from controller.dialects.tasks import wire as tasks_wire
from tests.dialects.examples import Example, compare, load
from tests.dialects.worlds import WORLDS
from tests.fakes.engine import ScriptedEngine

DOCUMENTS = {"rap": rap_wire.CONTRACT.document, "tasks": tasks_wire.CONTRACT.document}
EXAMPLES = [(dialect, example) for dialect in DOCUMENTS for example in load(dialect)]

Answer = tuple[str, str, str]
"""(method, path template, status)."""


@pytest.mark.parametrize(
    ("dialect", "example"), EXAMPLES, ids=[f"{dialect}: {example.name}" for dialect, example in EXAMPLES]
)
async def test_an_example_is_answered_as_written(
    client: TestClient[Any, Any], engine: ScriptedEngine, dialect: str, example: Example
) -> None:
    WORLDS[example.given](engine)
    response = await example.ask(client)
    await example.check(response)
    documented = find_answer(dialect, example)
    if documented is not None:
        content = describe(dialect, documented)["content"]
        (media_type,) = content
        assert response.content_type == media_type
        if media_type == "application/json":
            conform(dialect, content[media_type]["schema"], await response.json())


@pytest.mark.parametrize("dialect", DOCUMENTS)
def test_every_documented_answer_is_produced_by_an_example(dialect: str) -> None:
    produced = {find_answer(dialect, example) for example in load(dialect)} - {None}
    assert documented_answers(dialect) - produced == set()


@pytest.mark.parametrize("dialect", DOCUMENTS)
def test_no_example_answers_what_is_not_documented(dialect: str) -> None:
    """But for what belongs to no operation: wrong methods and missing slashes, which the description tells."""
    operations = {(method, path) for method, path, _ in documented_answers(dialect)}
    for example in load(dialect):
        method, path = example.request["method"], template(dialect, example.request["path"])
        if (method, path) in operations:
            assert find_answer(dialect, example) is not None, example.name


@pytest.mark.parametrize("dialect", DOCUMENTS)
def test_the_examples_inside_the_contract_fit_their_schemas(dialect: str) -> None:
    checked = 0
    for body in bodies(DOCUMENTS[dialect]):
        for example in body.get("examples", {}).values():
            conform(dialect, body["schema"], example["value"])
            checked += 1
    assert checked > 5


def test_the_form_example_of_the_task_api_holds_an_update() -> None:
    operation = DOCUMENTS["tasks"]["paths"]["/{backend}/task/update/"]["post"]
    form = operation["requestBody"]["content"]["application/x-www-form-urlencoded"]
    tasks_wire.UPDATE.check(json.loads(form["examples"]["executing"]["value"]["payload"]))


@pytest.mark.parametrize("dialect", DOCUMENTS)
def test_the_document_is_a_schema_of_schemas(dialect: str) -> None:
    for schema in DOCUMENTS[dialect]["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_job_and_task_objects_allow_no_other_keys() -> None:
    """Sections 1.8 and 2.3: one key more breaks the clients."""
    job = DOCUMENTS["rap"]["components"]["schemas"]["job"]
    task = DOCUMENTS["tasks"]["components"]["schemas"]["task"]
    for schema, count in ((job, 15), (task, 6)):
        assert schema["additionalProperties"] is False
        assert sorted(schema["required"]) == sorted(schema["properties"])
        assert len(schema["required"]) == count


def test_compare_sees_differences() -> None:
    expected = {"a": ["<timestamp>", 1]}
    moment = "2026-11-21T09:30:00Z"
    compare({"a": [moment, 1]}, expected)
    others: list[Any] = [
        {"a": ["now", 1]},
        {"a": [moment]},
        {"b": []},
        {"a": [moment, 2]},
        [],
        {"a": [moment, 1], "b": 1},
    ]
    for other in others:
        with pytest.raises(AssertionError):
            compare(other, expected)


def documented_answers(dialect: str) -> set[Answer]:
    return {
        (method.upper(), path, status)
        for path, item in DOCUMENTS[dialect]["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
        for status in operation["responses"]
    }


def template(dialect: str, path: str) -> str | None:
    """The path of the contract that a request's path is of."""
    base = DOCUMENTS[dialect]["servers"][0]["url"].rstrip("/")
    for known in DOCUMENTS[dialect]["paths"]:
        if re.fullmatch(base + re.sub(r"\{\w+\}", "[^/]+", known), path):
            return str(known)
    return None


def find_answer(dialect: str, example: Example) -> Answer | None:
    """The documented answer that an example shows, if it shows one."""
    path = template(dialect, example.request["path"])
    answer = (example.request["method"], path or "", str(example.response["status"]))
    return answer if answer in documented_answers(dialect) else None


def describe(dialect: str, answer: Answer) -> dict[str, Any]:
    method, path, status = answer
    document = DOCUMENTS[dialect]
    response: dict[str, Any] = document["paths"][path][method.lower()]["responses"][status]
    if "$ref" in response:
        name = response["$ref"].rpartition("/")[2]
        response = document["components"]["responses"][name]
    return response


def bodies(node: Any) -> Any:
    """Every media type object with a schema, anywhere in the document."""
    if isinstance(node, dict):
        if "schema" in node and "examples" in node:
            yield node
        for child in node.values():
            yield from bodies(child)
    elif isinstance(node, list):
        for child in node:
            yield from bodies(child)


def conform(dialect: str, schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator({**schema, "components": DOCUMENTS[dialect]["components"]}).validate(value)
