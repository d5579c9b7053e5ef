"""Every setting is documented, and everything documented is a setting: code, table and sample are paired."""

import re
from pathlib import Path

import attrs
import pytest

from agent import settings as agent
from common.environ import Environ
from controller import settings as controller

ROOT = Path(__file__).parents[2]
TABLE_ROW = re.compile(r"^\| `([A-Z0-9_<>]+)` \|", re.MULTILINE)
SAMPLE_LINE = re.compile(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)
OF_COMPOSE = {"POSTGRES_PASSWORD"}


def asked(module) -> set[str]:
    environ = Environ({"BACKENDS": "test"})
    module.read(environ)
    return {name.replace("TEST_", "<BACKEND>_") if name.startswith("TEST_") else name for name in environ.asked}


def documented(heading: str) -> list[str]:
    text = (ROOT / "docs" / "configuration.md").read_text()
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    return TABLE_ROW.findall(section)


@pytest.mark.parametrize(("module", "heading"), [(controller, "Controller"), (agent, "Agent")])
def test_the_table_has_every_setting_once_and_no_other(module, heading: str):
    rows = documented(heading)
    assert sorted(rows) == sorted(set(rows))
    assert set(rows) == asked(module)


def test_the_sample_has_every_setting_once_and_no_other():
    names = [name for name, _ in SAMPLE_LINE.findall((ROOT / "dotenv-sample").read_text())]
    assert sorted(names) == sorted(set(names))
    settings = {name.replace("<BACKEND>", "TEST") for name in asked(controller) | asked(agent)}
    assert set(names) == settings | OF_COMPOSE


@pytest.mark.parametrize("module", [controller, agent])
def test_what_is_commented_out_in_the_sample_is_the_default(module):
    text = (ROOT / "dotenv-sample").read_text()
    everything = dict(SAMPLE_LINE.findall(text))
    only_set = dict(SAMPLE_LINE.findall(re.sub(r"^#.*$", "", text, flags=re.MULTILINE)))
    assert module.from_environ(everything) == module.from_environ(only_set)
    assert attrs.asdict(module.from_environ(only_set))
