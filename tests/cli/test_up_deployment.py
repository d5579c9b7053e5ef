"""The files of a deployment say what the programs need: compose.yaml, Dockerfile, Makefile, locked requirements."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from agent import settings as agent
from controller import settings as controller
from tests.cli.test_settings_docs import asked

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_every_service_of_compose_can_be_built_and_started_in_order():
    services = COMPOSE["services"]
    assert set(services) == {"postgres", "migrate", "controller", "agent"}
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for service in services.values():
        if "build" in service:
            assert service["build"]["target"] in stages
        for needed in service.get("depends_on", {}):
            assert needed in services
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
        assert set(service["networks"]) <= set(COMPOSE["networks"])


def test_only_settings_that_exist_are_set():
    known = asked(controller) | asked(agent) | {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
    for service in COMPOSE["services"].values():
        names = {re.sub(r"^TEST_", "<BACKEND>_", name) for name in service.get("environment", {})}
        assert names <= known


def test_the_agent_gets_no_secret_of_the_controller():
    """They share one .env; what is blank here overrides it."""
    blank = {name for name, value in COMPOSE["services"]["agent"]["environment"].items() if value == ""}
    assert blank >= {"RAP_DATABASE_URL", "TEST_CLIENT_TOKENS", "TEST_OPERATOR_TOKENS", "TEST_JOB_SERVER_TOKEN"}
    assert "POSTGRES_PASSWORD" in blank


def test_the_database_and_the_agent_do_not_meet():
    services = COMPOSE["services"]
    assert not set(services["postgres"]["networks"]) & set(services["agent"]["networks"])
    assert COMPOSE["networks"]["database"]["internal"] is True


def test_programs_in_images_are_not_root():
    users = re.findall(r"^USER (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert users[-1] == "rap"


@pytest.mark.parametrize("name", ["run", "dev"])
def test_locked_requirements_have_hashes_and_no_place_of_their_own(name: str):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    pins = re.findall(r"^[a-z0-9][a-z0-9._-]*==\S+.*$", text, re.MULTILINE)
    assert pins
    for pin in pins:
        assert pin.endswith("\\"), f"{pin} has no hash"
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_every_direct_dependency_is_locked_and_explained():
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = set(re.findall(r'^    "([a-z0-9.-]+)[><=]', project, re.MULTILINE))
    dependencies |= set(re.findall(r'\["?([a-z0-9-]+)>=', project)) | set(re.findall(r', "([a-z0-9-]+)>=', project))
    dependencies -= {"setuptools"}
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE))
    assert {name.replace(".", "-") for name in dependencies} <= locked
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    assert [name for name in sorted(dependencies) if f"`{name}`" not in explained] == []


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    for target in ("devenv", "demo", "up", "check", "test", "test-fast", "fix", "clean"):
        assert f"make {target} " in done.stdout
