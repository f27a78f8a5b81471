"""Near duplicates: the same film at another size or encoding is found, another film is not."""

import io

import imagehash
import numpy as np
import pytest
from PIL import Image

from conftest import REAL
from explainmyxray.images.decoding import decode
from explainmyxray.images.near_duplicates import (
    MAX_DISTANCE,
    first_of_group,
    group_near_duplicates,
    perceptual_hash,
)
from explainmyxray.sources import phantom

FILMS = REAL / "chest_xray_pneumonia"


def prepared(image: Image.Image) -> bytes:
    return perceptual_hash(image.resize((224, 224), Image.Resampling.BICUBIC))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return decode(file.getvalue())


def distance(one: bytes, other: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)).sum())


@pytest.fixture(scope="module")
def films() -> dict[str, dict[str, Image.Image]]:
    """The 1,739 real films at 224 pixels (`train`), and the 60 that are there in their original size too
    (`originals`).
    """
    if not FILMS.exists():
        pytest.skip(f"{FILMS} is not here")
    return {
        part: {path.stem: decode(path.read_bytes()) for path in sorted((FILMS / part).rglob("*.jpeg"))}
        for part in ("train", "originals")
    }


@pytest.fixture(scope="module")
def real(films) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The hashes of both."""
    hashed = [{name: prepared(image) for name, image in part.items()} for part in films.values()]
    return hashed[0], hashed[1]


def test_every_real_film_is_found_beside_its_original(real):
    small, originals = real
    assert len(originals) == 60
    assert all(distance(originals[name], small[name]) <= 6 for name in originals)
    names = [*small, *(f"original {name}" for name in originals)]
    found = dict(zip(names, first_of_group(names, [*small.values(), *originals.values()])))
    for name in originals:
        assert found[name] == found[f"original {name}"] != ""


def test_no_two_different_real_films_are_taken_for_copies(real, films):
    """Nine pairs among the 1,739 are near duplicates: all nine have the same pixels."""
    small, _ = real
    pixels = {name: image.tobytes() for name, image in films["train"].items()}
    names = list(small)
    bits = np.array([np.frombuffer(small[name], np.uint64) for name in names])
    near, others = 0, []
    for place, own in enumerate(bits):
        for other, bits_apart in enumerate(np.bitwise_count(bits[place + 1 :] ^ own).sum(1), place + 1):
            if pixels[names[place]] == pixels[names[other]]:
                near += bits_apart <= MAX_DISTANCE
            else:
                others.append(bits_apart)
    assert near == 9
    assert min(others) == 44


def test_the_usual_64_bits_are_too_few(films):
    """At the distance that finds all 60 copies, 64 bits take different films for copies too."""
    train, originals = (
        {
            name: imagehash.phash(image.resize((224, 224), Image.Resampling.BICUBIC))
            for name, image in part.items()
        }
        for part in films.values()
    )
    needed = max(each - train[name] for name, each in originals.items())
    bits = np.array([each.hash.ravel() for each in train.values()])
    pairs = sum(int(((bits[place + 1 :] != own).sum(1) <= needed).sum()) for place, own in enumerate(bits))
    assert pairs > 9  # the nine pairs of identical pixels, and others


def test_other_sizes_and_encodings_are_found_and_other_phantoms_are_not():
    films = [film.read() for film in phantom.sample(phantom.PIPELINE, 3, 60, 512)]
    copies = [jpeg(films[0], 20), films[1].resize((128, 160)), films[2].point(lambda value: value * 0.9)]
    found = group_near_duplicates([prepared(image) for image in films + copies])
    assert list(found[60:]) == list(found[:3])
    assert len(set(found)) == 60


def test_the_first_name_of_a_group_stands_for_it():
    near, far = bytes(32), b"\xff" * 32
    edge = b"\xff\x0f" + bytes(30)  # 12 bits from `near`
    beyond = b"\x00\x00\xff\x1f" + bytes(28)  # 13 bits from `near`, 25 from `edge`
    assert MAX_DISTANCE == 12
    assert first_of_group(["a", "b", "c", "d"], [near, far, edge, beyond]) == ["a", "", "a", ""]
