"""YAML from strangers: what it means, and that no text takes long or goes deep."""

import io
from typing import Any

import pytest
import ruamel.yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.sources.yaml_document import Bounds, MalformedYaml, load


def fault(text: str | bytes, bounds: Bounds | None = None) -> str:
    with pytest.raises(MalformedYaml) as caught:
        load(text.encode() if isinstance(text, str) else text, bounds)
    return str(caught.value)


@pytest.mark.parametrize(
    "word", ["on", "off", "yes", "no", "y", "2020-01-01", "12:30:45", "1_000", "0b11", "1e", "=", "nan"]
)
def test_text_that_yaml_1_1_took_for_something_else(word: str) -> None:
    assert load(f"{word}: {word}".encode()) == {word: word}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only a comment", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("12", 12),
        ("-012", -12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.5", 1.5),
        (".5e+1", 5.0),
        ("-.inf", float("-inf")),
        ("'12'", "12"),
        ('"true"', "true"),
        ("! 12", "12"),
        ("!!str 12", "12"),
        ("!!int '12'", 12),
        ("!!float 1", 1.0),
        ("!!null ''", None),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("[a, [b], {c: d}]", ["a", ["b"], {"c": "d"}]),
        ("!!map {a: !!seq [b]}", {"a": ["b"]}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("&x a: *x", {"a": "a"}),
        ("a: &x 1\na b: *x", {"a": 1, "a b": 1}),
        ("x: &x {p: 1, q: 2}\ny:\n  <<: *x\n  p: 3", {"x": {"p": 1, "q": 2}, "y": {"p": 3, "q": 2}}),
        ("y:\n  p: 3\n  <<: [{p: 1, q: 2}, {q: 4, r: 5}]", {"y": {"p": 3, "q": 2, "r": 5}}),
        ("'<<': 1", {"<<": 1}),
    ],
)
def test_values(text: str, value: object) -> None:
    found = load(text.encode())
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "found duplicate key 'a' (first in line 1) (line 3, column 1)"),
        ("a: [", "line 2"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: 'x", "while scanning a quoted scalar (line 1, column 4)"),
        ("\tx", "line 1"),
        ("a: *b", "found undefined alias 'b' (line 1, column 4)"),
        ("&a [*a]", "the alias 'a' contains itself (line 1, column 5)"),
        ("a: !!python/object:os.system x", "is not supported here (line 1, column 4)"),
        ("a: !mine x", "the tag !mine is not supported here"),
        ("!!set {a}", "is not supported here"),
        ("!!binary aGk=", "is not supported here"),
        ("!!int x", "is not what the tag"),
        ("? [a]\n: b", "keys of a mapping must be plain values"),
        ("x: &x [1]\n*x : 2", "keys of a mapping must be plain values"),
        ("<<: 1", "`<<` needs a mapping"),
        ("<<: [1]", "`<<` needs a mapping"),
        ("a\n---\nb", "expected a single document, but found another"),
        ('a: "\\0"', "null characters are not allowed (line 1, column 4)"),
        ("a: \x01", "control characters are not allowed"),
        ("9" * 5000, "the number is too long"),
        ("1e" + "9" * 400 + "x: [", "line"),
        (b"a: 1\nb: \xff\xfe", "not UTF-8 text: byte 0xff in line 2"),
        ("a: 1".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_faults(text: str | bytes, words: str) -> None:
    assert words in fault(text)


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for n in range(levels):
        lines.append(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]")
    return "\n".join(lines)


def test_a_billion_laughs() -> None:
    assert "more than 250000 values, counting what aliases stand for" in fault(laughs(9))
    merged = "a0: &a0 {x: 1, y: 2}\n" + "\n".join(
        f"a{n}: &a{n}\n  k: [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)
    )
    assert "more than 250000 values" in fault(merged)
    assert load(laughs(2).encode())["a2"][0][0] == ["lol"] * 10


def test_depth_counts_through_aliases() -> None:
    steps = "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60))
    assert "nested more than 50 levels deep" in fault(f"a0: &a0 x\n{steps}")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500_000,
        "{a: " * 200_000,
        "- " * 400_000,
        "? " * 400_000,
        "a:\n".join(" " * n for n in range(1000)) + "a:\n",
    ],
    ids=["brackets", "braces", "dashes", "keys", "indentation"],
)
def test_deep_nesting(text: str) -> None:
    assert "nested more than 50 levels deep" in fault(text) or "line" in fault(text)


def test_many_values() -> None:
    assert "more than 10 values" in fault("[1,2,3,4,5,6,7,8,9,10]", Bounds(nodes=10))
    assert load(b"[1,2,3,4,5,6,7,8,9]", Bounds(nodes=10)) == list(range(1, 10))


UNWRITABLE = "\x85\u2028\u2029\ufeff\ufffe\uffff"
# libyaml takes `[?a, :b]` for keys and values, as YAML 1.1 did; nothing in a project file begins like that.
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters=UNWRITABLE)).filter(
    lambda text: not text.startswith(("?", ":"))
)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(DATA, st.booleans())
def test_the_same_as_another_reader_of_yaml_1_2(data: Any, flow: bool) -> None:
    """What ruamel.yaml writes and reads in YAML 1.2 is read alike here."""
    yaml = ruamel.yaml.YAML(typ="safe", pure=True)
    yaml.default_flow_style = flow
    out = io.BytesIO()
    yaml.dump(data, out)
    assert load(out.getvalue()) == yaml.load(out.getvalue()) == data


@given(st.text(alphabet="ab:-[]{},'\"&*!|>? \n#<1.", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        load(text.encode())
    except MalformedYaml as error:
        assert str(error).strip()  # noqa: PT017  either outcome is right


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        load(body)
    except MalformedYaml as error:
        assert str(error).strip()  # noqa: PT017  either outcome is right
