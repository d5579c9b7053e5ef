"""Select the study's patients, one row each: the step that touches patient-level data.

In a real backend this step is a query that runs against the database of health records. Here a CSV file of
442 patients, shipped with the study, stands in for that database; what follows is as in a real study.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "data" / "diabetes.csv"

AGE_BANDS = ((30, "under 30"), (40, "30 to 39"), (50, "40 to 49"), (60, "50 to 59"))
OLDEST_BAND = "60 and over"

BMI_CLASSES = ((25.0, "under 25"), (30.0, "25 to 29.9"))
HIGHEST_BMI_CLASS = "30 and over"


def age_band(age: int) -> str:
    """The band that `age`, in years, falls into."""
    return next((name for limit, name in AGE_BANDS if age < limit), OLDEST_BAND)


def bmi_class(bmi: float) -> str:
    """The class that a body mass index, in kg/m2, falls into."""
    return next((name for limit, name in BMI_CLASSES if bmi < limit), HIGHEST_BMI_CLASS)


def select_patients(source: Path) -> Iterator[dict[str, str]]:
    """Adults with every measurement present, with their age band and class of body mass index."""
    with source.open(newline="") as file:
        for row in csv.DictReader(file):
            if all(row.values()) and int(row["age"]) >= 18:
                yield {
                    **row,
                    "age_band": age_band(int(row["age"])),
                    "bmi_class": bmi_class(float(row["bmi"])),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    output: Path = parser.parse_args().output
    patients = list(select_patients(SOURCE))
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(patients[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(patients)
    print(f"{len(patients)} patients selected")


if __name__ == "__main__":
    main()
