"""Images unlike those that an adapter was tuned on are recognised."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from conftest import REAL
from explainmyxray import out_of_distribution
from explainmyxray.images.decoding import decode
from explainmyxray.sources import phantom

FILMS = REAL / "chest_xray_pneumonia/train"
ADULTS = REAL / "nih_more/images"


def phantoms(seed: int, count: int) -> list[Image.Image]:
    return [film.read() for film in phantom.sample(phantom.PIPELINE, seed, count, 224)]


def photographs() -> list[Image.Image]:
    """Those that scikit-learn ships, in pieces."""
    return [
        Image.fromarray(photo[y : y + 300, x : x + 300])
        for photo in load_sample_images().images
        for y in (0, 120)
        for x in (0, 150, 330)
    ]


def others() -> list[Image.Image]:
    """Photographs, and pictures of nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    return [
        *photographs(),
        Image.new("L", (224, 224)),
        Image.fromarray(noise),
        Image.linear_gradient("L"),
        Image.radial_gradient("L"),
    ]


@pytest.fixture(scope="module")
def real() -> list[Image.Image]:
    paths = sorted(FILMS.rglob("*.jpeg"))
    if not paths:
        pytest.skip(f"{FILMS} is not here")
    return [decode(path.read_bytes()) for path in paths[::2]]


def warned(known: out_of_distribution.ImageDistribution, images) -> float:
    return float(np.mean([known.distance(image) > 1 for image in images]))


@pytest.fixture(scope="module")
def tuned_on_phantoms() -> out_of_distribution.ImageDistribution:
    return out_of_distribution.fit(phantoms(1, 400), phantoms(2, 200))


def test_tuned_on_phantoms_it_warns_of_photographs_and_of_no_phantoms(tuned_on_phantoms):
    assert warned(tuned_on_phantoms, phantoms(3, 200)) <= 0.04
    assert warned(tuned_on_phantoms, others()) == 1


def test_tuned_on_phantoms_it_warns_of_real_films(tuned_on_phantoms, real):
    assert warned(tuned_on_phantoms, real) == 1


def test_tuned_on_real_films_it_warns_of_all_else(real):
    rows = np.random.default_rng(0).permutation(len(real))
    part = [[real[row] for row in rows[start::3]] for start in range(3)]
    known = out_of_distribution.fit(part[0], part[1])
    assert warned(known, part[2]) <= 0.04
    assert warned(known, others()) == 1
    assert warned(known, phantoms(3, 100)) >= 0.95


def test_tuned_on_two_kinds_of_film_it_warns_of_all_else(real):
    """A mixture is wider than each of its kinds; what lies between them is still none of them."""
    adults = [decode(path.read_bytes()) for path in sorted(ADULTS.rglob("*.png"))[:300]]
    if not adults:
        pytest.skip(f"{ADULTS} is not here")
    rng = np.random.default_rng(0)
    children = [real[row] for row in rng.permutation(len(real))[:300]]
    known = out_of_distribution.fit(children[:200] + adults[:200], children[200:] + adults[200:])
    assert warned(known, phantoms(3, 100)) >= 0.95
    assert warned(known, photographs()) == 1


def test_it_is_kept_beside_the_adapter(tmp_path):
    images = phantoms(1, 20)
    known = out_of_distribution.fit(images, images)
    known.save(tmp_path)
    again = out_of_distribution.load_distribution(tmp_path)
    assert again.distance(images[3]) == known.distance(images[3])
    assert out_of_distribution.load_distribution(tmp_path / "elsewhere") is None
