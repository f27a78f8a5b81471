"""The phantom source: seeded drawings of chest X-rays, several images a patient, as in the real data sets."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from explainmyxray.sources import Film
from explainmyxray.sources.phantom_drawing import Build, draw
from explainmyxray.tables import split_labels

if TYPE_CHECKING:
    from explainmyxray import settings

MIX: dict[str, int] = YAML(typ="safe").load(Path(__file__).with_name("phantom_mix.yaml"))
PIPELINE, PRETRAINING = 0, 1  # streams of random numbers that share nothing, whatever the seed


@dataclass(frozen=True)
class PhantomFilm(Film):
    """A phantom to be drawn: `stream`, `seed` and two numbers say everything about it."""

    stream: int
    seed: int
    patient_index: int
    image_index: int
    size: int

    def read(self) -> Image.Image:
        """The drawing: 8-bit greyscale, `size` pixels a side."""
        patient = np.random.default_rng((self.stream, self.seed, 1, self.patient_index))
        image = np.random.default_rng((self.stream, self.seed, 2, self.image_index))
        return draw(split_labels(self.study["labels"]), Build.sample(patient), image, self.size)


def films(data: "settings.Data", seed: int) -> tuple[list[Film], dict]:
    """The pipeline's phantoms, `data.phantom.count` of them at `data.image_size`; nothing is left out."""
    return list(sample(PIPELINE, seed, data.phantom.count, data.image_size)), {}


def sample(stream: int, seed: int, count: int, size: int) -> Iterator[PhantomFilm]:
    """`count` phantoms of one stream: the same arguments give the same films."""
    rng = np.random.default_rng((stream, seed, 0))
    combinations = list(MIX)
    weights = np.array(list(MIX.values()), float)
    patient, image = -1, 0
    while image < count:
        patient += 1
        sex, age = str(rng.choice(["F", "M"])), int(rng.integers(18, 90))
        labels = None
        for _ in range(min(1 + rng.poisson(0.6), count - image)):
            if labels is None or rng.random() < 0.4:  # a follow-up mostly shows what the last film showed
                labels = str(rng.choice(combinations, p=weights / weights.sum()))
            study = {
                "source": "phantom",
                "patient": f"phantom-{patient:05d}",
                "labels": labels,
                "subtype": "",
                "view": str(rng.choice(["PA", "AP"], p=[0.7, 0.3])),
                "age_years": str(age),
                "sex": sex,
            }
            yield PhantomFilm(f"phantom/{image:06d}", study, stream, seed, patient, image, size)
            image += 1
