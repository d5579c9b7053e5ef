"""The example study by itself: a legal project file, the known results, and small groups hidden.

Reference numbers for ordinary least squares on these data: R squared 0.5177 and, for columns scaled to unit
length, the coefficients that statistics packages print for the data of Efron et al. (2004).
"""

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from controller.core.project import Action, Project, parse
from controller.sources import yaml_document

STUDY = Path(__file__).parent.parent / "examples" / "diabetes"

UNIT_LENGTH_COEFFICIENTS = {
    "age": -10.0,
    "sex": -239.8,
    "bmi": 519.8,
    "bp": 324.4,
    "tc": -792.2,
    "ldl": 476.7,
    "hdl": 101.0,
    "tch": 177.1,
    "ltg": 751.3,
    "glu": 67.6,
}


def load_project() -> Project:
    """The project file, read and checked by the controller's own rules."""
    return parse(yaml_document.load((STUDY / "project.yaml").read_bytes()))


def in_order(actions: Mapping[str, Action]) -> list[str]:
    """The actions' names, every one after what it needs."""
    ordered: list[str] = []
    while len(ordered) < len(actions):
        ready = [a for a in actions if a not in ordered and set(actions[a].needs) <= set(ordered)]
        assert ready, "a cycle of needs"
        ordered += ready
    return ordered


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every action has run, each in its own copy of the study, given the outputs of its needs."""
    actions = load_project().actions
    base = tmp_path_factory.mktemp("study")
    environment = {"PATH": os.defpath, "HOME": str(base), "MPLCONFIGDIR": str(base / "mpl")}
    made: dict[str, dict[str, bytes]] = {}
    for name in in_order(actions):
        folder = base / name
        for source in STUDY.rglob("*"):
            if source.is_file() and "__pycache__" not in source.parts:
                target = folder / source.relative_to(STUDY)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        for need in actions[name].needs:
            for path, content in made[need].items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
        program, *arguments = actions[name].run.args
        assert (actions[name].run.image, program) == ("python:v2", "python")
        command = [sys.executable, "-W", "error", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        promised = [path for level in actions[name].outputs.values() for path in level.values()]
        made[name] = {path: (folder / path).read_bytes() for path in promised}
    result = base / "result"
    for files in made.values():
        for path, content in files.items():
            (result / path).parent.mkdir(parents=True, exist_ok=True)
            (result / path).write_bytes(content)
    return result


def test_data_are_the_published_ones() -> None:
    rows = read_rows(STUDY / "data" / "diabetes.csv")
    assert [int(row["patient_id"]) for row in rows] == list(range(1, 443))
    assert rows[0] == {
        "patient_id": "1",
        "age": "59",
        "sex": "2",
        "bmi": "32.1",
        "bp": "101.0",
        "tc": "157",
        "ldl": "93.2",
        "hdl": "38.0",
        "tch": "4.0",
        "ltg": "4.8598",
        "glu": "87",
        "progression": "151",
    }
    assert sum(int(row["progression"]) for row in rows) == 67243


def test_project_file_is_legal_and_in_two_levels() -> None:
    project = load_project()
    assert project.version == 4
    assert {level for action in project.actions.values() for level in action.outputs} == {
        "highly_sensitive",
        "moderately_sensitive",
    }
    assert list(project.actions["extract_patients"].outputs) == ["highly_sensitive"]
    assert not any(action.requires_db for action in project.actions.values())
    assert set(project.actions["write_report"].needs) == {"fit_model", "summarise_subgroups"}


def test_moderately_sensitive_tables_would_pass_the_checks(workspace: Path) -> None:
    tables = [path for path in workspace.rglob("*.csv") if path.name != "patients.csv"]
    assert len(tables) == 2
    for table in tables:
        rows = read_rows(table)
        assert "patient_id" not in rows[0]
        assert len(rows) <= 5000


def test_extraction_keeps_every_patient(workspace: Path) -> None:
    patients = read_rows(workspace / "output" / "patients.csv")
    assert len(patients) == 442
    assert {row["bmi_class"] for row in patients} == {"under 25", "25 to 29.9", "30 and over"}
    assert all((int(row["age"]) < 30) == (row["age_band"] == "under 30") for row in patients)


def test_model_gives_the_known_coefficients(workspace: Path) -> None:
    fit = json.loads((workspace / "output" / "model" / "fit.json").read_text())
    assert fit["r_squared"] == 0.5177
    assert fit["residual_sd"] == 54.2
    assert fit["patients_rounded"] == 440
    rows = read_rows(workspace / "output" / "model" / "coefficients.csv")
    scaled = {row["variable"]: float(row["points_per_sd"]) * math.sqrt(442) for row in rows}
    assert scaled == pytest.approx(UNIT_LENGTH_COEFFICIENTS, abs=0.1)
    for row in rows:
        assert float(row["ci95_low"]) < float(row["points_per_sd"]) < float(row["ci95_high"])


def test_small_groups_are_hidden_and_counts_rounded(workspace: Path) -> None:
    patients = read_rows(workspace / "output" / "patients.csv")
    rows = read_rows(workspace / "output" / "subgroups.csv")
    assert len(rows) == 15
    hidden = 0
    for row in rows:
        group = [
            float(patient["progression"])
            for patient in patients
            if (patient["age_band"], patient["bmi_class"]) == (row["age_band"], row["bmi_class"])
        ]
        if len(group) < 8:
            hidden += 1
            assert row["patients_rounded"] == "<8"
            assert not row["mean_progression"] + row["ci95_low"] + row["ci95_high"]
        else:
            assert int(row["patients_rounded"]) % 5 == 0
            assert abs(int(row["patients_rounded"]) - len(group)) <= 2
            assert float(row["mean_progression"]) == pytest.approx(sum(group) / len(group), abs=0.5)
    assert hidden == 1


def test_report_shows_the_figure_and_hides_the_small_group(workspace: Path) -> None:
    folder = workspace / "output" / "report"
    report = (folder / "report.md").read_text()
    assert "(progression.png)" in report
    assert "R squared 0.5177" in report
    assert "| under 30 | 30 and over | <8 | suppressed |" in report
    figure = (folder / "progression.png").read_bytes()
    assert figure.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(figure[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (2000, 840)


def test_scripts_stay_short() -> None:
    for script in (STUDY / "analysis").glob("*.py"):
        assert len(script.read_text().splitlines()) < 120, script.name
