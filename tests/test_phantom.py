"""Phantoms: seeded, each sign visible, and the tiny base's pretraining never sees the pipeline's."""

import numpy as np
import pytest

from explainmyxray.sources import phantom, phantom_drawing
from explainmyxray.sources.phantom_drawing import SIGNS, Build, draw
from explainmyxray.tables import split_labels


def drawn(findings, seed=3, size=128) -> np.ndarray:
    build = Build.sample(np.random.default_rng(seed))
    return np.asarray(draw(findings, build, np.random.default_rng(seed + 1), size), dtype=float)


def films(stream=phantom.PIPELINE, seed=42, count=300):
    return list(phantom.sample(stream, seed, count, 64))


def test_one_seed_one_picture():
    for first, second in zip(films(count=5), films(count=5)):
        assert first == second
        assert first.read().tobytes() == second.read().tobytes()


def test_more_phantoms_leave_the_first_ones_as_they_are():
    assert films(count=300)[:200] == films(count=200)


@pytest.mark.parametrize("finding", SIGNS)
def test_every_sign_stands_out_of_the_same_chest(finding, monkeypatch):
    """Before exposure and grain: at least one pixel in 1,000 is a tenth of the whole range brighter or
    darker.
    """
    monkeypatch.setattr(phantom_drawing, "_expose", lambda canvas, size: canvas.density)
    for seed in range(10):
        assert np.mean(np.abs(drawn([finding], seed) - drawn([], seed)) > 0.1) > 1 / 1000


def test_the_mix_holds_the_findings_that_it_says():
    combinations = [split_labels(labels) for labels in phantom.MIX]
    assert len(frozenset().union(*combinations)) >= 8
    assert frozenset() in combinations and any(len(each) > 1 for each in combinations)
    assert len(set(combinations)) == len(combinations)
    assert frozenset().union(*combinations) == set(SIGNS)


def test_patients_have_one_build_and_often_several_images():
    sample = films(count=1000)
    patients = {film.study["patient"] for film in sample}
    assert 500 < len(patients) < 800
    assert len(
        {(film.study["patient"], film.study["sex"], film.study["age_years"]) for film in sample}
    ) == len(patients)


@pytest.mark.parametrize("seed", [7, 42])
def test_pretraining_and_pipeline_share_no_phantom_whatever_the_seeds(seed):
    shown = {film.read().tobytes() for film in films(phantom.PIPELINE, seed)}
    learnt = {film.read().tobytes() for film in films(phantom.PRETRAINING, 7)}
    assert not shown & learnt
    assert len(shown) == 300


def test_a_finding_without_a_sign_cannot_be_drawn():
    with pytest.raises(KeyError):
        drawn(["Pneumonia"])
