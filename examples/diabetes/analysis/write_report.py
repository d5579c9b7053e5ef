"""The figure and the report, from the two aggregate tables: this step never sees a patient."""

import argparse
import csv
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LABELS = {
    "age": "Age",
    "sex": "Sex (code 2 v 1)",
    "bmi": "Body mass index",
    "bp": "Blood pressure",
    "tc": "Total cholesterol",
    "ldl": "LDL cholesterol",
    "hdl": "HDL cholesterol",
    "tch": "Total / HDL cholesterol",
    "ltg": "Triglycerides (log)",
    "glu": "Blood sugar",
}
CLASS_STYLE = {
    "under 25": ("#0072b2", "o", -0.16),
    "25 to 29.9": ("#7a5c00", "s", 0.0),
    "30 and over": ("#c1440e", "D", 0.16),
}
"""Colour, marker and sideways shift of a class of body mass index: told apart without colour too."""
INK, FAINT = "#222222", "#808080"

Rows = list[dict[str, str]]


def read_rows(path: Path) -> Rows:
    """The lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw_coefficients(ax: Axes, rows: Rows) -> None:
    """One line per variable, largest effect on top; intervals that include zero are faint."""
    ordered = sorted(rows, key=lambda row: abs(float(row["points_per_sd"])))
    for place, row in enumerate(ordered):
        low, high = float(row["ci95_low"]), float(row["ci95_high"])
        colour = FAINT if low <= 0 <= high else INK
        ax.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        ax.plot(float(row["points_per_sd"]), place, "o", color=colour, markersize=5)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(ordered)), [LABELS[row["variable"]] for row in ordered])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("Change in progression per standard deviation, 95% CI")
    ax.set_title("a  What goes with progression", loc="left")
    ax.grid(axis="x", color="#e6e6e6", linewidth=0.8)


def draw_subgroups(ax: Axes, rows: Rows) -> None:
    """Mean progression by age band, one line per class of body mass index; a suppressed group is a gap."""
    ages = list(dict.fromkeys(row["age_band"] for row in rows))
    for name, (colour, marker, shift) in CLASS_STYLE.items():
        shown = [row for row in rows if row["bmi_class"] == name and row["mean_progression"]]
        x = [ages.index(row["age_band"]) + shift for row in shown]
        y = [float(row["mean_progression"]) for row in shown]
        below = [mid - float(row["ci95_low"]) for mid, row in zip(y, shown, strict=True)]
        above = [float(row["ci95_high"]) - mid for mid, row in zip(y, shown, strict=True)]
        ax.errorbar(x, y, yerr=[below, above], color=colour, marker=marker, markersize=5, linewidth=1.2)
        ax.text(len(ages) - 0.68, y[-1], f"BMI {name}", color=colour, va="center")
    ax.set_xticks(range(len(ages)), [age.replace(" and over", "+") for age in ages])
    ax.set_xlim(-0.4, len(ages) + 0.4)
    ax.set_ylim(50, 275)
    ax.set_yticks(range(50, 300, 50))
    ax.set_xlabel("Age in years", x=0.42)
    ax.set_ylabel("Mean progression after one year, 95% CI")
    if any(not row["mean_progression"] for row in rows):
        ax.text(-0.3, 56, "Groups of fewer than 8 are not drawn", color=FAINT)
    ax.set_title("b  Progression by age and body mass index", loc="left")
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)


def draw_figure(coefficients: Rows, subgroups: Rows, path: Path) -> None:
    """Both panels side by side, as PNG without a time stamp (the same tables give the same file)."""
    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.titleweight": "bold", "axes.titlesize": 10})
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_coefficients(left, coefficients)
        draw_subgroups(right, subgroups)
        figure.savefig(path, dpi=200, metadata={"Software": None})


def write_page(fit: dict[str, str | float], subgroups: Rows, figure: Path, path: Path) -> None:
    """The report as Markdown, with the figure and both tables' main numbers."""
    lines = ["| age | body mass index | patients | mean progression (95% CI) |", "|---|---|---|---|"]
    for row in subgroups:
        numbers = f"{row['mean_progression']} ({row['ci95_low']} to {row['ci95_high']})"
        shown = numbers if row["mean_progression"] else "suppressed"
        lines.append(f"| {row['age_band']} | {row['bmi_class']} | {row['patients_rounded']} | {shown} |")
    template = (Path(__file__).parent / "report.md.in").read_text()
    path.write_text(template.format(figure=figure.name, table="\n".join(lines), **fit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder from fit_model.py")
    parser.add_argument("--subgroups", type=Path, required=True, help="CSV file from summarise_subgroups.py")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure = arguments.output / "progression.png"
    subgroups = read_rows(arguments.subgroups)
    draw_figure(read_rows(arguments.model / "coefficients.csv"), subgroups, figure)
    fit = json.loads((arguments.model / "fit.json").read_text())
    write_page(fit, subgroups, figure, arguments.output / "report.md")


if __name__ == "__main__":
    main()
