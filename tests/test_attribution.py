"""Attribution points at what a finding depends on; on phantoms the place of each sign is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from explainmyxray.explaining.attribution import Attribution, attribute, cell_size, sentences_naming
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.settings import load_settings
from explainmyxray.sources import phantom
from explainmyxray.sources.phantom import PhantomFilm
from explainmyxray.sources.phantom_drawing import SIGNS
from signs import areas, changes, touched

REPORT = (
    "Findings: The heart is enlarged. There is a mass. No pleural effusion is seen. "
    "Impression: Cardiomegaly and lung mass."
)


@pytest.fixture(scope="module")
def tiny():
    """The tiny base, which finds signs before it is tuned, with
    an adapter that changes nothing yet, and its processor.
    """
    settings = load_settings(ROOT / "params.yaml")
    base = settings.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})
    return add_lora(load_base(base, settings.quantization), settings.lora).eval(), load_processor(base)


def drawn(labels: str, index: int = 0) -> PhantomFilm:
    return PhantomFilm("", {"labels": labels}, phantom.PIPELINE, 99, index, index, 224)


@pytest.mark.parametrize("finding", SIGNS)
def test_a_signs_place_is_where_its_phantom_differs_from_one_without_it(finding):
    change, area = changes(drawn(finding))[finding], areas(drawn(finding))[finding]
    far = np.abs(change) < 1e-3
    assert area.any() and not (far & area).any()
    assert far.mean() > {"Edema": 0.25, "Emphysema": 0.25}.get(
        finding, 0.5
    )  # the rest of the film is the same to the last vessel


def test_the_place_of_one_sign_does_not_hold_the_other():
    found = areas(drawn("Mass|Pneumothorax", 3))
    assert set(found) == {"Mass", "Pneumothorax"} and (found["Mass"] & found["Pneumothorax"]).mean() < 0.01
    assert touched(drawn("Mass"), 8)["Mass"].shape == (8, 8)


def test_sentences_that_name_a_finding_are_found_and_those_that_deny_one_are_not():
    named = sentences_naming(REPORT)
    said = {finding: [REPORT[start:end] for start, end in spans] for finding, spans in named.items()}
    both = "Impression: Cardiomegaly and lung mass"
    assert said == {
        "Cardiomegaly": ["Findings: The heart is enlarged", both],
        "Mass": ["There is a mass", both],
    }
    assert sentences_naming("") == {} and sentences_naming("The lungs are clear. No mass.") == {}


@pytest.mark.parametrize(
    "image_size, patch_size, cells",
    [(224, 28, 8), (224, 14, 16), (448, 14, 16), (896, 14, 16), (384, 16, 12)],
)
def test_the_maps_have_a_cell_a_patch_up_to_sixteen_a_side(image_size, patch_size, cells):
    """A window is a forward pass: 64 x 64 patches would be 3,969 of them for each film."""
    assert cells * cell_size(image_size, patch_size) == image_size


def test_maps_are_of_the_grid_and_the_same_again_whatever_the_batch(tiny):
    image = drawn("Mass").read()
    first, second = (attribute(*tiny, image, REPORT, batch)["Mass"] for batch in (49, 7))
    assert first.occlusion.shape == first.saliency.shape == first.heatmap.shape == (8, 8)
    assert first.heatmap.max() == first.heatmap[first.peak] == 1
    assert first.heatmap.min() >= 0
    assert np.allclose(first.occlusion, second.occlusion, atol=1e-4)
    assert np.array_equal(first.saliency, second.saliency)
    assert first.likelihood_ratio == pytest.approx(np.exp(max(first.occlusion[first.peak], 0)), rel=1e-5)
    assert first.sentences == ("There is a mass", "Impression: Cardiomegaly and lung mass")


def test_what_hides_nothing_counts_for_nothing(tiny):
    of_blank_image = attribute(*tiny, Image.new("L", (224, 224), 90), REPORT, 16)["Mass"]
    assert np.abs(of_blank_image.occlusion).max() < 1e-4
    blank = Attribution(("a mass",), np.zeros((8, 8)), np.ones((8, 8)))
    assert blank.likelihood_ratio == 1 and not blank.heatmap.any()


def test_a_report_without_a_finding_has_no_attribution_and_no_gradient_is_left_behind(tiny):
    assert attribute(*tiny, drawn("No Finding").read(), "The lungs are clear.", 16) == {}
    attribute(*tiny, drawn("Mass").read(), REPORT, 16)
    assert all(weights.grad is None for weights in tiny[0].parameters())
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_it_hits_the_sign_far_more_often_than_chance(tiny):
    """On the tiny base, asked in the words of its pretraining about a finding that is there: a report's words
    it learns from tuning, and the adapter is measured by benchmarks/overlay.py.
    """
    model, _ = tiny
    base = load_settings(ROOT / "params.yaml").model
    own_words = {"id": str(ROOT / "models/tiny-paligemma"), "prompt": "describe en"}
    processor = load_processor(base.model_copy(update=own_words))
    hits, chance = [], []
    for index in range(8):
        for finding in ("Mass", "Nodule", "Consolidation"):
            film = drawn(finding, index)
            sign = touched(film, 8)[finding]
            sentence = f"There are signs of {finding.lower()}."
            hits.append(sign[attribute(model, processor, film.read(), sentence, 49)[finding].peak])
            chance.append(sign.mean())
    assert np.mean(hits) >= 0.8 and np.mean(hits) > 4 * np.mean(chance), (np.mean(hits), np.mean(chance))
