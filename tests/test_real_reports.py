"""All five stages on real films with real reports: as a table of one's own, and in Open-i's layout."""

import csv
import json
import os
import re
import shutil
import sys
import types
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

NUM_FILMS = 300
NO_FLIP = {"augment": {"horizontal_flip": 0.0}}
RUN = {"train": {"max_steps": 6}, "evaluate": {"samples": 4, "sampled_images": 8}}


@pytest.fixture(scope="module")
def cases() -> list[tuple[Path, openi_reports.OpeniReport]]:
    """Real films, each with a real report: a normal one beside a normal film."""
    if not REAL.exists():
        pytest.skip("the real films are not beside this checkout")
    try:
        reports = openi_reports.load(openi_reports.download())
    except OSError as error:
        pytest.skip(f"Open-i's reports cannot be fetched: {error}")
    reports = [report for report in reports if report.findings and report.impression]
    found = []
    for folder, normal in (("NORMAL", True), ("PNEUMONIA", False)):
        films = sorted((REAL / "chest_xray_pneumonia/train" / folder).iterdir())[: NUM_FILMS // 2]
        fitting = [each for each in reports if (findings_of_mesh(each.mesh) == "No Finding") == normal]
        found += zip(films, fitting[: len(films)], strict=True)
    return found


def prepare_table(folder: Path, cases: list) -> None:
    """The films and a CSV; a film's name says whose it is."""
    (folder / "my").mkdir()
    with (folder / "my/films.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "report"])
        for film, report in cases:
            shutil.copy(film, folder / "my")
            patient = re.match(r"person\d+_[a-z]+|.*IM-\d+", film.name)[0]
            writer.writerow([film.name, patient, join_sections(report.findings, report.impression)])


def prepare_openi(folder: Path, cases: list) -> None:
    """An archive laid out as Kaggle's."""
    studies = []
    for _, report in cases:
        study = {"uid": report.uid, "MeSH": ";".join(report.mesh)}
        studies.append(study | {"findings": report.findings, "impression": report.impression})
    lateral = (ROOT.parent / "shared/real/nih_sample/images").glob("*.png")
    other = next(lateral).read_bytes()
    members = study_members(studies, lambda n: cases[n][0].read_bytes() if n < 5000 else other)
    write_zip(folder / "data/archives" / ARCHIVE, members)


PREPARE = {"table": prepare_table, "openi": prepare_openi}


@pytest.fixture(scope="module", params=PREPARE)
def finished_run(request, cases, tmp_path_factory) -> tuple[str, Path]:
    """A folder where all five stages have run, and the source's name."""
    source = request.param
    folder = tmp_path_factory.mktemp(source)
    PREPARE[source](folder, cases)
    data = {"data": {"source": source, "table": "my/films.csv"}}
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
    return source, folder


def read_metrics(folder: Path, name: str) -> dict:
    return json.loads((folder / f"metrics/{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.network
def test_real_films_with_real_reports_through_all_five_stages(finished_run, cases):
    source, folder = finished_run
    audit = read_metrics(folder, "fetch")[source]
    assert audit["images_kept"] + audit["pixel_copies_dropped"] == NUM_FILMS
    split = read_metrics(folder, "split")
    assert not any(split["shared"].values())
    assert split["leaks_that_cannot_be_seen"] == {"images_without_patient": 0}
    if source == "openi":
        assert split["labels_against_index"]["micro_f1"] > 0.8

    written = {join_sections(report.findings, report.impression) for _, report in cases}
    predictions = read_table(folder / "metrics/predictions.csv", COLUMNS)
    assert set(predictions["report"]) <= written and set(predictions["nearest"]) <= written

    figures = read_metrics(folder, "eval")
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
    monkeypatch.chdir(finished_run[1])
    exec(compile(lines, "docs/results.md", "exec"), {})
    predictions = pd.read_csv("metrics/predictions.csv", keep_default_na=False)
    assert (
        given["refs"] == predictions["report"].tolist() and given["hyps"] == predictions["generated"].tolist()
    )
    assert given["metrics"] == {"do_radgraph": True, "do_chexbert": True}
    assert all(isinstance(text, str) for text in given["hyps"]) and len(lines.split("\n\n")) == 2
