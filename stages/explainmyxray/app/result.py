"""What the page shows of an upload.

Nothing heavy is imported here, so that the page listens before the model is loaded.
"""

from dataclasses import dataclass

from explainmyxray.explaining.explanation import NOTICE


@dataclass(frozen=True)
class Section:
    """A part of the report; `title` is blank for text before any title."""

    title: str
    text: str


@dataclass(frozen=True)
class Finding:
    """`percent` of the sampled reports name it; None where none were sampled.

    `worth` says how many test findings with such a share are there; blank where it was not measured.
    """

    name: str
    in_report: bool
    percent: int | None
    worth: str = ""


@dataclass(frozen=True)
class Overlay:
    """Where the model looked for a finding, on a grid of `rows` x `columns` patches.

    `factor` is how many times less likely the `sentences` are with the patch that counts most hidden, in
    words; that patch is in `row` and `column`. All three mean nothing where no patch counts.
    """

    finding: str
    sentences: tuple[str, ...]
    heatmap: str  # a PNG of one pixel a patch, as data URI
    rows: int
    columns: int
    any_patch_counts: bool
    row: int
    column: int
    factor: str


@dataclass(frozen=True)
class Result:
    """All that the page shows of an upload: `problem` alone where it can't be explained."""

    problem: str = ""
    warning: str = ""  # why not to trust the report; there are no overlays then
    remarks: tuple[str, ...] = ()  # what is wrong with the report as a text
    film: str = ""  # a PNG, as data URI
    report: tuple[Section, ...] = ()
    findings: tuple[Finding, ...] = ()
    sampled: bool = False  # whether findings have a percentage
    calibration: str = ""  # on what it was measured what the percentages are worth
    overlays: tuple[Overlay, ...] = ()
    notice: str = NOTICE
