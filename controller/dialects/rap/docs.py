"""The docs page and `spec.json`: made of the contract once, at startup, they need nothing from elsewhere."""

import importlib.resources
import json
from collections.abc import Iterator, Mapping
from html import escape
from string import Template
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

Document = Mapping[str, Any]

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page has its style in itself, and nothing else to load or to run."""

_TEMPLATE: Final = Template((importlib.resources.files(__package__) / "docs.html").read_text(encoding="utf-8"))


def page(document: Document) -> Handler:
    """The handler of the docs page of `document`."""
    html = render(document)

    async def docs(_: web.Request) -> web.Response:
        return web.Response(text=html, content_type="text/html", headers={"Content-Security-Policy": POLICY})

    return docs


def specification(document: Document) -> Handler:
    """The handler that serves `document` itself, as JSON."""
    text = json.dumps(document).encode()

    async def spec(_: web.Request) -> web.Response:
        return web.Response(body=text, content_type="application/json")

    return spec


def render(document: Document) -> str:
    """The whole page: what every operation takes and answers, with examples, and the shapes they speak of."""
    info = document["info"]
    return _TEMPLATE.substitute(
        title=escape(info["title"]),
        version=escape(info["version"]),
        summary=escape(info["summary"]),
        description=_paragraphs(info["description"]),
        contents="\n".join(_contents(document)),
        operations="\n".join(_operation(document, *each) for each in _operations(document)),
        schemas=_schemas(document),
    )


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    """(method, path, operation), in the document's order."""
    for path, item in document["paths"].items():
        for method in ("get", "post"):
            if method in item:
                yield method.upper(), path, item[method]


def _contents(document: Document) -> Iterator[str]:
    for tag in document["tags"]:
        links = [
            f'<li><a href="#{operation["operationId"]}">{escape(operation["summary"])}</a></li>'
            for _, _, operation in _operations(document)
            if tag["name"] in operation["tags"]
        ]
        yield f"<h2>{escape(tag['description'])}</h2>\n<ul>{''.join(links)}</ul>"
    names = "".join(f'<li><a href="#schema-{name}">{name}</a></li>' for name in document["components"]["schemas"])
    yield f"<h2>Schemas</h2>\n<ul>{names}</ul>"


def _operation(document: Document, method: str, path: str, operation: Document) -> str:
    address = document["servers"][0]["url"].rstrip("/") + path
    parts = [
        f'<section id="{operation["operationId"]}">',
        f"<h2>{escape(operation['summary'])}</h2>",
        f'<div class="address"><span class="method {method}">{method}</span>{escape(address)}</div>',
        _paragraphs(operation.get("description", "")),
    ]
    if body := operation.get("requestBody"):
        parts.append("<h3>Request body</h3>")
        parts += _content(document, body["content"], table=True)
    parts.append("<h3>Answers</h3>")
    for status, response in operation["responses"].items():
        resolved = _resolve(document, response)
        parts.append(f'<p><span class="status s{status[0]}">{status}</span> {_inline(resolved["description"])}</p>')
        parts += _content(document, resolved["content"], table=False)
    return "\n".join([*parts, "</section>"])


def _content(document: Document, content: Document, *, table: bool) -> Iterator[str]:
    """What a body may be: its shape (in full or by name) and its examples, folded."""
    for media_type, body in content.items():
        schema = _resolve(document, body["schema"])
        if table:
            yield _fields(document, schema)
        elif "$ref" in body["schema"]:
            yield f'<p class="soft"><code>{media_type}</code>: {_kind(document, body["schema"])}</p>'
        else:
            yield f'<p class="soft"><code>{media_type}</code></p>'
        for example in body.get("examples", {}).values():
            text = escape(json.dumps(example["value"], indent=2), quote=False)
            yield f"<details><summary>{escape(example['summary'])}</summary><pre>{text}</pre></details>"


def _schemas(document: Document) -> str:
    parts = ['<section id="schemas">', "<h2>Schemas</h2>"]
    for name, schema in document["components"]["schemas"].items():
        parts.append(f'<h3 id="schema-{name}">{name}</h3>')
        if "properties" in schema:
            parts += [_paragraphs(schema.get("description", "")), _fields(document, schema)]
        else:
            parts.append(f"<p>{_kind(document, schema)}. {_inline(schema.get('description', ''))}</p>")
    return "\n".join([*parts, "</section>"])


def _fields(document: Document, schema: Document) -> str:
    """The table of an object's properties; those of inner objects stand in it by their dotted path."""
    rows = "\n".join(_rows(document, schema, ""))
    head = "<tr><th>Field</th><th>Type</th><th>Meaning</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _rows(document: Document, schema: Document, prefix: str) -> Iterator[str]:
    for name, part in schema["properties"].items():
        required = ' <span class="required">required</span>' if name in schema.get("required", ()) else ""
        meaning = part.get("description") or _resolve(document, part).get("description", "")
        yield (
            f"<tr><td><code>{escape(prefix + name)}</code>{required}</td>"
            f"<td>{_kind(document, part)}</td><td>{_inline(meaning)}</td></tr>"
        )
        inner, path = part, f"{prefix}{name}."
        if "items" in part:
            inner, path = part["items"], f"{prefix}{name}[]."
        if "properties" in inner:
            yield from _rows(document, inner, path)


def _kind(document: Document, schema: Document) -> str:
    """What a value is, in a few words; named schemas are links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if "oneOf" in schema:
        return " or ".join(_kind(document, choice) for choice in schema["oneOf"])
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_code, schema["enum"]))
    if schema.get("type") == "array":
        some = "non-empty " if schema.get("minItems") else ""
        return f"{some}array of {_kind(document, schema['items'])}"
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    pattern = f" {_code(schema['pattern'])}" if "pattern" in schema else ""
    return " or ".join(map(escape, types)) + pattern


def _code(value: object) -> str:
    return f"<code>{escape(value if isinstance(value, str) else json.dumps(value))}</code>"


def _resolve(document: Document, part: Document) -> Document:
    """`part`, or what it refers to."""
    if "$ref" not in part:
        return part
    target: Any = document
    for step in part["$ref"].removeprefix("#/").split("/"):
        target = target[step]
    return _resolve(document, target)


def _paragraphs(text: str) -> str:
    return "\n".join(f"<p>{_inline(part)}</p>" for part in text.strip().split("\n\n") if part)


def _inline(text: str) -> str:
    """Escaped text, with `code` as the contract's descriptions write it."""
    pieces = escape(text.strip(), quote=False).split("`")
    return "".join(f"<code>{piece}</code>" if odd % 2 else piece for odd, piece in enumerate(pieces))
