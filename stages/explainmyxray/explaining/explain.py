"""Images in, explanations out: what `stages/explain.py` and the page have in common."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from explainmyxray import settings
from explainmyxray.explaining.certainty import finding_probabilities, token_probability
from explainmyxray.explaining.films import is_colour, open_film
from explainmyxray.familiar import Familiar
from explainmyxray.model.base import gpu_memory
from explainmyxray.model.generation import write_reports
from explainmyxray.reports.labeler import label
from explainmyxray.sources.archive import BadImage
from explainmyxray.studies import NO_FINDING

NOTICE = "For research only, not a medical device. Written by a model that was tuned on reports made from labels by templates."


@dataclass(frozen=True)
class Explanation:
    """What the model writes about one image, or why it writes nothing (`problem`)."""

    image: str
    report: str = ""
    findings: tuple[str, ...] = ()            # that the report says are there
    certainty: float | None = None            # mean probability of the report's tokens
    probabilities: dict[str, float] | None = None   # of each finding to be named, over sampled reports
    warning: str = ""                         # why not to trust the report
    problem: str = ""


@dataclass(frozen=True)
class Explainer:
    """A model with its adapter, and all that explaining needs beside it."""

    model: object
    processor: object
    familiar: Familiar | None
    how: settings.Evaluate
    seed: int
    samples: int = 32   # sampled reports behind each probability; 0: none

    def explain(self, named: list[tuple[str, bytes]]) -> Iterator[Explanation]:
        """An explanation for each name and file, in order; those that are no image get a `problem`."""
        for start in range(0, len(named), self.how.batch_size):
            yield from self._batch(named[start:start + self.how.batch_size])

    @gpu_memory()
    def _batch(self, named: list[tuple[str, bytes]]) -> list[Explanation]:
        opened = {name: _open(data) for name, data in named}
        images = {name: image for name, image in opened.items() if isinstance(image, Image.Image)}
        prepared = [image.resize((self.side, self.side), Image.Resampling.BICUBIC) for image in images.values()]
        reports = write_reports(self.model, self.processor, prepared, self.how) if images else []
        certain = token_probability(self.model, self.processor, prepared, reports) if images else []
        told = {name: self._tell(name, data, *each) for (name, data), *each in zip(
            [(name, data) for name, data in named if name in images], images.values(), prepared, reports, certain)}
        return [told.get(name) or Explanation(name, problem=opened[name]) for name, _ in named]

    def _tell(self, name: str, data: bytes, image: Image.Image, prepared: Image.Image, report: str, certainty: float) -> Explanation:
        labels = label(report)
        sampled = finding_probabilities(self.model, self.processor, prepared, self.samples, self.how.max_new_tokens, self.seed)
        return Explanation(
            name, report, tuple(finding for finding, status in labels.items() if status == "present" and finding != NO_FINDING),
            certainty, sampled, self.doubt(data, image),
        )

    def doubt(self, data: bytes, image: Image.Image) -> str:
        """Why an image may be no chest film, or none of the kind that the adapter knows; blank where it looks like one."""
        low, high = image.getextrema()
        if high - low < 16:
            return "the image is blank"
        if is_colour(data):
            return "this is a colour picture, and X-rays are grey"
        if self.familiar and self.familiar.strangeness(image) > self.familiar.limit:
            return "the image is unlike those that the adapter was tuned on: it may be no chest X-ray, or one of another kind"
        return ""

    @property
    def side(self) -> int:
        return self.processor.image_processor.size["height"]


def _open(data: bytes) -> Image.Image | str:
    try:
        return open_film(data)
    except BadImage as bad:
        return f"not an image that can be used: {bad.reason.replace('_', ' ')}"
