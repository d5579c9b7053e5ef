"""The reader of environments: every fault at once, by name, and never a secret's value."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.environ import ConfigurationError, Environ


def faults(environ: Environ) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        environ.finish()
    return caught.value.faults


def test_all_faults_are_told_at_once_and_each_begins_with_its_name():
    environ = Environ({"A": "x", "B": "maybe", "C": "-1", "D": "red", "F": "nan"})
    environ.integer("A", 1)
    environ.flag("B")
    environ.number("C", 1.0)
    environ.choice("D", "blue", ("blue", "green"))
    environ.required("E", "something")
    environ.number("F", 1.0)
    told = faults(environ)
    assert [sentence.split()[0] for sentence in told] == ["A", "B", "C", "D", "E", "F"]
    assert told[0] == "A is 'x', which is not a whole number"
    assert told[3] == "D is 'red', which is not one of blue, green"
    assert told[4] == "E must be set to something"


def test_what_is_asked_twice_is_faulty_once():
    environ = Environ({"A": "x"})
    environ.integer("A", 1)
    environ.integer("A", 1)
    assert len(faults(environ)) == 1


def test_an_empty_value_counts_as_missing():
    environ = Environ({"A": "", "B": "", "C": ""})
    assert environ.given("A") is None
    assert environ.integer("B", 7) == 7
    assert environ.flag("C", default=True) is True
    environ.finish()


@pytest.mark.parametrize("raw", ["1", "true", "TRUE", "yes", "on", " On "])
def test_yes(raw: str):
    assert Environ({"A": raw}).flag("A") is True


@pytest.mark.parametrize("raw", ["0", "false", "No", "off"])
def test_no(raw: str):
    assert Environ({"A": raw}).flag("A", default=True) is False


@pytest.mark.parametrize(("raw", "words"), [("a, b ,,a", ("a", "b")), (",", ()), ("a", ("a",))])
def test_words(raw: str, words: tuple[str, ...]):
    assert Environ({"A": raw}).words("A") == words


def test_bounds():
    environ = Environ({"A": "5", "B": "11", "C": "0.5"})
    assert environ.integer("A", 1, least=5, most=5) == 5
    environ.integer("B", 1, most=10)
    environ.number("C", 1, least=1)
    assert faults(environ) == ("B is '11', which is more than 10", "C is '0.5', which is less than 1")


def test_folders_are_absolute_and_know_the_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/somewhere")
    environ = Environ({"A": "~/x", "B": "y", "C": "a\0b"})
    assert environ.folder("A", Path("z")) == Path("/somewhere/x")
    assert environ.folder("B", Path("z")) == Path.cwd() / "y"
    assert environ.folder("C", Path("z")) == Path.cwd() / "z"
    assert faults(environ) == ("C is 'a\\x00b', which is not a path",)


def test_asked_names_are_remembered_in_order():
    environ = Environ({})
    environ.text("B")
    environ.text("A")
    environ.text("B")
    assert list(environ.asked) == ["B", "A"]


@given(st.text(min_size=8))
def test_the_value_of_a_secret_is_never_told(secret: str):
    def refuse(_: str) -> str:
        raise ValueError("cannot be used")

    environ = Environ({"A": secret})
    environ.converted("A", "", refuse, secret=True)
    assert faults(environ) == ("A has a value that cannot be used",)


@given(st.text(), st.sampled_from(["integer", "number", "flag"]))
def test_any_text_is_a_value_or_a_fault(raw: str, kind: str):
    environ = Environ({"A": raw})
    value = {
        "integer": lambda: environ.integer("A", 1),
        "number": lambda: environ.number("A", 1.0),
        "flag": lambda: environ.flag("A"),
    }[kind]()
    assert isinstance(value, int | float)
    assert len(told(environ)) <= 1


def told(environ: Environ) -> tuple[str, ...]:
    """The faults, none included."""
    try:
        environ.finish()
    except ConfigurationError as error:
        return error.faults
    return ()
