"""Is an image of the kind that an adapter was tuned on? A
report about a photograph reads as well as any other.

Principal component analysis of 16 x 16 thumbnails (Jolliffe 2002), with the two statistics of Jackson &
Mudholkar (1979): the residual that the components cannot express, and Hotelling's distance from the mean
along them. A drawing has a large residual; a smooth gradient, which components express well, a large
distance. Both show that a picture is no chest film, or a film of another kind; they say nothing of single
findings, which are far smaller than the pixels of a thumbnail.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file

FILE = "out_of_distribution.safetensors"  # beside the adapter's weights
SIDE = 16  # pixels of a thumbnail
COMPONENTS = 40
# of each statistic of the validation images is its limit: of a hundred films of the right kind about one gets
# a warning
QUANTILE = 0.995
CUTOFF = 1  # percent of the darkest and of the brightest pixels that the contrast is stretched without


@dataclass(frozen=True)
class ImageDistribution:
    """The training images: `mean` (256,), `components` (k, 256) and the `variances` (k,) along them.

    `limits` (2,) are those of residual and Hotelling's distance.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    limits: np.ndarray

    def distance(self, image: Image.Image) -> float:
        """The larger of the two statistics over its limit: above 1, the image is unlike those of training."""
        return float((self.statistics(image) / self.limits).max())

    def statistics(self, image: Image.Image) -> np.ndarray:
        """(2,) residual and Hotelling's distance (the root of his T²)."""
        centred = thumbnail(image) - self.mean
        scores = centred @ self.components.T
        residual = np.linalg.norm(centred - scores @ self.components)
        return np.array([residual, np.linalg.norm(scores / np.sqrt(self.variances))])

    def save(self, folder: Path) -> None:
        tensors = {
            "mean": self.mean,
            "components": self.components,
            "variances": self.variances,
            "limits": self.limits,
        }
        save_file(tensors, folder / FILE)


def load_distribution(folder: str | Path) -> ImageDistribution | None:
    """What was saved beside an adapter; None for an adapter from elsewhere, or of another layout."""
    if not (Path(folder) / FILE).is_file():
        return None
    tensors = load_file(Path(folder) / FILE)
    if tensors.keys() != {field.name for field in fields(ImageDistribution)}:
        return None
    return ImageDistribution(**tensors)


def fit(training: Iterable[Image.Image], validation: Iterable[Image.Image]) -> ImageDistribution:
    """The components of the training images, and the limits below
    which a share of `QUANTILE` of the validation images lie.
    """
    from sklearn.decomposition import PCA  # half a second, which explaining need not wait for

    thumbnails = np.stack([thumbnail(image) for image in training])
    # Fewer than there are images, for n images span n - 1 dimensions: along another, the variance is 0.
    num_components = min(COMPONENTS, len(thumbnails) - 1)
    pca = PCA(num_components, svd_solver="full").fit(thumbnails)
    unlimited = ImageDistribution(
        pca.mean_, np.ascontiguousarray(pca.components_), pca.explained_variance_, limits=np.ones(2)
    )
    statistics = np.stack([unlimited.statistics(image) for image in validation])
    return replace(unlimited, limits=np.quantile(statistics, QUANTILE, axis=0))


def thumbnail(image: Image.Image) -> np.ndarray:
    """(256,) the layout of an image: contrast stretched,
    shrunk, of mean 0 and length 1 (all 0 for a blank image).
    """
    small = image.convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC)
    stretched = ImageOps.autocontrast(small, cutoff=CUTOFF)
    values = np.asarray(stretched.resize((SIDE, SIDE), Image.Resampling.BOX), float).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)
