"""Is an image of the kind that an adapter was tuned on? A
report about a photograph reads as well as any other.

Principal component analysis of 16 x 16 thumbnails (Jolliffe 2002): the `reconstruction_error` of an image is
what the first components of the training images cannot express of its layout. It shows that a picture is no
chest film, or a film of another kind; it says nothing of single findings, which are far smaller than its
pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file

FILE = "out_of_distribution.safetensors"  # beside the adapter's weights
SIDE = 16  # pixels of a thumbnail
COMPONENTS = 10
# of the validation images' errors is the limit: of a hundred films of the right kind one gets a warning
QUANTILE = 0.99
CUTOFF = 1  # percent of the darkest and of the brightest pixels that the contrast is stretched without


@dataclass(frozen=True)
class ImageDistribution:
    """The training images: `mean` (256,), `components` (k,
    256), and the `limit` of the reconstruction error.
    """

    mean: np.ndarray
    components: np.ndarray
    limit: float

    def reconstruction_error(self, image: Image.Image) -> float:
        """0 for an image that the components express in full, at most
        about 1; over `limit`, it is unlike those of training.
        """
        centred = thumbnail(image) - self.mean
        reconstructed = centred @ self.components.T @ self.components
        return float(np.linalg.norm(centred - reconstructed))

    def save(self, folder: Path) -> None:
        tensors = {"mean": self.mean, "components": self.components, "limit": np.array([self.limit])}
        save_file(tensors, folder / FILE)


def load_distribution(folder: str | Path) -> ImageDistribution | None:
    """What was saved beside an adapter; None for an adapter from elsewhere."""
    if not (Path(folder) / FILE).is_file():
        return None
    tensors = load_file(Path(folder) / FILE)
    return ImageDistribution(tensors["mean"], tensors["components"], float(tensors["limit"][0]))


def fit(training: Iterable[Image.Image], validation: Iterable[Image.Image]) -> ImageDistribution:
    """The components of the training images, and the limit below
    which a share of `QUANTILE` of the validation images lie.
    """
    from sklearn.decomposition import PCA  # half a second, which explaining need not wait for

    thumbnails = np.stack([thumbnail(image) for image in training])
    pca = PCA(min(COMPONENTS, len(thumbnails)), svd_solver="full").fit(thumbnails)
    unlimited = ImageDistribution(pca.mean_, np.ascontiguousarray(pca.components_), limit=0.0)
    errors = [unlimited.reconstruction_error(image) for image in validation]
    return replace(unlimited, limit=float(np.quantile(errors, QUANTILE)))


def thumbnail(image: Image.Image) -> np.ndarray:
    """(256,) the layout of an image: contrast stretched,
    shrunk, of mean 0 and length 1 (all 0 for a blank image).
    """
    small = image.convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC)
    stretched = ImageOps.autocontrast(small, cutoff=CUTOFF)
    values = np.asarray(stretched.resize((SIDE, SIDE), Image.Resampling.BOX), float).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)
