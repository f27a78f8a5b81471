"""Near duplicates: one film stored twice, at another size or encoding, found by a perceptual hash.

Their pixels differ, so that no checksum finds them; in two splits they are a leak. The hash is pHash (the
signs of an image's low frequencies; Zauner 2010) of 256 bits, for X-rays of one view are too alike for the
usual 64: there, the distance that finds the copies of `tests/test_near_duplicates.py` joins different films
as well.
"""

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 16  # the hash has 16 x 16 bits
# Bits by which near duplicates may differ. The copies of 60 real films at 224 pixels differ by 6 at most, and
# no two different ones of 1,739 real films by fewer than 44 (tests/test_near_duplicates.py). All are of
# children, from one hospital.
MAX_DISTANCE = 12


def perceptual_hash(image: Image.Image) -> bytes:
    """256 bits as 32 bytes, of an image of any size; it is shrunk to 64 x 64 for this."""
    return np.packbits(imagehash.phash(image, SIDE).hash).tobytes()


def group_near_duplicates(hashes: list[bytes]) -> np.ndarray:
    """A number for each of n hashes, the same for near duplicates, directly or by way of others: int (n,).

    Compares every pair: time grows with n squared, memory with n.
    """
    count = len(hashes)
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(count, -1)  # (n, 4): 256 bits as four words
    pairs = [near_pairs(words, index) for index in range(count)]
    first, second = np.concatenate(pairs, axis=1)
    # Hashes are the nodes of a graph and pairs its edges: a group is what hangs together.
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    return groups


def near_pairs(words: np.ndarray, index: int) -> np.ndarray:
    """The pairs of the hash at `index` with those after it that are near: int (2, number of pairs)."""
    later = words[index + 1 :]
    distances = np.bitwise_count(later ^ words[index]).sum(axis=1)  # the bits that differ
    second = index + 1 + np.flatnonzero(distances <= MAX_DISTANCE)
    first = np.full_like(second, index)
    return np.stack([first, second])


def first_of_group(names: list[str], hashes: list[bytes]) -> list[str]:
    """For each image the first name among its near duplicates; blank for an image that has none."""
    groups = group_near_duplicates(hashes)
    sizes = np.bincount(groups)
    first_name: dict[int, str] = {}
    result = []
    for name, group in zip(names, groups, strict=True):
        first_name.setdefault(group, name)
        result.append(first_name[group] if sizes[group] > 1 else "")
    return result
