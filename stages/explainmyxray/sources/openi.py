"""Indiana University's films with the radiologists' reports (Open-i), as Kaggle has them.

A report is its findings and impression, kept word for word: `XXXX`, which stands where de-identification took
words out, stays a word, as in R2Gen's copy of the collection, and the labeler does not read it. There is no
patient id; a study stands for a patient, so that its views stay together (docs/data.md says what that
misses). Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and
retrieval", JAMIA 23(2), 2016.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from explainmyxray.sources.archive_files import IDENTIFIER, list_images, read_member_table, read_yaml
from explainmyxray.sources.containers import Container, ContainerFilm
from explainmyxray.sources.kaggle_download import get_data_set, page
from explainmyxray.tables import join_labels

if TYPE_CHECKING:
    from explainmyxray import settings

DATA_SET = "chest-xrays-indiana-university"
REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
NO_INDEX = "No Indexing"  # the MeSH column of a report that nobody indexed


def films(data: "settings.Data", seed: int) -> tuple[list[ContainerFilm], dict]:
    """The films, downloaded where they are missing, and an audit of all else. Raises UserError."""
    return films_in(get_data_set(DATA_SET, Path(data.archives)), data.openi.views)


def films_in(container: Container, views: str) -> tuple[list[ContainerFilm], dict]:
    """The films of an archive that have a report, the frontal ones or `all`, and an audit of all else.

    Raises UserError where one of the two tables is missing, unreadable or lacks a column.
    """
    images, audit = list_images(container, [REPORTS, PROJECTIONS])
    studies = read_studies(container)
    projections = read_projections(container)
    audit |= {
        "images_without_row": 0,
        "lateral_dropped": 0,
        "without_report_dropped": 0,
        "empty_report_dropped": 0,
        "studies": len(studies),
        "rows": len(projections),
        "rows_without_image": len(
            projections.keys() - {PurePosixPath(member.name).name for member in images}
        ),
    }
    found = []
    for member in images:
        name = PurePosixPath(member.name)
        uid, view = projections.get(name.name, ("", ""))
        if not uid:
            audit["images_without_row"] += 1
        elif views == "frontal" and view != "frontal":
            audit["lateral_dropped"] += 1
        elif uid not in studies:
            audit["without_report_dropped"] += 1
        elif not studies[uid]["report"]:
            audit["empty_report_dropped"] += 1
        else:
            study = {"source": "openi", "patient": f"openi-{uid}", "view": view, **studies[uid]}
            stem = name.stem.removesuffix(".dcm")
            found.append(ContainerFilm(f"openi/{stem}", study, container, member))
    return found, audit


def read_studies(container: Container) -> dict[str, dict[str, str]]:
    """By uid the `report` (blank where it has neither findings nor impression) and `indexed_labels`."""
    columns = ("uid", "MeSH", "findings", "impression")
    table = read_member_table(container, REPORTS, columns, page(DATA_SET))
    studies = {}
    for row in table.to_dict("records"):
        if IDENTIFIER.fullmatch(row["uid"]):
            studies[row["uid"]] = {
                "report": join_sections(row["findings"], row["impression"]),
                "indexed_labels": findings_of_mesh(row["MeSH"].split(";")),
            }
    return studies


def read_projections(container: Container) -> dict[str, tuple[str, str]]:
    """By file name the uid and the view, `frontal` or `lateral`."""
    table = read_member_table(container, PROJECTIONS, ("uid", "filename", "projection"), page(DATA_SET))
    known = {"Frontal": "frontal", "Lateral": "lateral"}
    rows = table.itertuples(index=False, name=None)
    return {filename: (uid, known.get(projection, "")) for uid, filename, projection in rows}


def join_sections(findings: str, impression: str) -> str:
    """`Findings: ... Impression: ...` on one line; a section that is blank is left out."""
    sections = {"Findings": " ".join(findings.split()), "Impression": " ".join(impression.split())}
    return " ".join(f"{name}: {text}" for name, text in sections.items() if text)


def findings_of_mesh(headings: Iterable[str]) -> str:
    """The labels that a report is indexed by, `No Finding` where by others alone; blank where by none.

    A heading is `Heading/qualifier/qualifier`, as in `Pleural Effusion/right/small`.
    """
    indexed = [[part.strip().casefold() for part in heading.split("/")] for heading in headings]
    indexed = [parts for parts in indexed if parts[0]]
    if not indexed or indexed == [[NO_INDEX.casefold()]]:
        return ""
    findings = set()
    for finding, heading, qualifiers in _read_mesh():
        for parts in indexed:
            if parts[0] == heading and qualifiers <= set(parts[1:]):
                findings.add(finding)
    return join_labels(findings)


@cache
def _read_mesh() -> list[tuple[str, str, set[str]]]:
    """Each finding with a heading that stands for it, and the qualifiers that the heading needs."""
    entries = []
    for finding, headings in read_yaml("openi_mesh.yaml").items():
        for entry in headings:
            heading, *qualifiers = entry.casefold().split("/")
            entries.append((finding, heading, set(qualifiers)))
    return entries
