"""A linear model of disease progression on all ten baseline variables, by ordinary least squares.

Every variable is standardised first, so that a coefficient reads: points of progression for one standard
deviation more of the variable, all others equal. Coefficients are about all patients together and disclose
nobody; the number of patients is rounded.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from disclosure import rounded_count
from numpy.typing import NDArray

VARIABLES = ("age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu")
OUTCOME = "progression"
Z_95 = 1.96
"""Half the width of a 95 % confidence interval, in standard errors (the sample is large)."""

Floats = NDArray[np.floating[Any]]


class Fit(NamedTuple):
    """A fitted model; `coefficients[0]` and `errors[0]` belong to the intercept."""

    coefficients: Floats
    errors: Floats
    r_squared: float
    residual_sd: float


def read_columns(path: Path) -> tuple[Floats, Floats]:
    """The variables (one column each) and the outcome."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    x = np.array([[float(row[name]) for name in VARIABLES] for row in rows])
    return x, np.array([float(row[OUTCOME]) for row in rows])


def standardise(x: Floats) -> Floats:
    """Every column with mean 0 and standard deviation 1."""
    standardised: Floats = (x - x.mean(axis=0)) / x.std(axis=0)
    return standardised


def fit_least_squares(x: Floats, y: Floats) -> Fit:
    """Ordinary least squares of `y` on `x` and an intercept, with classical standard errors."""
    design = np.column_stack([np.ones(len(y)), x])
    coefficients, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    if rank < design.shape[1]:
        raise SystemExit("the variables are linearly dependent: the model has no unique solution")
    residuals = y - design @ coefficients
    variance = float(residuals @ residuals) / (len(y) - design.shape[1])
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    deviations = y - y.mean()
    r_squared = 1 - float(residuals @ residuals) / float(deviations @ deviations)
    return Fit(coefficients, errors, r_squared, variance**0.5)


def write_fit(fit: Fit, patients: int, folder: Path) -> None:
    """`coefficients.csv`, one line per variable, and `fit.json`, the model as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "coefficients.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variable", "points_per_sd", "standard_error", "ci95_low", "ci95_high"])
        for name, value, error in zip(VARIABLES, fit.coefficients[1:], fit.errors[1:], strict=True):
            numbers = (value, error, value - Z_95 * error, value + Z_95 * error)
            writer.writerow([name, *(f"{number:.3f}" for number in numbers)])
    summary = {
        "model": f"ordinary least squares of {OUTCOME} on {len(VARIABLES)} standardised variables",
        "patients_rounded": rounded_count(patients),
        "r_squared": round(fit.r_squared, 4),
        "residual_sd": round(fit.residual_sd, 1),
        "mean_progression": round(float(fit.coefficients[0]), 1),
    }
    (folder / "fit.json").write_text(json.dumps(summary, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=Path, required=True, help="CSV file from extract.py")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    x, y = read_columns(arguments.patients)
    fit = fit_least_squares(standardise(x), y)
    write_fit(fit, len(y), arguments.output)
    print(f"R squared {fit.r_squared:.4f}")


if __name__ == "__main__":
    main()
