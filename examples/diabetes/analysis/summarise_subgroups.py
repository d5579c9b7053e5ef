"""Mean disease progression by age band and class of body mass index.

Groups of fewer than eight patients are suppressed and all counts are rounded (`disclosure.py`). No row or
column totals are written, since with them a suppressed group could be worked out.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from disclosure import SMALLEST_SHOWN, may_be_shown, rounded_count
from extract import AGE_BANDS, BMI_CLASSES, HIGHEST_BMI_CLASS, OLDEST_BAND

COLUMNS = ("age_band", "bmi_class", "patients_rounded", "mean_progression", "ci95_low", "ci95_high")
Z_95 = 1.96

Group = tuple[str, str]


def read_groups(path: Path) -> dict[Group, list[float]]:
    """Progression of the patients in every (age band, class of body mass index)."""
    groups: defaultdict[Group, list[float]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            groups[row["age_band"], row["bmi_class"]].append(float(row["progression"]))
    return groups


def summarise(values: list[float]) -> list[str]:
    """What may be shown of one group: rounded count, mean, 95 % interval; blanks if it is too small."""
    if not may_be_shown(len(values)):
        return [f"<{SMALLEST_SHOWN}", "", "", ""]
    centre = mean(values)
    margin = Z_95 * stdev(values) / len(values) ** 0.5
    shown = (centre, centre - margin, centre + margin)
    return [str(rounded_count(len(values))), *(f"{value:.0f}" for value in shown)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=Path, required=True, help="CSV file from extract.py")
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    arguments = parser.parse_args()
    groups = read_groups(arguments.patients)
    ages = [*(name for _, name in AGE_BANDS), OLDEST_BAND]
    classes = [*(name for _, name in BMI_CLASSES), HIGHEST_BMI_CLASS]
    rows = [[age, bmi, *summarise(groups.get((age, bmi), []))] for age in ages for bmi in classes]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    hidden = sum(row[2].startswith("<") for row in rows)
    print(f"{len(rows)} groups, {hidden} suppressed")


if __name__ == "__main__":
    main()
