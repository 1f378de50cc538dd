"""The frame table: the real network's answers for every frame and every action.

One row a frame, tracks contiguous and in driving order. It is the environment's ground truth about
images: nothing in it is simulated. An answer is right or wrong, or (of a detector, say) has a
quality from 0 to 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, narrowed, shown, smallest_unsigned
from cnn.common.files import replacing
from cnn.common.outside import file_bytes, json_object, npz_arrays, refusing
from cnn.topology import SHIPPED, Topology

FEATURES: Final = ("brightness", "contrast", "sharpness", "width_px", "height_px", "frame_in_track")
"""Columns of `FrameTable.features`, all known before any convolution runs.

brightness and contrast: mean and spread of luma in [0, 1]; sharpness: root mean square
difference of neighbours' luma; width_px, height_px: size of the original crop, pixels;
frame_in_track: number of frames of this track already seen.
"""
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "label": (-1, math.inf),
    "frame": (0, math.inf),
    "prediction": (0, math.inf),
    "confidence": (0, 1),
    "payload_bytes": (0, math.inf),
}
MAX_BYTES: Final = 512 * 2**20
"""Of a file's arrays; a frame has 172 bytes, so that is three million frames."""
_AGAIN: Final = "make the table again with `sliproad cnn table`"
_CONFIDENCE_STEPS: Final = 2**16 - 1
"""A saved confidence is a uint16, a share of this."""
EMBEDDED: Final = (
    *("policy-test", "policy-train", "policy-train-varied"),
    *("cifar10-train", "cifar10-test", "dusk-train", "dusk-test"),
)
"""Names of the tables shipped in the package."""
Correct = NDArray[np.bool_] | NDArray[np.float64]
"""Whether answers are right; or their qualities, [0, 1]."""
LUMA_WEIGHTS: Final = (0.299, 0.587, 0.114)
"""Weights of R, G, B in luma: ITU-R BT.601."""
_LUMA_PER_LEVEL: Final = np.array(LUMA_WEIGHTS, np.float32) / np.float32(255)


def luma(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB uint8 (H, W, 3) -> luma float32 (H, W) in [0, 1]."""
    # A matrix product of uint8 with float32 would take numpy's slow path.
    out: NDArray[np.float32] = image.astype(np.float32) @ _LUMA_PER_LEVEL
    return out


def frame_features(
    image: NDArray[np.uint8], width_px: int, height_px: int, frame_in_track: int
) -> NDArray[np.float32]:
    """The cheap features of one frame in the order of `FEATURES`.

    Training (the frame table) and the device (live) both call it, so a policy sees the same six
    numbers in both.

    Every frame pays for them before any decision, so they use every second row and column only,
    with few array operations (9 us instead of 31 at 48 x 48, measured).

    Args:
        image: the network's input, uint8 (H, W, 3), at least 3 x 3 pixels.
        width_px: width of the original crop, pixels.
        height_px: height of the original crop, pixels.
        frame_in_track: number of frames of this track already seen.

    Returns:
        float32 (6,): brightness (mean of luma, 0..1), contrast (standard deviation of
        luma), sharpness (root mean square of the differences between horizontal and
        vertical neighbours), width_px, height_px, frame_in_track; the first three over
        every second row and column.

    Raises:
        DataError: if `image` is not a colour image of at least 3 x 3 pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 3:
        raise DataError(
            f"frame of shape {image.shape}",
            expected="uint8 (height, width, 3), at least 3 x 3 pixels",
            hint="resize the frame with `cnn.data.image_file.resize_rgb`",
        )
    y = luma(image[::2, ::2])
    flat = y.ravel()
    brightness = float(flat.sum()) / flat.size
    variance = float(flat.dot(flat)) / flat.size - brightness * brightness
    across, down = (y[:, 1:] - y[:, :-1]).ravel(), flat[y.shape[1] :] - flat[: -y.shape[1]]
    steps = float(across.dot(across)) + float(down.dot(down))
    sharpness = math.sqrt(steps / (across.size + down.size))
    contrast = math.sqrt(max(0.0, variance))  # rounding can take it below 0
    return np.array(
        (brightness, contrast, sharpness, width_px, height_px, frame_in_track), np.float32
    )


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Answers of one model bundle on one set of frames.

    Attributes:
        label: int16 (N,), true class, -1 unknown. For scoring only, never part of an
            observation.
        track: int32 (N,), running track number, 0.. in table order.
        frame: int16 (N,), frame number within its track, from 0.
        prediction: int16 (N, A), class answered by each action.
        confidence: float32 (N, A), calibrated probability of that class, [0, 1].
        payload_bytes: int32 (N, A), bytes that cross the uplink (0 if local).
        features: float32 (N, 6), cheap features, columns as in `FEATURES`.
        bundle_hash: content hash of the model bundle that answered.
        source: where the frames come from, such as ``GTSRB policy-test``.
        topology: of that network, with A actions.
        quality: float32 (N, A), quality of each answer, [0, 1], such as the F1 of a frame's
            detections; None where an answer is right or wrong.

    Raises:
        DataError: if the arrays do not fit together, or hold a number out of its range.
    """

    label: NDArray[np.int16]
    track: NDArray[np.int32]
    frame: NDArray[np.int16]
    prediction: NDArray[np.int16]
    confidence: NDArray[np.float32]
    payload_bytes: NDArray[np.int32]
    features: NDArray[np.float32]
    bundle_hash: str
    source: str
    topology: Topology = SHIPPED
    quality: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.label)
        shapes = {
            "track": (n,),
            "frame": (n,),
            "prediction": (n, self.topology.n_actions),
            "confidence": (n, self.topology.n_actions),
            "payload_bytes": (n, self.topology.n_actions),
            "features": (n, len(FEATURES)),
        }
        ranges = _RANGES
        if self.quality is not None:
            shapes["quality"] = (n, self.topology.n_actions)
            ranges = _RANGES | {"quality": (0, 1)}
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            _check(found == shape, f"{name} has shape {found}", f"{shape}")
        steps = np.diff(self.track, prepend=-1)
        contiguous = n > 0 and steps[0] == 1 and not np.any((steps < 0) | (steps > 1))
        _check(
            bool(contiguous),
            f"{n} frames, or tracks in disorder",
            "at least one frame, tracks contiguous and numbered from 0",
        )
        for name, (low, high) in ranges.items():
            values = getattr(self, name)
            fits = (values >= low) & (values <= high)  # NaN does not
            wrong = values[~fits]
            _check(
                not wrong.size,
                f"{name} holds {wrong.flat[0] if wrong.size else 0:g}",
                f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}",
            )
        finite = bool(np.isfinite(self.features).all())
        _check(finite, "a feature is no finite number", "finite features")

    def __len__(self) -> int:
        return len(self.label)

    @property
    def correct(self) -> Correct:
        """How right each action's answer is, (N, A).

        bool, whether it is the true class; or, of a table with qualities, these as float64.
        """
        if self.quality is not None:
            return self.quality.astype(np.float64)
        return np.equal(self.prediction, self.label[:, None])

    @property
    def measure(self) -> str:
        """Name of the mean of `correct`: ``accuracy``, or ``quality`` if the table has them."""
        return "accuracy" if self.quality is None else "quality"

    @property
    def n_tracks(self) -> int:
        """Number of tracks."""
        return int(self.track[-1]) + 1

    def track_starts(self) -> NDArray[np.intp]:
        """First row of every track, ascending, intp (n_tracks,)."""
        return np.flatnonzero(np.diff(self.track, prepend=-1))

    def save(self, path: Path) -> None:
        """Write a compressed ``.npz``, whole or not at all."""
        about = {"bundle_hash": self.bundle_hash, "source": self.source, "format": 1}
        meta = json.dumps({**about, "topology": self.topology.to_json()})
        more: dict[str, Any] = {} if self.quality is None else {"quality": self.quality}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                label=self.label,
                track=self.track,
                frame=self.frame,
                prediction=smallest_unsigned(self.prediction),
                confidence=np.round(self.confidence * _CONFIDENCE_STEPS).astype(np.uint16),
                payload_bytes=self.payload_bytes,
                features=self.features,
                meta=np.frombuffer(meta.encode(), np.uint8),
                **more,
            )

    @classmethod
    def load(cls, path: Path) -> FrameTable:
        """Read a table; raises `DataError` if it is missing or damaged."""
        with refusing(
            DataError,
            f"frame table {path}",
            expected="a file written by `sliproad cnn table`",
            hint=_AGAIN,
        ):
            arrays = npz_arrays(file_bytes(path, MAX_BYTES), MAX_BYTES)
            meta = json_object(arrays.pop("meta").tobytes())
            if arrays["confidence"].dtype != np.uint16:
                raise ValueError(f"confidence of type {arrays['confidence'].dtype}")
            if not all(type(meta[key]) is str for key in ("bundle_hash", "source")):
                raise ValueError("bundle_hash or source is no text")
            topology = Topology.stored_in(meta)
            quality = arrays.get("quality")
            return cls(
                label=narrowed(arrays["label"], np.int16, f"{path}: label"),
                track=narrowed(arrays["track"], np.int32, f"{path}: track"),
                frame=narrowed(arrays["frame"], np.int16, f"{path}: frame"),
                prediction=narrowed(arrays["prediction"], np.int16, f"{path}: prediction"),
                confidence=(arrays["confidence"] / _CONFIDENCE_STEPS).astype(np.float32),
                payload_bytes=narrowed(arrays["payload_bytes"], np.int32, f"{path}: payload_bytes"),
                features=arrays["features"].astype(np.float32),
                bundle_hash=meta["bundle_hash"],
                source=meta["source"],
                topology=topology,
                quality=None if quality is None else quality.astype(np.float32),
            )


def _check(ok: bool, given: str, expected: str) -> None:
    if not ok:
        raise DataError(f"frame table: {given}", expected=expected, hint=_AGAIN)


def join_tables(tables: Sequence[FrameTable], source: str) -> FrameTable:
    """One table of the tracks of several, numbered on.

    Args:
        tables: at least one, all answered by the same bundle.
        source: text kept in the joined table.

    Raises:
        DataError: if there is no table, different bundles answered, or only some have qualities.
        ConfigError: if they are of networks with other exits or splits.
    """
    hashes = sorted({table.bundle_hash for table in tables})
    if len(hashes) != 1:
        raise DataError(
            f"{len(tables)} frame tables of {len(hashes)} model bundles",
            expected="at least one table, all of one bundle",
            hint="make the tables with the same bundle",
        )
    measures = sorted({table.measure for table in tables})
    if len(measures) != 1:
        raise DataError(
            f"{len(tables)} frame tables, some of them with qualities",
            expected="qualities in all of them or in none",
            hint="join the others",
        )
    topology = tables[0].topology
    for table in tables:
        topology.require_same(table.topology, f"a frame table ({table.source})", tables[0].source)
    first = np.cumsum([0, *(table.n_tracks for table in tables[:-1])])

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(table, name) for table in tables])

    return FrameTable(
        label=joined("label"),
        track=np.concatenate(
            [table.track + np.int32(n) for table, n in zip(tables, first, strict=True)]
        ),
        frame=joined("frame"),
        prediction=joined("prediction"),
        confidence=joined("confidence"),
        payload_bytes=joined("payload_bytes"),
        features=joined("features"),
        bundle_hash=hashes[0],
        source=source,
        topology=topology,
        quality=None if measures == ["accuracy"] else joined("quality"),
    )


def embedded_table(name: str) -> FrameTable:
    """A frame table shipped in the package.

    ``policy-test``, ``policy-train``, or ``policy-train-varied``: the latter's tracks and
    three more drives past the same signs (`cnn.make_frame_table`), on which policies learn.

    Raises:
        DataError: if there is none of that name.
    """
    if name not in EMBEDDED:
        raise DataError(
            f"frame table {shown(name)}",
            expected=f"a path ending in .npz, or one of {', '.join(EMBEDDED)}",
            hint="correct the name",
        )
    with resources.as_file(resources.files("cnn") / "assets" / f"{name}.npz") as path:
        return FrameTable.load(path)
