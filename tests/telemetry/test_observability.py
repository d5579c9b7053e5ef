"""The files for operators: metrics are documented one by one, rules and dashboard name none that is not there."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric

from controller.telemetry.metrics import Metrics
from controller.telemetry.metrics_collector import MomentCollector

FOLDER = Path(__file__).parents[2] / "docs" / "observability"
OPERATIONS = FOLDER.parent / "operations.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| (\w+) \|", re.MULTILINE)
NAME = re.compile(r"\b(?:rap|process|python)_[a-z_]+\b")
SUFFIXES = ("_bucket", "_sum", "_count")


def registry() -> CollectorRegistry:
    made = Metrics(backends=["test"], queries={}, version="1").registry
    made.register(MomentCollector())
    return made


def full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels() -> dict[str, tuple[str, ...]]:
    """Name -> labels, of what is counted in the process; the library tells them nowhere else."""
    known = registry()._names_to_collectors
    return {name: collector._labelnames for name, collector in known.items() if hasattr(collector, "_labelnames")}


def documented() -> list[tuple[str, str, str, str]]:
    return ROW.findall((FOLDER / "metrics.md").read_text())


def test_every_metric_is_in_the_table_once_with_its_type() -> None:
    table = [(name, kind) for name, kind, _, _ in documented()]
    assert sorted(table) == sorted((full_name(family), family.type) for family in registry().collect())


def test_the_table_has_the_labels() -> None:
    families = {full_name(family): getattr(family, "_labelnames", None) for family in registry().collect()}
    instruments = labels()
    for name, _, told, _ in documented():
        expected = families[name] if families[name] is not None else instruments[name]
        assert tuple(re.findall(r"`(\w+)`", told)) == tuple(expected), name


def test_no_label_could_be_an_id() -> None:
    used = {label for _, _, told, _ in documented() for label in re.findall(r"`(\w+)`", told)}
    assert used == {
        "backend", "channel", "code", "executor", "generation", "method", "python", "query", "route", "state", "status",
        "type", "version",
    }  # fmt: skip


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    variables = [variable["query"] for variable in dashboard["templating"]["list"]]
    return [rule["expr"] for rule in rules()] + targets + variables


def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    kinds = {name: kind for name, kind, _, _ in documented()}
    histograms = {f"{name}{suffix}" for name, kind in kinds.items() if kind == "histogram" for suffix in SUFFIXES}
    plain = {name for name, kind in kinds.items() if kind != "histogram"}
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert named
    assert named <= plain | histograms


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    dashboard = (FOLDER / "dashboard.json").read_text()
    assert [name for name, *_ in documented() if name.startswith("rap_") and name not in dashboard] == [
        "rap_agents_telling"
    ]


def test_numbers_of_the_database_are_never_summed_over_controllers() -> None:
    of_all = [name for name, _, _, source in documented() if source in ("database", "agents")]
    assert of_all
    guarded = re.compile(r"(\b(max|min)( by \([a-z, ]+\))? ?\(\s*|label_values\()$")
    for expression in expressions():
        for found in re.finditer(rf"\b({'|'.join(of_all)})\b", expression):
            assert guarded.search(expression[: found.start()]), expression


def test_every_alert_says_which_section_to_open() -> None:
    headings = re.findall(r"^#+ (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in anchors, rule["alert"]
        assert rule["annotations"]["summary"]


def test_every_alert_is_tested_firing_and_quiet() -> None:
    cases = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    alerts = {rule["alert"] for rule in rules()}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == alerts
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == alerts


def promtool(*arguments: str, folder: Path = FOLDER) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_understands_the_rules() -> None:
    promtool("check", "rules", "alerts.yaml")


@pytest.mark.slow
def test_promtool_agrees_when_they_fire() -> None:
    promtool("test", "rules", "alerts_test.yaml")


def test_promtool_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    expressions = [each.replace("$__rate_interval", "5m").replace("$backend", ".*") for each in asked]
    recorded = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", "rules.yaml", folder=tmp_path)
