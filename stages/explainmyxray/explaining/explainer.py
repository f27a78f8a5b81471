"""Images in, explanations out: what `stages/explain.py` and any other front has in common."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from explainmyxray import settings
from explainmyxray.explaining.confidence import finding_probabilities, token_probability
from explainmyxray.generation import generate_batch
from explainmyxray.images.decoding import BadImage
from explainmyxray.images.dicom import is_colour, open_film
from explainmyxray.model.base import gpu_memory
from explainmyxray.out_of_distribution import ImageDistribution
from explainmyxray.reports.labeler import positive_findings

NOTICE = "For research only, not a medical device. Written by a model that was tuned on reports made from labels by templates."


@dataclass(frozen=True)
class Explanation:
    """What the model writes about one image, or why it writes nothing (`problem`)."""

    image: str
    report: str = ""
    findings: tuple[str, ...] = ()  # that the report says are there
    certainty: float | None = None  # mean probability of the report's tokens
    probabilities: dict[str, float] | None = None  # of each finding to be named, over sampled reports
    warning: str = ""  # why not to trust the report
    problem: str = ""


@dataclass(frozen=True)
class Explainer:
    """A model with its adapter, and all that explaining needs beside it."""

    model: object
    processor: object
    out_of_distribution: ImageDistribution | None
    how: settings.Evaluate
    seed: int
    samples: int  # sampled reports behind each probability; 0: none, which is much faster

    def explain(self, named: Iterable[tuple[str, bytes]]) -> Iterator[Explanation]:
        """An explanation for each name and file, in order, a batch of files in memory at a time."""
        rest = iter(named)
        while chunk := list(islice(rest, self.how.batch_size)):
            yield from self._batch(chunk)

    @gpu_memory()
    def _batch(self, named: list[tuple[str, bytes]]) -> list[Explanation]:
        opened = [self._open(*each) for each in named]
        films = [each for each in opened if not isinstance(each, Explanation)]
        if not films:
            return opened
        reports = generate_batch(self.model, self.processor, films, self.how)
        written = zip(films, reports, token_probability(self.model, self.processor, films, reports))
        return [
            each if isinstance(each, Explanation) else self._told(name, data, *next(written))
            for (name, data), each in zip(named, opened)
        ]

    def _open(self, name: str, data: bytes) -> Image.Image | Explanation:
        """The image as the model takes it, or why there is none."""
        try:
            return self.prepared(open_film(data))
        except BadImage as bad:
            return Explanation(name, problem=f"not an image that can be used: {bad.reason.replace('_', ' ')}")

    def prepared(self, film: Image.Image) -> Image.Image:
        """A film as the model takes it: a square of its side."""
        return film.resize((self.side, self.side), Image.Resampling.BICUBIC)

    def _told(self, name: str, data: bytes, film: Image.Image, report: str, certainty: float) -> Explanation:
        return Explanation(
            name,
            report,
            tuple(sorted(positive_findings(report))),
            certainty,
            self._sampled(film),
            self.doubt(data, film),
        )

    def _sampled(self, film: Image.Image) -> dict[str, float] | None:
        if not self.samples:
            return None
        return finding_probabilities(
            self.model, self.processor, film, self.samples, self.how.max_new_tokens, self.seed
        )

    def doubt(self, data: bytes, film: Image.Image) -> str:
        """Why a prepared image may be no chest film, or none of the kind that the adapter knows; blank where it looks like one."""
        low, high = film.getextrema()
        if high - low < 16:
            return "the image is blank"
        if is_colour(data):
            return "this is a colour picture, and X-rays are grey"
        if self.out_of_distribution is None:
            return "nobody checked whether this is a chest X-ray: the adapter comes without a description of its training images"
        if self.out_of_distribution.reconstruction_error(film) > self.out_of_distribution.limit:
            return "the image is unlike those that the adapter was tuned on: it may be no chest X-ray, or one of another kind"
        return ""

    @property
    def side(self) -> int:
        return self.processor.image_processor.size["height"]
