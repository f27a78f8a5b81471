"""All five stages on real films with real reports: a table of one's own and Open-i's layout, in one run."""

import csv
import itertools
import json
import os
import re
import shutil
import sys
import types
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest

import fetch
import openi_reports
from conftest import REAL, ROOT, SMALL, run_stage, write_params
from explainmyxray.errors import UserError
from explainmyxray.scoring.evaluation import COLUMNS
from explainmyxray.scoring.malformed import PIECE
from explainmyxray.sources.openi import findings_of_mesh, join_sections
from explainmyxray.tables import read_table
from kaggle_archives import write_zip
from test_openi import ARCHIVE, study_members

NUM_FILMS = {"table": 300, "openi": 60}
NO_FLIP = {"augment": {"horizontal_flip": 0.0}}
RUN = {"train": {"max_steps": 6}, "evaluate": {"samples": 4, "sampled_images": 8}}


@dataclass(frozen=True)
class Case:
    """A real film with a real report."""

    film: Path
    report: openi_reports.OpeniReport

    @property
    def text(self) -> str:
        return join_sections(self.report.findings, self.report.impression)


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    """By source; a normal film has a normal report."""
    if not REAL.exists():
        pytest.skip("the real films are not beside this checkout")
    try:
        reports = openi_reports.load(openi_reports.download())
    except OSError as error:
        pytest.skip(f"Open-i's reports cannot be fetched: {error}")
    reports = [report for report in reports if report.findings and report.impression]
    found = {source: [] for source in NUM_FILMS}
    for folder, normal in (("NORMAL", True), ("PNEUMONIA", False)):
        films = sorted((REAL / "chest_xray_pneumonia/train" / folder).iterdir())
        indexed = [(each, findings_of_mesh(each.mesh)) for each in reports]
        fitting = [each for each, labels in indexed if labels and (labels == "No Finding") == normal]
        pairs = zip(films, fitting)  # there are more films than are taken, and more reports
        for source, count in NUM_FILMS.items():
            found[source] += [Case(*pair) for pair in itertools.islice(pairs, count // 2)]
    return found


def prepare_table(folder: Path, cases: list[Case]) -> None:
    """The films and a CSV; a film's name says whose it is."""
    (folder / "my").mkdir()
    with (folder / "my/films.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "report"])
        for case in cases:
            shutil.copy(case.film, folder / "my")
            patient = re.match(r"person\d+_[a-z]+|.*IM-\d+", case.film.name)[0]
            writer.writerow([case.film.name, patient, case.text])


def prepare_openi(folder: Path, cases: list[Case]) -> None:
    """An archive laid out as Kaggle's."""
    studies = []
    for case in cases:
        report = case.report
        study = {"uid": report.uid, "MeSH": ";".join(report.mesh)}
        studies.append(study | {"findings": report.findings, "impression": report.impression})
    lateral = (ROOT.parent / "shared/real/nih_sample/images").glob("*.png")
    other = next(lateral).read_bytes()
    members = study_members(studies, lambda n: cases[n].film.read_bytes() if n < 5000 else other)
    write_zip(folder / "data/archives" / ARCHIVE, members)


@pytest.fixture(scope="module")
def finished_run(cases, tmp_path_factory) -> Path:
    """A folder where all five stages have run."""
    folder = tmp_path_factory.mktemp("real")
    prepare_table(folder, cases["table"])
    prepare_openi(folder, cases["openi"])
    data = {"data": {"source": list(NUM_FILMS), "table": "my/films.csv"}}
    here = os.getcwd()
    os.chdir(folder)
    try:
        write_params(folder, SMALL, RUN, data)
        fetch.main()  # imported by its name, for its processes import it by that
        for stage in ("synthesize_reports", "split"):
            run_stage(stage)
        with pytest.raises(UserError, match=r"training reports name a side \(“….*horizontal_flip=0.0"):
            run_stage("train_qlora")
        assert not Path("models/adapter").exists()
        write_params(folder, SMALL, RUN, data, NO_FLIP)
        run_stage("train_qlora")
        run_stage("evaluate")
    finally:
        os.chdir(here)
    return folder


def read_metrics(folder: Path, name: str) -> dict:
    return json.loads((folder / f"metrics/{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.network
def test_real_films_with_real_reports_through_all_five_stages(finished_run, cases):
    folder = finished_run
    for source, count in NUM_FILMS.items():
        audit = read_metrics(folder, "fetch")[source]
        assert audit["images_kept"] + audit["pixel_copies_dropped"] == count
    split = read_metrics(folder, "split")
    assert not any(split["shared"].values())
    assert split["leaks_that_cannot_be_seen"] == {"images_without_patient": 0}
    check = split["labels_against_index"]
    assert check["images"] == read_metrics(folder, "fetch")["openi"]["images_kept"]
    assert check["micro_f1"] > 0.8

    written = {case.text for case in chain.from_iterable(cases.values())}
    predictions = read_table(folder / "metrics/predictions.csv", COLUMNS)
    assert set(predictions["report"]) <= written and set(predictions["nearest"]) <= written

    figures = read_metrics(folder, "eval")
    assert set(figures["slices"]["source"]) == set(NUM_FILMS)
    references = figures["references"]
    assert references["real"] == references["labels_read_by_labeler"] == figures["n"] > 20
    assert "the labeler reads in both reports" in references["f1_compares"]
    for name in ("classifier", "ceiling"):
        assert "are real reports" in figures["baselines"][name]["text_figures"]
        assert (
            "bleu" not in figures["baselines"][name] and "micro_f1" in figures["baselines"][name]["findings"]
        )
    assert figures["baselines"]["nearest"]["bleu"] > figures["baselines"]["untuned"]["bleu"]
    assert not predictions["generated"].map(PIECE.search).any()
    assert read_metrics(folder, "train")["report_tokens"]["median"] > 20
    assert "real reports" in (folder / "models/adapter/README.md").read_text()
    assert (folder / "metrics/gallery.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.network
def test_radeval_reads_the_predictions_as_the_page_says(finished_run, monkeypatch):
    """RadEval fetches weights of gigabytes: a stand-in takes its place and looks at what it is given."""
    page = (ROOT / "docs/results.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?RadEval.*?)```", page, re.DOTALL)
    given = {}

    class RadEval:
        def __init__(self, **metrics):
            given["metrics"] = metrics

        def __call__(self, refs, hyps):
            given.update(refs=refs, hyps=hyps)
            return {}

    monkeypatch.setitem(sys.modules, "RadEval", types.SimpleNamespace(RadEval=RadEval))
    monkeypatch.chdir(finished_run)
    exec(compile(lines, "docs/results.md", "exec"), {})
    predictions = pd.read_csv("metrics/predictions.csv", keep_default_na=False)
    assert (
        given["refs"] == predictions["report"].tolist() and given["hyps"] == predictions["generated"].tolist()
    )
    assert given["metrics"] == {"do_radgraph": True, "do_chexbert": True}
    assert all(isinstance(text, str) for text in given["hyps"]) and len(lines.split("\n\n")) == 2
