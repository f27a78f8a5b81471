"""Real reports as references: what is left out of the figures, and what no mirrored film may belie."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import ROOT
from explainmyxray.errors import UserError
from explainmyxray.pictures.gallery import draw_gallery
from explainmyxray.pictures.plots import plot_systems
from explainmyxray.pictures.style import note
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.templates import load_templates
from explainmyxray.scoring import evaluation
from explainmyxray.settings import load_settings
from explainmyxray.tables import ORIGINS, rounded
from explainmyxray.training.sides import SIDE, refuse_mirrored_sides

AUGMENT = load_settings(ROOT / "params.yaml").augment


def predictions(num_real: int, of: int = 12) -> pd.DataFrame:
    """Rows whose reports all say the same; the first `num_real` references are real, their labels read."""
    rows = []
    for number in range(of):
        origins = ("source", "labeler") if number < num_real else ("templates", "source")
        row = dict.fromkeys(evaluation.COLUMNS, "Small effusion. Possible pneumonia.")
        row |= {"image": f"{number}.png", "source": "table", "patient": "", "labels": "Effusion"}
        row |= {"view": "", "age_years": "", "sex": "", **dict(zip(ORIGINS, origins, strict=True))}
        rows.append(row)
    return pd.DataFrame(rows)


def score(table: pd.DataFrame) -> evaluation.Evaluation:
    return evaluation.score(table, ["small"], seed=1, bootstrap_samples=20)


def test_what_speaks_templates_has_no_text_figures_beside_real_reports(tmp_path):
    scored = score(predictions(num_real=12))
    baselines = scored.metrics["baselines"]
    for name in ("classifier", "ceiling"):
        assert baselines[name]["text_figures"].startswith("left out: 12 of 12 references are real reports")
        assert not baselines[name].keys() & {"bleu", "rouge1", "rouge2", "rougeL", "malformed_reports"}
        assert baselines[name]["findings"]["micro_f1"] == 1
    assert baselines["nearest"]["bleu"] == pytest.approx(100)
    left_out = scored.systems[scored.systems["system"] == "ceiling"]["figure"]
    assert not set(left_out) & {"bleu", "rougeL"} and "findings.micro_f1" in set(left_out)
    plot_systems(scored.systems, tmp_path / "systems.png")
    assert (tmp_path / "systems.png").stat().st_size > 5_000


def test_what_f1_compares_is_said_with_the_rule_for_doubt():
    references = score(predictions(num_real=12)).metrics["references"]
    assert (references["real"], references["synthetic"], references["labels_read_by_labeler"]) == (12, 0, 12)
    assert references["uncertain_findings"] == 12
    assert "uncertain counts as not there" in references["f1_compares"]
    mixed = score(predictions(num_real=3)).metrics["references"]
    assert mixed["real"] == 3 and mixed["f1_compares"].startswith("of 9 images")


@pytest.mark.parametrize("drop_origins", [False, True])
def test_synthetic_references_change_nothing_also_in_tables_of_before(drop_origins):
    table = predictions(num_real=0)
    if drop_origins:
        table = table.drop(columns=list(ORIGINS))
    metrics = score(table).metrics
    assert metrics["references"]["real"] == 0
    assert all("bleu" in figures for figures in metrics["baselines"].values())


def test_films_without_patient_are_resampled_one_by_one():
    """Were they one patient's, every resample would be the whole set, and the interval a point."""
    table = predictions(num_real=12)
    table.loc[:5, "generated"] = "Lungs are clear."
    interval = score(table).metrics["ci95"]["findings"]["micro_f1"]
    assert interval["low"] < interval["high"]


def test_the_gallery_says_what_its_references_are(monkeypatch, tmp_path):
    assert "the references are synthetic" in note(0, 3)
    assert "synthetic" not in note(3, 3) and "references are real reports" in note(3, 3)
    assert "1 of 3 references are real" in note(1, 3)
    said = []
    monkeypatch.setattr("explainmyxray.pictures.gallery.note", lambda *counts: said.append(counts) or "")
    monkeypatch.setattr("explainmyxray.pictures.gallery._square", lambda file: Image.new("L", (9, 9)))
    table = predictions(num_real=2, of=3)
    draw_gallery(table, [frozenset()] * 3, np.arange(3), tmp_path, tmp_path / "gallery.png", 3)
    assert said == [(2, 3)]


def test_the_labeler_s_own_validity_stands_beside_every_f1():
    labeler = score(predictions(num_real=0)).metrics["labeler"]
    for rule in ("without_doubt", "doubt_as_absent"):
        assert list(labeler[rule]["per_finding"]) == list(FINDINGS) and 0.8 < labeler[rule]["f1"] < 1
    assert rounded(labeler) == labeler


def test_reports_that_name_a_side_and_a_flip_exclude_each_other():
    reports = ["No effusion.", "Small left-sided effusion.", "Consolidation in the RLL.", "Clear."]
    with pytest.raises(UserError) as caught:
        refuse_mirrored_sides(reports, AUGMENT)
    message = str(caught.value)
    assert message.startswith("2 of 4 training reports name a side (“…Small left-sided effusion.…”)")
    assert "augment.horizontal_flip=0.0" in message and "\n" not in message
    refuse_mirrored_sides(reports, AUGMENT.model_copy(update={"horizontal_flip": 0.0}))
    refuse_mirrored_sides(["Bilateral effusions. Bright upright film."], AUGMENT)


def test_no_wording_of_the_templates_names_a_side():
    assert SIDE.search(load_templates().model_dump_json()) is None
