"""Images in, explanations out: what `stages/explain.py` and the page have in common."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from PIL import Image

from explainmyxray import settings
from explainmyxray.explaining.confidence import Calibration, shares
from explainmyxray.explaining.explanation import NOT_FOR_THIS_IMAGE, NOT_MEASURED, Explanation, LikeFindings
from explainmyxray.explaining.files import problem_message
from explainmyxray.explaining.remarks import remarks_on
from explainmyxray.generation import consensus, generate_batch, sample_reports
from explainmyxray.gpu import gpu_memory_errors
from explainmyxray.images.decoding import BadImage
from explainmyxray.images.films import is_colour, open_film
from explainmyxray.model.families.family import ReportProcessor
from explainmyxray.model.tuned_on import TunedOn
from explainmyxray.out_of_distribution import ImageDistribution
from explainmyxray.reports.labeler import positive_findings

SOURCES = {  # in words, where the name alone does not say it
    "phantom": "drawn phantoms",
    "chest_xray_pneumonia": "films of children, from chest-xray-pneumonia",
    "nih_sample": "films of adults, from NIH's sample",
}
BLANK = 16  # grey levels: an image whose darkest and brightest pixels differ by less shows nothing


@dataclass(frozen=True)
class Film:
    """A file that a person gave, as the model takes it; `image` is None where it has a `problem`."""

    name: str
    image: Image.Image | None = None
    colour: bool = False  # the file holds a colour picture
    problem: str = ""


@dataclass(frozen=True)
class Explainer:
    """A model with its adapter, and all that explaining needs beside it."""

    model: object
    processor: ReportProcessor
    out_of_distribution: ImageDistribution | None
    tuned_on: TunedOn | None
    generation: settings.Evaluate
    seed: int
    samples: int  # sampled reports behind each probability; 0: none, which is much faster
    calibration: Calibration | None = None  # what such probabilities were worth on the test split

    @property
    def side(self) -> int:
        """Pixels a side of the image that the model takes."""
        return self.processor.image_size

    def explain(self, files: Iterable[tuple[str, bytes]]) -> Iterator[Explanation]:
        """An explanation for each file (name, content), in order; a batch of files is in memory at a time."""
        remaining = iter(files)
        while chunk := list(islice(remaining, self.generation.batch_size)):
            films = [self.open(name, data) for name, data in chunk]
            yield from self._explain_batch(films)

    def open(self, name: str, data: bytes) -> Film:
        """A file as the model takes it, or why it cannot be used."""
        try:
            image = self.prepare(open_film(data))
            return Film(name, image, is_colour(data))
        except BadImage as bad:
            return Film(name, problem=problem_message(bad))

    def prepare(self, film: Image.Image) -> Image.Image:
        """A film as the model takes it: a square of its side."""
        return film.resize((self.side, self.side), Image.Resampling.BICUBIC)

    @gpu_memory_errors()
    def _explain_batch(self, films: list[Film]) -> list[Explanation]:
        # One batch writes the reports of all films that can
        # be used; the others keep their place in the order.
        images = [film.image for film in films if not film.problem]
        written = iter(self._write(images) if images else [])
        explanations = []
        for film in films:
            if film.problem:
                explanations.append(Explanation(film.name, problem=film.problem))
            else:
                report, sampled = next(written)
                explanations.append(self._explanation(film, report, sampled))
        return explanations

    def _write(self, images: list[Image.Image]) -> list[tuple[str, list[str]]]:
        """For each image its report and the reports sampled beside it: none where `samples` is 0."""
        model, processor, generation = self.model, self.processor, self.generation
        if generation.decoding != "consensus":
            reports = generate_batch(model, processor, images, generation)
            sampled = [[] for _ in images]
            if self.samples:
                sampled = sample_reports(model, processor, images, generation, self.samples, self.seed)
            return list(zip(reports, sampled))
        # The samples are drawn for the consensus already: they serve as confidence, too.
        count = self.samples or generation.samples
        sampled = sample_reports(model, processor, images, generation, count, self.seed)
        reports = [consensus(each) for each in sampled]
        return [(report, each if self.samples else []) for report, each in zip(reports, sampled)]

    def _explanation(self, film: Film, report: str, sampled: list[str]) -> Explanation:
        findings = positive_findings(report)
        explanation = Explanation(
            film.name,
            report,
            findings=tuple(sorted(findings)),
            remarks=remarks_on(report),
            warning=self.warning(film),
        )
        if not sampled:
            return explanation
        in_samples = [positive_findings(each) for each in sampled]
        probabilities = shares(in_samples)
        return replace(
            explanation,
            probabilities=probabilities,
            measured=None if explanation.warning else self._measured(probabilities),
            calibration=NOT_FOR_THIS_IMAGE if explanation.warning else self._calibrated_on(),
            agreement=in_samples.count(findings) / len(sampled),
        )

    def _measured(self, probabilities: dict[str, float]) -> dict[str, LikeFindings] | None:
        """For each finding what a like share was worth on the test split; None where it was not measured."""
        if self.calibration is None:
            return None
        like = {finding: self.calibration.like(share) for finding, share in probabilities.items()}
        return {finding: findings for finding, findings in like.items() if findings is not None}

    def _calibrated_on(self) -> str:
        """On what the shares were measured, in words."""
        known = self.calibration
        if known is None:
            return NOT_MEASURED
        return (
            f"measured on {known.images} test images ({self._training_images()}) with {known.samples} "
            f"sampled reports each: calibration error {known.error:.2f}"
        )

    def warning(self, film: Film) -> str:
        """Why a film may be no chest X-ray, or none of the kind
        that the adapter knows; blank if it looks like one.
        """
        low, high = film.image.getextrema()
        if high - low < BLANK:
            return "the image is blank"
        if film.colour:
            return "this is a colour picture, and X-rays are grey"
        known = self.out_of_distribution
        if known is None:
            return (
                "nobody checked whether this is a chest X-ray: "
                "the adapter comes without a description of its training images"
            )
        if known.distance(film.image) > 1:
            return (
                f"the image is unlike those that the adapter was tuned on ({self._training_images()}): "
                "it may be no chest X-ray, or one of another kind"
            )
        return ""

    def _training_images(self) -> str:
        """What the adapter was tuned on, in words."""
        if self.tuned_on is None:
            return "which ones is not written beside it"
        words = [SOURCES.get(source, source.replace("_", " ")) for source in self.tuned_on.sources]
        return ", ".join(words)
