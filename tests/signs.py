"""Where a phantom's signs are: what each adds to the density of a film, told by drawing it."""

from unittest.mock import patch

import numpy as np

from explainmyxray.sources import phantom_drawing
from explainmyxray.sources.phantom import PhantomFilm
from explainmyxray.sources.phantom_drawing import SIGNS, Build
from explainmyxray.tables import split_labels

PART = 0.25  # of a sign's greatest change of density: what changes less is its faint border


def areas(film: PhantomFilm) -> dict[str, np.ndarray]:
    """For each finding of a phantom (size, size), true where its sign is."""
    return {
        finding: np.abs(change) >= PART * np.abs(change).max() for finding, change in changes(film).items()
    }


def touched(film: PhantomFilm, side: int) -> dict[str, np.ndarray]:
    """For each finding of a phantom (side, side): the patches in which some of its sign is."""
    patch = film.size // side
    return {
        finding: area.reshape(side, patch, side, patch).any((1, 3)) for finding, area in areas(film).items()
    }


def changes(film: PhantomFilm) -> dict[str, np.ndarray]:
    """For each finding of a phantom (size, size): by how much its sign changes the density there."""
    found = {}

    def recorded(finding, sign):
        def draw(canvas):
            before = canvas.density.copy()
            sign(canvas)
            found[finding] = canvas.density - before + _of_the_thorax(film, finding)

        return draw

    with patch.dict(SIGNS, {finding: recorded(finding, sign) for finding, sign in SIGNS.items()}):
        film.read()
    return found


def _of_the_thorax(film: PhantomFilm, finding: str) -> np.ndarray | float:
    """What a finding changes of heart and lungs themselves: the thorax with it less the thorax without."""
    if finding not in ("Cardiomegaly", "Emphysema"):
        return 0.0
    findings = frozenset(split_labels(film.study["labels"]))
    return _thorax(film, findings) - _thorax(film, findings - {finding}, skip=finding == "Cardiomegaly")


def _thorax(film: PhantomFilm, findings: frozenset[str], skip: bool = False) -> np.ndarray:
    build = Build.sample(np.random.default_rng((film.stream, film.seed, 1, film.patient_index)))
    rng = _Aligned((film.stream, film.seed, 2, film.image_index), skip)
    return phantom_drawing._thorax(findings, build, rng, film.size).density


class _Aligned:
    """A phantom's stream of random numbers; with `skip` it leaves out the number that the width of a large
    heart takes.

    That one is drawn just before the vessels' texture: without the skip every vessel would differ as well.
    """

    def __init__(self, seed: tuple, skip: bool):
        self.rng, self.skip = np.random.default_rng(seed), skip

    def uniform(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def standard_normal(self, *shape, **how) -> np.ndarray:
        if self.skip:
            self.rng.uniform()
            self.skip = False
        return self.rng.standard_normal(*shape, **how)
