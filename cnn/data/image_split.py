"""The split of a user's images into the parts that the network and the policies learn on.

``cnn-fit`` trains the network, ``cnn-val`` stops its training and calibrates it; the network never
meets the rest, its test part, of which ``policy-train`` and ``policy-test`` are the halves. Images
that belong together (a track, copies of one image) stay together, each class is divided in the same
proportions, and the result follows from the images and the seed, not from names or order of files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, shown
from cnn.data.found_images import ListedImages
from cnn.data.image_set import PARTS, SHARES, Part

_log = logging.getLogger(__name__)

AnyPart = Part | Literal["test", "all"]
ANY_PARTS: Final[tuple[AnyPart, ...]] = ("test", *PARTS, "all")
"""``test`` is what the network has not met: policy-train and policy-test together."""
_FIT, _VAL, _TRAIN, _TEST = range(4)


@dataclass(frozen=True, slots=True)
class ImageSplit:
    """Which image belongs to which part.

    Attributes:
        seed: of the draw.
        part: int8 (N,), number in `PARTS`; -1 for an image that is left out because the set's own
            test part holds it, too.
        sha256: of all images and their parts, in hexadecimal: equal for the same split alone.
    """

    seed: int
    part: NDArray[np.int8]
    sha256: str

    def rows(self, part: AnyPart) -> NDArray[np.intp]:
        """Numbers of the images of a part, ascending, intp (n,)."""
        if part == "all":
            return np.arange(len(self.part))
        wanted = (_TRAIN, _TEST) if part == "test" else (PARTS.index(part),)
        return np.flatnonzero(np.isin(self.part, wanted))

    def to_json(self) -> dict[str, Any]:
        """What a bundle keeps: enough to make the split again, and to know that it is the same."""
        counts = {part: len(self.rows(part)) for part in PARTS}
        return {"seed": self.seed, "images": counts, "sha256": self.sha256}


def split_images(data: ListedImages, seed: int = 0) -> ImageSplit:
    """Divide a set; a part that the set itself names stays as it is.

    The shares are `cnn.data.image_set.SHARES`. Of a set with its own test part, that part is
    halved for the policies, and the rest, without the images that the test part repeats, is for the
    network; its own validation part is ``cnn-val``.

    Each class gets its share of each part within one image (within one track, where there are
    tracks); what rounding takes from a part in one class it gives back in another.

    Args:
        data: the images.
        seed: of the draw within each class.
    """
    part = np.full(len(data), -1, np.int8)
    given = data.given
    test, val = given == "test", given == "validation"
    rest = ~test & ~val
    left_out = _repeated(data, rest | val, test)
    left_out |= _repeated(data, rest, val & ~left_out)
    shares = [SHARES[p] for p in PARTS]
    if test.any():
        _divide(part, data, test, {_TRAIN: shares[_TRAIN], _TEST: shares[_TEST]}, seed)
        shares[_TRAIN] = shares[_TEST] = 0.0
    if val.any():
        part[val & ~left_out] = _VAL
        shares[_FIT], shares[_VAL] = shares[_FIT] + shares[_VAL], 0.0
    _divide(part, data, rest & ~left_out, {k: s for k, s in enumerate(shares) if s}, seed)
    if left_out.any():
        _log.warning(
            "%s: %d images are left out, because another part of the set holds them, too",
            data.found.path,
            left_out.sum(),
        )
    return ImageSplit(seed, part, _sha256(data, part))


def same_split(data: ListedImages, stored: Mapping[str, Any]) -> ImageSplit:
    """The split that a bundle was trained with, made again.

    Args:
        data: the images, which may lie elsewhere or have other names.
        stored: from `ImageSplit.to_json`.

    Raises:
        DataError: if it cannot be the same, because images were added, removed or changed.
    """
    seed = stored.get("seed") if isinstance(stored, Mapping) else None
    if type(seed) is not int or seed < 0 or type(stored.get("sha256")) is not str:
        raise DataError(
            f"a stored split with seed {shown(seed)}",
            expected="the split that `sliproad cnn train` stored",
            hint="train the network again",
        )
    split = split_images(data, seed)
    if split.sha256 != stored["sha256"]:
        raise DataError(
            f"{data.found.path}: {len(data)} images that are not those the network was trained "
            "with, so its training images cannot be told from the others",
            expected="the same images and labels as in its training",
            hint="give that set, or --part all for a set that the network has never met",
        )
    return split


def _repeated(
    data: ListedImages, where: NDArray[np.bool_], other: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Images of one part that another part holds, too."""
    return where & np.isin(data.key, data.key[other])


def _divide(
    part: NDArray[np.int8],
    data: ListedImages,
    where: NDArray[np.bool_],
    shares: Mapping[int, float],
    seed: int,
) -> None:
    """Give each image of `where` a part: in each class by `shares`, images of one key together."""
    rows = np.flatnonzero(where)
    keys, group = np.unique(data.key[rows], return_inverse=True)
    label = _most_frequent(group, data.label[rows], len(keys))
    wanted = np.array(list(shares.values())) / sum(shares.values())
    owed = np.zeros(len(shares))
    chosen = np.empty(len(keys), np.int8)
    classes, first = np.unique(np.sort(label), return_index=True)
    by_class = np.split(np.argsort(label, kind="stable"), first[1:])
    for c, of_class in zip(classes.tolist(), by_class, strict=True):
        counts = _counts(len(of_class), wanted, owed)
        owed += wanted * len(of_class) - counts
        drawn = np.random.default_rng([seed, c]).permutation(of_class)
        chosen[drawn] = np.repeat(np.array(list(shares), np.int8), counts)
    part[rows] = chosen[group]


def _counts(n: int, wanted: NDArray[np.float64], owed: NDArray[np.float64]) -> NDArray[np.int64]:
    """`n` in whole numbers near the shares `wanted`, each less than 1 away.

    Rounded up is where most is missing, counted with what is `owed` from other classes.
    """
    exact = np.round(wanted * n, 9)
    counts = np.floor(exact).astype(np.int64)
    left = n - int(counts.sum())
    missing = np.where(exact > counts, exact - counts + owed, -np.inf)
    counts[np.argsort(-missing, kind="stable")[:left]] += 1
    return counts


def _most_frequent(
    group: NDArray[np.intp], label: NDArray[np.int64], n_groups: int
) -> NDArray[np.int64]:
    """The class that most images of a group have, the lowest of several, int64 (n_groups,)."""
    pairs, count = np.unique(np.stack([group, label]), axis=1, return_counts=True)
    order = np.lexsort((-pairs[1], count, pairs[0]))  # the last of a group is its most frequent
    found = np.empty(n_groups, np.int64)
    found[pairs[0][order]] = pairs[1][order]
    return found


def _sha256(data: ListedImages, part: NDArray[np.int8]) -> str:
    columns = (data.key, data.label.astype(np.uint64), part.astype(np.int64).astype(np.uint64))
    lines = np.stack(columns, 1)
    ordered = lines[np.lexsort(lines.T[::-1])]
    names = "\n".join(data.class_names).encode()
    return hashlib.sha256(ordered.astype("<u8").tobytes() + names).hexdigest()
