"""Whether `out of distribution` warns rightly across kinds of image, and what the overlay shows on each.

    python tests/benchmarks/film_kinds.py    # after `make repro`; real films where they are at hand

Phantoms, films of children (chest-xray-pneumonia), films of adults (NIH), photographs in grey, and drawings
made here. Counted is the share of each kind that gets a warning: by the distribution beside the adapter, and
by ones that are fitted here to each kind and to both kinds of real film, with a fifth of them set aside for
the limit and another to count. Writes docs/pictures/warnings.png, an image of each kind with its verdict, and
docs/pictures/overlay.png, the heatmap of the first finding that the report of each film names. Where the
place of a finding is unknown, as on all real films, the overlay is shown and not measured.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from tqdm import tqdm

from conftest import REAL, ROOT
from explainmyxray import out_of_distribution
from explainmyxray.errors import exit_on_user_error
from explainmyxray.explaining.attribution import attribute
from explainmyxray.explaining.loading import ADAPTER, load_explainer
from explainmyxray.generation import generate_batch
from explainmyxray.images.films import open_film
from explainmyxray.out_of_distribution import ImageDistribution
from explainmyxray.pictures.style import GREEN, INK, ORANGE, VERMILION, png_figure
from explainmyxray.sources import phantom

SEED, COUNT = 20280, 300  # films of a kind
NUM_OTHERS = 40  # photographs and drawings
PICTURES = ROOT / "docs/pictures"
REAL_KINDS = {
    "children": REAL / "chest_xray_pneumonia/train",
    "adults": REAL / "nih_more/images",
}

Kinds = dict[str, list[Image.Image]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", default=ADAPTER)
    options = parser.parse_args()
    os.chdir(ROOT)
    explainer = load_explainer(options.adapter, 0)
    kinds = load_kinds(explainer.side)
    sources = ", ".join(explainer.tuned_on.sources) if explainer.tuned_on else "unknown"
    print(share_warned(explainer.out_of_distribution, kinds, sources).to_string(float_format="{:.3f}".format))

    PICTURES.mkdir(exist_ok=True)
    draw_warnings(explainer.out_of_distribution, kinds, sources, PICTURES / "warnings.png")
    draw_overlays(explainer, kinds, sources, PICTURES / "overlay.png")


def load_kinds(side: int) -> Kinds:
    """Images of each kind as the model takes them; real films only where they are at hand."""
    rng = np.random.default_rng(SEED)
    kinds = {"phantoms": [film.read() for film in phantom.sample(phantom.PIPELINE, SEED, COUNT, side)]}
    for kind, folder in REAL_KINDS.items():
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpeg", ".png"))
        if not files:
            print(f"{folder} is not here: no films of {kind}", file=sys.stderr)
            continue
        chosen = rng.choice(len(files), min(COUNT, len(files)), replace=False)
        paths = [files[number] for number in chosen]
        kinds[kind] = [resized(open_film(path.read_bytes()), side) for path in tqdm(paths, desc=kind)]
    kinds["photographs"] = [resized(photograph(rng), side) for _ in range(NUM_OTHERS)]
    kinds["drawings"] = [drawing(rng, side) for _ in range(NUM_OTHERS)]
    return kinds


def resized(image: Image.Image, side: int) -> Image.Image:
    return image.convert("L").resize((side, side), Image.Resampling.BICUBIC)


def photograph(rng: np.random.Generator) -> Image.Image:
    """A random piece of one of scikit-learn's two photographs."""
    photo = load_sample_images().images[rng.integers(2)]
    top, left = (int(rng.integers(limit - 300)) for limit in photo.shape[:2])
    return Image.fromarray(photo[top : top + 300, left : left + 300])


def drawing(rng: np.random.Generator, side: int) -> Image.Image:
    """Light shapes on a dark ground, as a child would draw them."""
    image = Image.new("L", (side, side), int(rng.integers(80)))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 9))):
        (left, right), (top, bottom) = np.sort(rng.integers(0, side, (2, 2)), axis=1).tolist()
        shape = rng.choice([pen.ellipse, pen.rectangle])
        shape((left, top, right, bottom), fill=int(rng.integers(100, 256)), outline=255, width=3)
    return image


def share_warned(known: ImageDistribution | None, kinds: Kinds, sources: str) -> pd.DataFrame:
    """Rows: what the distribution was fitted to. Columns: the share of each kind that gets a warning."""
    rows = {}
    if known is not None:
        rows[f"the adapter's: {sources}"] = shares(known, kinds)
    real = [kind for kind in REAL_KINDS if kind in kinds]
    fitted_to = [[kind] for kind in ("phantoms", *real)] + ([real] if len(real) > 1 else [])
    for names in fitted_to:
        fitting, limiting, counting = [], [], dict(kinds)
        for kind in names:
            images = kinds[kind]
            first, second = 3 * len(images) // 5, 4 * len(images) // 5
            fitting += images[:first]
            limiting += images[first:second]
            counting[kind] = images[second:]
        rows[" and ".join(names)] = shares(out_of_distribution.fit(fitting, limiting), counting)
    return pd.DataFrame.from_dict(rows, orient="index")


def shares(known: ImageDistribution, kinds: Kinds) -> dict[str, float]:
    warned = {}
    for kind, images in kinds.items():
        distances = np.array([known.distance(image) for image in images])
        warned[kind] = float((distances > 1).mean())
    return warned


def draw_warnings(known: ImageDistribution, kinds: Kinds, sources: str, path: Path) -> None:
    """The first image of each kind, with its reconstruction error as a multiple of the limit."""
    with png_figure(path, 1000, 270) as figure:
        figure.text(0.01, 0.93, f"Tuned on: {sources}", fontsize=11, color=INK)
        for column, (kind, images) in enumerate(kinds.items()):
            axes = figure.add_axes((0.01 + 0.2 * column, 0.02, 0.18, 0.68))
            axes.imshow(images[0], cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
            ratio = known.distance(images[0])
            verdict, colour = ("warned of", VERMILION) if ratio > 1 else ("no warning", GREEN)
            axes.set_title(f"{kind}\n{verdict} ({ratio:.1f} of the limit)", fontsize=10, color=colour)


def draw_overlays(explainer, kinds: Kinds, sources: str, path: Path) -> None:
    """Of each kind of film the first whose report names a finding, with that finding's heatmap and peak."""
    films = {kind: kinds[kind] for kind in ("phantoms", *REAL_KINDS) if kind in kinds}
    with png_figure(path, 330 * len(films) + 10, 400) as figure:
        figure.text(0.01, 0.95, f"Tuned on: {sources}", fontsize=11, color=INK)
        for column, (kind, images) in enumerate(films.items()):
            image, finding, attribution = first_attributed(explainer, images)
            axes = figure.add_axes(((0.01 + column) / len(films), 0.02, 0.94 / len(films), 0.78))
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
            place = "place known" if kind == "phantoms" else "place unknown: not measured"
            axes.set_title(f"{kind}: {finding.replace('_', ' ')}\n({place})", fontsize=10, color=INK)
            if attribution is None:
                continue
            # The heatmap in one colour, denser where a patch counts more, as on the page.
            rows, columns = attribution.heatmap.shape
            layer = np.zeros((rows, columns, 4))
            layer[..., :3] = [int(ORANGE[place : place + 2], 16) / 255 for place in (1, 3, 5)]
            layer[..., 3] = 0.78 * attribution.heatmap
            axes.imshow(layer, extent=(0, image.width, image.height, 0), interpolation="nearest")
            row, column_ = attribution.peak
            step = image.width / columns
            box = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) + (column_, row)
            axes.plot(*(box * step).T, color="white", linewidth=1.5)
            print(f"{kind}: {finding}, peak in row {row}, column {column_} of {rows} x {columns}")


def first_attributed(explainer, images: list[Image.Image]):
    """The first image whose report names a finding, the finding and its `Attribution`; else None for it."""
    for image in images[:10]:
        (report,) = generate_batch(explainer.model, explainer.processor, [image], explainer.generation)
        found = attribute(
            explainer.model, explainer.processor, image, report, explainer.generation.batch_size
        )
        if found:
            finding = min(found)
            return image, finding, found[finding]
    return images[0], "no finding named", None


if __name__ == "__main__":
    exit_on_user_error(main)
