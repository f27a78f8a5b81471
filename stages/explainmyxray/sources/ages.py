"""Ages as DICOM and NIH's label file write them."""

import re

AGE = re.compile(r"(\d{1,4})([YMWD])", re.ASCII)
YEARS = {"Y": 1, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # the units of a DICOM age string
OLDEST = 120  # years; NIH's file has a 411Y


def age_years(text: str) -> str:
    """`060Y` as `60`, in completed years: `013M` is 1, `001D` is 0. Blank where impossible or unknown."""
    match = AGE.fullmatch(text.strip().upper())
    if not match:
        return ""
    years = int(int(match[1]) * YEARS[match[2]])
    return str(years) if years <= OLDEST else ""
