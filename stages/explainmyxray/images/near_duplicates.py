"""Near copies: one film stored twice, at another size or encoding, told by a perceptual hash.

Two copies of a film have different pixels, so no checksum finds them; in two splits they are a leak. The hash is pHash
(the signs of an image's low frequencies; Zauner 2010) of 256 bits, for X-rays of one view are too alike for the usual 64:
there, the distance that finds the copies of `tests/test_near_copies.py` joins different films as well.
"""

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 16  # the hash has 16 x 16 bits
# Bits by which copies may differ. The copies of 60 real films at 224 pixels differ by 6 at most, and no two different
# ones of 1,739 real films by fewer than 44 (tests/test_near_copies.py). All are of children, from one hospital.
MAX_DISTANCE = 12


def perceptual_hash(image: Image.Image) -> bytes:
    """256 bits as 32 bytes, of an image of any size; it is shrunk to 64 x 64 for this."""
    return np.packbits(imagehash.phash(image, SIDE).hash).tobytes()


def groups(hashes: list[bytes]) -> np.ndarray:
    """A number for each of n hashes, the same for near copies, directly or over others: int (n,). Compares every pair."""
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), -1)
    near = [
        place + 1 + np.flatnonzero(np.bitwise_count(words[place + 1 :] ^ own).sum(1) <= MAX_DISTANCE)
        for place, own in enumerate(words)
    ]
    first, second = np.repeat(np.arange(len(near)), [len(each) for each in near]), np.concatenate(near)
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(hashes), len(hashes)))
    return connected_components(graph, directed=False)[1]


def first_of_group(names: list[str], hashes: list[bytes]) -> list[str]:
    """For each image the first name among its near copies; blank for an image that has none."""
    group = groups(hashes)
    first, sizes = {}, np.bincount(group)
    return [first.setdefault(number, name) if sizes[number] > 1 else "" for name, number in zip(names, group)]
