"""The rules for `outputs` (reference section 4.3), by table."""

from typing import Any

import pytest

from controller.core.errors import InvalidProject
from controller.core.outputs import LEVEL4_FILE_TYPES
from controller.core.project import parse


def project(outputs: object, run: str = "python:v2 x", version: object = 4) -> dict[str, Any]:
    return {"version": version, "actions": {"a": {"run": run, "outputs": outputs}}}


def fault(data: object) -> str:
    with pytest.raises(InvalidProject) as caught:
        parse(data)
    return str(caught.value)


def high(*globs: object) -> dict[str, Any]:
    return {"highly_sensitive": {f"o{n}": glob for n, glob in enumerate(globs)}}


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (None, "`outputs` must be a mapping"),
        ([], "`outputs` must be a mapping"),
        ({}, "must have at least one of: highly_sensitive, moderately_sensitive, minimally_sensitive"),
        ({"secret": {}}, "Unexpected parameters (secret) in `outputs`"),
        ({"highly_sensitive": None}, "`highly_sensitive` must be a mapping"),
        ({"highly_sensitive": ["x.csv"]}, "`highly_sensitive` must be a mapping"),
        (high(None), "Output `o0` must be a file name or pattern, not empty"),
        (high(1), "Output `o0` must be a file name or pattern, not 1"),
        ({"highly_sensitive": {1: "a.csv", "1": "b.csv"}}, "names the output `1` twice"),
    ],
)
def test_shape(outputs: object, words: str) -> None:
    assert words in fault(project(outputs))


@pytest.mark.parametrize("level", ["highly_sensitive", "moderately_sensitive", "minimally_sensitive"])
def test_an_empty_level_passes(level: str) -> None:
    assert parse(project({level: {}})).actions["a"].outputs == {level: {}}


@pytest.mark.parametrize(
    ("glob", "words"),
    [
        ("output\\x.csv", "back slash"),
        ("output/**/x.csv", "'**'"),
        ("output/?.csv", "'?'"),
        ("output/[ab].csv", "'['"),
        ("output/*", "extension"),
        ("output/x", "extension"),
        ("output/x.*", "extension"),
        ("output/x.c*", "extension"),
        ("", "extension"),
        (".", "extension"),
        ("output/.csv", "extension"),
        ("/output/x.csv", "relative"),
        ("C:/x.csv", "relative"),
        ("//server/share/x.csv", "relative"),
        ("./x.csv", "shortest form, x.csv"),
        ("output//x.csv", "shortest form, output/x.csv"),
        ("output/../x.csv", "shortest form, x.csv"),
        ("output/x.csv/", "shortest form, output/x.csv"),
        ("../x.csv", "inside the project's folder"),
        ("../../etc/x.csv", "inside the project's folder"),
        ("metadata/x.csv", "metadata"),
    ],
)
def test_globs_that_fail(glob: str, words: str) -> None:
    text = fault(project(high(glob)))
    assert f"Output path {glob} is not permitted" in text
    assert words in text


@pytest.mark.parametrize(
    "glob",
    [
        "x.csv",
        "output/*.csv",
        "*/x.feather",
        "output/a*b.csv.gz",
        "meta/data.csv",
        "metadata.csv",
        "a b/ä.csv",
        "C:x.csv",
    ],
)
def test_globs_that_pass(glob: str) -> None:
    parse(project(high(glob)))


@pytest.mark.parametrize("suffix", LEVEL4_FILE_TYPES)
def test_level_four_suffixes(suffix: str) -> None:
    parse(project({"moderately_sensitive": {"x": f"output/*{suffix}"}}))
    assert "not a file type" in fault(project({"moderately_sensitive": {"x": f"output/*{suffix.upper()}"}}))


@pytest.mark.parametrize("glob", ["x.csv.gz", "x.CSV", "x.feather", "x.docx"])
def test_only_moderately_sensitive_looks_at_the_suffix(glob: str) -> None:
    assert "not a file type" in fault(project({"moderately_sensitive": {"x": glob}}))
    parse(project({"minimally_sensitive": {"x": glob}}))
    parse(project({"highly_sensitive": {"x": glob}}))


def test_paths_are_unique_from_version_two() -> None:
    both = {"highly_sensitive": {"x": "x.csv"}, "moderately_sensitive": {"y": "x.csv"}}
    parse(project(both, version=1))
    parse(project(both, version="nan"))
    for version in (2, 5):
        assert "Output path x.csv is not unique" in fault(project(both, version=version))


def dataset(*args: str, image: str = "ehrql:v1") -> str:
    return " ".join([image, "generate-dataset", "d.py", *args])


@pytest.mark.parametrize("image", ["ehrql:v1", "databuilder:v0"])
@pytest.mark.parametrize(
    ("args", "globs"),
    [
        (["--output", "out/d.csv"], ["out/d.csv"]),
        (["--output=out/d.csv"], ["out/d.csv"]),
        (["--output", "x.csv", "--output", "out/d.csv"], ["out/d.csv"]),
        (["--output", "out:csv"], ["out/*.csv"]),
        (["--output", "out/:csv"], ["out/*.csv"]),
        (["--output", "out/:csv.gz"], ["out/a.csv.gz", "out/b.csv.gz"]),
    ],
)
def test_datasets_that_pass(image: str, args: list[str], globs: list[str]) -> None:
    parse(project(high(*globs), dataset(*args, image=image)))


@pytest.mark.parametrize(
    ("args", "globs", "words"),
    [
        ([], ["d.csv"], "must say `--output`"),
        (["--output"], ["d.csv"], "must say `--output`"),
        (["--", "--output", "d.csv"], ["d.csv"], "must say `--output`"),
        (["--output", "e.csv"], ["d.csv"], "`--output e.csv` of ehrql generate-dataset does not match"),
        (["--output", "out:csv"], ["out/sub/a.csv"], "does not match"),
        (["--output", "out:csv"], ["other/*.csv"], "does not match"),
        (["--output", "out:csv"], ["out/*.arrow"], "does not match"),
        (["--output", "out:c.v"], ["out/a.csv"], "does not match"),
    ],
)
def test_datasets_that_fail(args: list[str], globs: list[str], words: str) -> None:
    assert words in fault(project(high(*globs), dataset(*args)))


def test_a_dataset_is_highly_sensitive() -> None:
    run = dataset("--output", "d.csv")
    outputs = {"moderately_sensitive": {"x": "d.csv"}}
    assert "must be highly_sensitive, but d.csv is moderately_sensitive" in fault(project(outputs, run))


def test_measures_are_not_restricted() -> None:
    run = "ehrql:v1 generate-measures m.py"
    parse(project({"moderately_sensitive": {"x": "m.csv"}, "highly_sensitive": {"y": "n.csv"}}, run))


def test_a_cohort_has_one_level_and_one_folder() -> None:
    run = "cohortextractor:latest generate_cohort"
    parse(project(high("out/a.csv", "out/b.csv"), run, 2))
    two = {"highly_sensitive": {"x": "a.csv"}, "moderately_sensitive": {"y": "b.csv"}}
    assert "must have one privacy level" in fault(project(two, run, 2))
    assert "must be in one folder" in fault(project(high("out/a.csv", "b.csv"), run, 2))
    parse(project(high("out/a.csv", "b.csv"), f"{run} --output-dir=out", 2))
    parse(project(high("out/a.csv", "b.csv"), f"{run} --output-dir out", 2))
