"""Is an image of the kind that an adapter was tuned on? A report about a photograph reads as well as any other.

Told from 16 x 16 thumbnails by principal component analysis (Jolliffe 2002): what the first components of the training
images cannot express of an image's layout is its `reconstruction_error`. It sees that a picture is no chest film, or a film of
another kind; it says nothing of single findings, which are far smaller than its pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA

FILE = "out_of_distribution.safetensors"  # beside the adapter's weights
SIDE, COMPONENTS = 16, 10
QUANTILE = 0.99  # the share of validation images that count as out_of_distribution: of a hundred true films one is warned about


@dataclass(frozen=True)
class ImageDistribution:
    """What training images look like: `mean` (256,), `components` (k, 256), and the `limit` of reconstruction_error."""

    mean: np.ndarray
    components: np.ndarray
    limit: float

    def reconstruction_error(self, image: Image.Image) -> float:
        """0 for an image that the components express in full; over `limit`, it is unlike those of training."""
        rest = thumbnail(image) - self.mean
        return float(np.linalg.norm(rest - rest @ self.components.T @ self.components))

    def save(self, folder: Path) -> None:
        save_file(
            {"mean": self.mean, "components": self.components, "limit": np.array([self.limit])}, folder / FILE
        )


def load(folder: str | Path) -> ImageDistribution | None:
    """What was saved beside an adapter; None for an adapter from elsewhere."""
    if not (Path(folder) / FILE).is_file():
        return None
    stored = load_file(Path(folder) / FILE)
    return ImageDistribution(stored["mean"], stored["components"], float(stored["limit"][0]))


def fit(training: Iterable[Image.Image], validation: Iterable[Image.Image]) -> ImageDistribution:
    """The components of the training images, and the limit that a share of `QUANTILE` of the validation images keep."""
    thumbnails = np.stack([thumbnail(image) for image in training])
    analysis = PCA(min(COMPONENTS, len(thumbnails)), svd_solver="full").fit(thumbnails)
    out_of_distribution = ImageDistribution(analysis.mean_, np.ascontiguousarray(analysis.components_), 0.0)
    limit = np.quantile([out_of_distribution.reconstruction_error(image) for image in validation], QUANTILE)
    return ImageDistribution(out_of_distribution.mean, out_of_distribution.components, float(limit))


def thumbnail(image: Image.Image) -> np.ndarray:
    """(256,) the layout of an image: contrast stretched, shrunk, of mean 0 and length 1 (all 0 for a blank image)."""
    grey = ImageOps.autocontrast(
        image.convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC), cutoff=1
    )
    values = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), float).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)
