"""Draw a chest X-ray phantom: thorax, lungs, ribs, heart, diaphragm, and a visible sign for each finding.

A frontal view as a sum of soft-tissue densities (bright is dense), in units of half an image side: x runs
from -1 at the image's left to 1, y from -1 at the top to 1. The signs are the textbook ones (Fleischner
Society glossary, Hansell et al. 2008, doi:10.1148/radiol.2462070712), drawn schematically: a phantom tests a
pipeline and teaches nothing about patients.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDES = (-1, 1)


@dataclass(frozen=True)
class Build:
    """What stays the same from one image of a patient to the next, in units of half an image side."""

    lung_width: float
    lung_height: float
    gap: float  # from the midline to a lung's inner border
    heart_shift: float  # of the heart's centre towards the patient's left, which is the image's right
    heart_ratio: float  # cardiothoracic ratio of the healthy heart; up to 0.5 is normal
    rib_spacing: float
    rib_slope: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Build":
        return cls(
            lung_width=rng.uniform(0.34, 0.39),
            lung_height=rng.uniform(0.62, 0.72),
            gap=rng.uniform(0.10, 0.14),
            heart_shift=rng.uniform(0.08, 0.14),
            heart_ratio=rng.uniform(0.40, 0.47),
            rib_spacing=rng.uniform(0.155, 0.185),
            rib_slope=rng.uniform(0.1, 0.25),
        )


@dataclass
class Canvas:
    """A picture in the making."""

    rng: np.random.Generator
    build: Build
    findings: frozenset[str]
    x: np.ndarray
    y: np.ndarray
    density: np.ndarray
    lungs: dict[int, np.ndarray]  # side -> soft mask, 0 to 1
    depth: dict[int, np.ndarray]  # side -> depth inside the lung's outline, 0 at its border, 1 at its centre
    dome: dict[int, np.ndarray]  # side -> height of the diaphragm at each x
    heart_edge: float  # half the heart's width

    def side(self) -> int:
        return int(self.rng.choice(SIDES))

    def sides(self) -> list[int]:
        return list(SIDES) if self.rng.random() < 0.3 else [self.side()]

    def spot(self, side: int, low: float = -0.4, high: float = 0.3) -> tuple[float, float]:
        """A place well inside a lung, clear of the heart's shadow."""
        b = self.build
        y = self.rng.uniform(low, high)
        inner = max(b.gap, self.heart_edge + b.heart_shift * side if y > 0.05 else 0)
        return side * self.rng.uniform(inner + 0.1, max(inner + 0.12, b.gap + 1.6 * b.lung_width)), y


def step(distance: np.ndarray, softness: float) -> np.ndarray:
    """1 well above zero, 0 well below, a straight ramp of width `softness` between."""
    return np.clip(distance / softness + 0.5, 0, 1)


def line(distance: np.ndarray, width: float) -> np.ndarray:
    """A soft line of the given half width along where `distance` is zero."""
    return np.exp(-((distance / width) ** 2))


def texture(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of about unit deviation, `cells` blobs a side."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def ridges(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """A net of thin lines, 0 to 1: where smooth noise crosses zero."""
    return np.exp(-((texture(rng, size, cells) / 0.18) ** 2))


def draw(findings: Iterable[str], build: Build, rng: np.random.Generator, size: int = 224) -> Image.Image:
    """One 8-bit greyscale phantom of `size` pixels a side that shows `findings` (NIH names) and nothing else.

    Raises KeyError for a finding that has no sign.
    """
    canvas = _thorax(frozenset(findings), build, rng, size)
    for finding in sorted(canvas.findings):
        SIGNS[finding](canvas)
    return _expose(canvas, size)


def _thorax(findings: frozenset[str], b: Build, rng: np.random.Generator, size: int) -> Canvas:
    x, y = _pose(rng, size)
    emphysema = "Emphysema" in findings
    outlines, lungs, depth, dome = {}, {}, {}, {}
    flatness = 0.25 if emphysema else 1.0
    for side in SIDES:
        centre = side * (b.gap + b.lung_width)
        width, height = b.lung_width * (1.06 if emphysema else 1), b.lung_height * (1.08 if emphysema else 1)
        outlines[side] = 1 - np.abs((x - centre) / width) ** 2.4 - np.abs((y + 0.1) / height) ** 2.4
        base = 0.40 + (0.10 if emphysema else 0) + (0.03 if side > 0 else 0) + rng.uniform(-0.02, 0.02)
        arch = flatness * 0.9 * (x - centre + side * 0.05) ** 2
        dome[side] = base + arch + 0.10 * (x - centre) * side * flatness
        lungs[side] = step(outlines[side], 0.10) * step(dome[side] - y, 0.03)
        depth[side] = np.clip(outlines[side], 0, 1)
    ratio = rng.uniform(0.58, 0.68) if "Cardiomegaly" in findings else b.heart_ratio
    narrow = emphysema and "Cardiomegaly" not in findings
    heart_edge = ratio * (b.gap + 2 * b.lung_width) * (0.9 if narrow else 1)
    heart = _heart(x, y, b, heart_edge)
    for side in SIDES:
        lungs[side] = lungs[side] * (1 - 0.85 * heart)  # a little air shows behind the heart
    density = _soft_tissue(x, y, lungs, heart, emphysema)
    density += _bones(x, y, b) + _vessels(rng, x, y, b, lungs, size) * (0.4 if emphysema else 1)
    return Canvas(rng, b, findings, x, y, density.astype(np.float32), lungs, depth, dome, heart_edge)


def _pose(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The grid as a patient stands before it: turned, shifted, nearer or farther."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    angle, scale = math.radians(rng.uniform(-4, 4)), rng.uniform(0.94, 1.08)
    right, down = math.cos(angle) * scale, math.sin(angle) * scale
    dx, dy = rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)
    return x * right + y * down + dx, y * right - x * down + dy


def _heart(x, y, b: Build, edge: float) -> np.ndarray:
    """The heart's shadow: an egg that leans to the patient's left, and the aortic knob above it."""
    u, v = x - b.heart_shift, y - 0.24
    egg = step(1 - (u / edge) ** 2 - ((v - 0.25 * u + 0.04) / (0.30 + 0.10 * u)) ** 2, 0.20)
    knob = step(0.085 - np.hypot(x - 0.09, y + 0.22), 0.03)
    return np.maximum(egg, knob)


def _soft_tissue(x, y, lungs, heart, emphysema: bool) -> np.ndarray:
    shoulders = np.clip((-y - 0.55) / 0.55, 0, 1) ** 2 * np.abs(x) * 1.5
    torso = step(1 - np.abs(x / 0.98) ** 4 - shoulders, 0.15)
    mediastinum = step(0.13 + 0.03 * np.sin(6 * y) - np.abs(x - 0.01), 0.05) * step(y + 0.85, 0.1)
    trachea = line(x, 0.035) * step(-0.35 - y, 0.08)
    air = np.maximum(lungs[-1], lungs[1])
    return (
        0.60 * torso
        - (0.50 if emphysema else 0.42) * air
        + 0.12 * heart
        + 0.10 * mediastinum
        - 0.10 * trachea
    )


def _bones(x, y, b: Build) -> np.ndarray:
    reach = b.gap + 2 * b.lung_width
    inside = step(reach + 0.05 - np.abs(x), 0.05)
    phase = (y + 0.8 - b.rib_slope * np.abs(x) + 0.28 * (x / reach) ** 2) / b.rib_spacing
    ribs = np.exp(-((((phase % 1) - 0.5) / 0.16) ** 2)) * inside * step(0.62 - y, 0.1) * step(y + 0.72, 0.1)
    spine = step(0.055 - np.abs(x), 0.03) * (0.6 + 0.4 * np.cos(y * 44))
    clavicles = line(y + 0.62 + 0.16 * np.abs(x), 0.022)
    clavicles = clavicles * step(np.abs(x) - 0.08, 0.05) * step(0.72 - np.abs(x), 0.1)
    return 0.075 * ribs + 0.05 * spine + 0.09 * clavicles


def _vessels(rng, x, y, b: Build, lungs, size: int) -> np.ndarray:
    near, hila = 0, 0
    for side in SIDES:
        near = near + line(np.hypot(x - side * (b.gap + 0.06), (y + 0.02) * 0.8), 0.42) * lungs[side]
        hila = hila + line(np.hypot(x - side * (b.gap + 0.03), (y + 0.02) * 0.8), 0.10)
    return 0.07 * near * np.abs(texture(rng, size, 26)) + 0.10 * hila


def _expose(canvas: Canvas, size: int) -> Image.Image:
    """Exposure, contrast, grain, collimation and a marker: what differs between two films of a chest."""
    rng, picture = canvas.rng, canvas.density
    exposed = np.clip(picture * rng.uniform(0.88, 1.15) + rng.uniform(-0.04, 0.08), 0, 1.2)
    picture = exposed ** rng.uniform(0.8, 1.2)
    picture = picture + rng.uniform(0.008, 0.025) * rng.standard_normal(picture.shape, dtype=np.float32)
    picture += 0.012 * texture(rng, size, 5)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    # The technologist's marker stands at the patient's right or left, whatever the findings.
    if rng.random() < 0.7:
        corner = (0.04, 0.05) if rng.random() < 0.5 else (0.88, 0.05)
        text = "R" if corner[0] < 0.5 else "L"
        ImageDraw.Draw(image).text((corner[0] * size, corner[1] * size), text, fill=235, font_size=size / 16)
    return image


def _effusion(c: Canvas) -> None:
    for side in c.sides():
        level = c.rng.uniform(0.02, 0.24)
        lateral = side * c.x - c.build.gap
        meniscus = level - 0.28 * np.clip(lateral, 0, None) ** 2 / c.build.lung_width
        c.density += 0.40 * step(c.y - meniscus, 0.05) * c.lungs[side]


def _pneumothorax(c: Canvas) -> None:
    side = c.side()
    collapse = c.rng.uniform(0.28, 0.5)
    edge = c.depth[side] - collapse + 0.25 * np.clip(c.y, 0, None)  # air rises: the gap is widest at the apex
    outside = c.lungs[side] * step(-edge, 0.03) * step(side * c.x - c.build.gap - 0.05, 0.05)
    c.density += outside * np.minimum(0.02 - c.density, 0) * 0.8
    c.density += 0.22 * line(edge, 0.035) * c.lungs[side] * step(side * c.x - c.build.gap - 0.05, 0.05)


def _consolidation(c: Canvas) -> None:
    side = c.side()
    cx, cy = c.spot(side)
    width, height = c.rng.uniform(0.16, 0.26), c.rng.uniform(0.16, 0.26)
    size = len(c.x)
    blob = 1 - ((c.x - cx) / width) ** 2 - ((c.y - cy) / height) ** 2 + 0.45 * texture(c.rng, size, 9)
    opaque = step(blob, 0.9) * c.lungs[side]
    bronchi = ridges(c.rng, size, 12)
    c.density += opaque * (0.36 - 0.20 * bronchi)


def _edema(c: Canvas) -> None:
    haze = 0.75 + 0.25 * np.abs(texture(c.rng, len(c.x), 12))
    for side in SIDES:
        wing = line(np.hypot(c.x - side * (c.build.gap + 0.16), (c.y - 0.0) * 0.75), 0.33)
        kerley = line((c.y * 22) % 1 - 0.5, 0.16)
        kerley = kerley * step(side * c.x - c.build.gap - 1.45 * c.build.lung_width, 0.06)
        kerley = kerley * step(c.y - 0.02, 0.05)
        c.density += (c.rng.uniform(0.24, 0.32) * wing * haze + 0.14 * kerley) * c.lungs[side]


def _round(
    c: Canvas, radius: float, contrast: float, lobes: float, low: float = -0.45, high: float = 0.25
) -> None:
    side = c.side()
    cx, cy = c.spot(side, low, high)
    angle = np.arctan2(c.y - cy, c.x - cx)
    edge = radius * (1 + lobes * np.sin(3 * angle + c.rng.uniform(0, 6)))
    c.density += contrast * step(edge - np.hypot(c.x - cx, c.y - cy), 0.02) * np.maximum(c.lungs[side], 0.3)


def _nodule(c: Canvas) -> None:
    for _ in range(c.rng.integers(1, 4)):
        _round(c, c.rng.uniform(0.045, 0.065), 0.36, 0.0)


def _mass(c: Canvas) -> None:
    _round(c, c.rng.uniform(0.14, 0.2), 0.38, 0.07)


def _atelectasis(c: Canvas) -> None:
    side = c.side()
    for _ in range(c.rng.integers(2, 4)):
        cx, cy = c.spot(side, 0.0, 0.3)
        slope = c.rng.uniform(-0.35, 0.35)
        along = step(c.rng.uniform(0.18, 0.28) - np.abs(c.x - cx), 0.06)
        c.density += 0.34 * line(c.y - cy - slope * (c.x - cx), 0.02) * along * c.lungs[side]
    raised = step(c.y - c.dome[side] + 0.10, 0.03)  # volume loss pulls the diaphragm up
    c.density += 0.40 * raised * c.lungs[side]


def _emphysema(c: Canvas) -> None:
    side = c.side()  # the large, dark, flat lungs are drawn by _thorax
    cx, cy = c.spot(side, -0.5, -0.25)
    radius = c.rng.uniform(0.09, 0.14)
    bulla = np.hypot(c.x - cx, c.y - cy)
    c.density += (0.10 * line(bulla - radius, 0.012) - 0.05 * step(radius - bulla, 0.02)) * c.lungs[side]


def _fibrosis(c: Canvas) -> None:
    net = ridges(c.rng, len(c.x), 30)
    for side in SIDES:
        low = step(c.y + c.rng.uniform(-0.15, 0.05), 0.3)
        c.density += 0.24 * net * low * c.lungs[side]


def _hernia(c: Canvas) -> None:
    cx, cy = c.build.heart_shift * c.rng.uniform(-0.5, 0.7), c.rng.uniform(0.24, 0.34)
    radius = c.rng.uniform(0.13, 0.17)
    r = np.hypot(c.x - cx, c.y - cy)
    air = step(radius - r, 0.02) * step(cy + 0.02 - c.y, 0.015)  # gas above a fluid level, behind the heart
    c.density += 0.16 * line(r - radius, 0.02) + 0.10 * step(radius - r, 0.02) - 0.42 * air


def _pleural_thickening(c: Canvas) -> None:
    for side in c.sides():
        outer = step(side * c.x - c.build.gap - c.build.lung_width * 0.9, 0.1) + step(-0.45 - c.y, 0.1)
        width = c.rng.uniform(0.20, 0.32)
        rind = step(width - c.depth[side] + 0.08 * np.sin(14 * c.y), 0.06) * np.clip(outer, 0, 1)
        c.density += 0.34 * rind * c.lungs[side]


def _cardiomegaly(c: Canvas) -> None:
    """The wide heart is drawn by _thorax: everything else gives way to it."""


SIGNS: dict[str, Callable[[Canvas], None]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Effusion": _effusion,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Hernia": _hernia,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pleural_Thickening": _pleural_thickening,
    "Pneumothorax": _pneumothorax,
}
