"""Bring a detector: its F1 in every frame, by exit and split, becomes an environment.

    python examples/05_import_a_detector_table.py [--out runs/detector]

The detector finds prohibitory signs (red rings) in rendered street scenes. It has three blocks with
an exit each: red regions at a quarter of the resolution; those that look like a ring at half of it;
the same at full resolution, each box moved to where it fits best. Frames, answers, F1 and bytes are
computed here. Times and powers are made up, and stated in `made_up_cost`. Needs the extra [train].
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from agents import evaluate
from cnn import Topology, import_table
from cnn.render.sign_camera import background
from cnn.render.sign_canvas import EXTENT
from cnn.render.signs import sign_layer
from offload_env import build_world
from testbed import CostModel, power_profile

SIDE = 256
"""Of a frame, pixels."""
WANTED = (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16)
"""Signs with a red ring."""
OTHERS = (11, 12, 13, 14, 17, 18, 25, 33, 35, 38)
ACTIONS = ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3))
"""Exit and split: blocks 1..split run on the device, the rest on the server."""

Frame = NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the frame."""


@dataclass(frozen=True)
class Found:
    """A box, and how much it looks like a sign, 0..1."""

    box: Box
    score: float


# --- Scenes: signs pasted on a background, larger from frame to frame -----------------------------


def drive(rng: np.random.Generator, n: int) -> list[tuple[Frame, list[Box]]]:
    """The frames of one drive past 1 to 4 signs, and the boxes of those that are wanted."""
    behind = background(rng).resize((SIDE, SIDE))
    signs = []
    for _ in range(int(rng.integers(1, 5))):
        label = int(rng.choice(WANTED if rng.random() < 0.6 else OTHERS))
        layer = sign_layer(label, rng).convert("RGBA")
        at, first = rng.uniform(0.15, 0.85, 2) * SIDE, rng.uniform(9, 16)
        signs.append((label, layer, at, first, rng.uniform(1.03, 1.13)))
    light, noise = rng.uniform(0.45, 1.1), rng.uniform(2, 14)
    frames = []
    for k in range(n):
        scene, boxes = behind.copy(), []
        for label, layer, (x, y), first, growth in signs:
            width = first * growth**k
            side = max(1, round(width * EXTENT))
            scene.paste(small := layer.resize((side, side)), _corner(x, y, side), small)
            if label in WANTED:
                boxes.append((x - width / 2, y - width / 2, x + width / 2, y + width / 2))
        seen = light * np.asarray(scene, np.float32) + rng.normal(0, noise, (SIDE, SIDE, 3))
        frames.append((np.clip(seen, 0, 255).astype(np.uint8), boxes))
    return frames


def _corner(x: float, y: float, side: int) -> tuple[int, int]:
    return round(x - side / 2), round(y - side / 2)


# --- The detector ---------------------------------------------------------------------------------


def redness(frame: Frame, step: int) -> NDArray[np.bool_]:
    """Where a frame, reduced `step` times, is red."""
    rgb = np.asarray(Image.fromarray(frame).reduce(step), np.float32)
    return rgb[..., 0] - rgb[..., 1:].max(-1) > 0.15 * rgb.max(-1) + 12


def block1(frame: Frame) -> list[Found]:
    """Red regions at a quarter of the resolution, about as wide as high; the eight largest."""
    mask = redness(frame, 4)
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    found = []
    for rows, columns in ndimage.find_objects(regions):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) >= 2 and 0.5 <= width / height <= 2:
            box = (4 * columns.start, 4 * rows.start, 4 * columns.stop, 4 * rows.stop)
            found.append(Found(box, min(height, width) / max(height, width)))
    return sorted(found, key=lambda f: -_area(f.box))[:8]


def rings(
    frame: Frame, candidates: list[Found], step: int, reach: int, least: float
) -> list[Found]:
    """Those candidates that look like a ring, each box moved and scaled to where it does most.

    Args:
        frame: with them.
        candidates: boxes to try.
        step: reduces the resolution.
        reach: steps of a tenth of the box, in every direction.
        least: likeness of those that are kept.
    """
    mask = redness(frame, step)
    out = []
    for candidate in candidates:
        left, top, right, bottom = candidate.box
        x, y, size = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top)
        shifts = 0.1 * np.arange(-reach, reach + 1)
        scales = 1 + 0.1 * np.arange(-reach - 1, reach + 2)
        moved = np.array(list(product(x + size * shifts, y + size * shifts, size * scales / 2)))
        boxes = moved[:, [0, 1, 0, 1]] + moved[:, 2:] * (-1, -1, 1, 1)
        scores = likeness(mask, boxes / step)
        best = int(scores.argmax())
        if scores[best] >= least:
            left, top, right, bottom = boxes[best].tolist()
            out.append(Found((left, top, right, bottom), float(scores[best])))
    return out


GRID = (np.arange(16) + 0.5) / 16
_RADIUS = np.hypot(*np.meshgrid(2 * GRID - 1, 2 * GRID - 1))
RING = np.where((_RADIUS > 0.72) & (_RADIUS < 1.0), 1.0, 0.0)


def likeness(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation, 0..1, of the red pixels in each box (n, 4) with a ring."""
    first, size = boxes[:, :2, None], boxes[:, 2:, None] - boxes[:, :2, None]
    at = np.clip(first + GRID * size, 0, len(mask) - 1).astype(int)  # (n, 2, 16): x and y
    seen = mask[at[:, 1, :, None], at[:, 0, None, :]].reshape(len(boxes), -1)
    a, b = seen - seen.mean(1, keepdims=True), (RING - RING.mean()).ravel()
    found: NDArray[np.float64] = a @ b / np.sqrt((a * a).sum(1) * (b @ b) + 1e-9)
    return np.maximum(found, 0.0)


def run(frame: Frame, first: int, last: int, found: list[Found]) -> list[Found]:
    """Blocks `first`..`last` on what the block before `first` found."""
    for block in range(first, last + 1):
        if block == 1:
            found = block1(frame)
        else:
            found = rings(frame, found, *((2, 0, 0.2) if block == 2 else (1, 2, 0.4)))
    return found


def sent(frame: Frame, split: int, found: list[Found]) -> tuple[Frame, int]:
    """The frame as the server sees it after `split`, and the bytes on the way there.

    After split 0 all of it as a JPEG; later only the regions found, each as a JPEG.
    """
    if split == 0:
        return jpeg(frame, 60)
    seen, size = np.zeros_like(frame), 4
    for f in found:
        margin = 0.3 * (f.box[2] - f.box[0])
        left, top = (max(0, int(v - margin)) for v in f.box[:2])
        right, bottom = (min(SIDE, int(v + margin) + 1) for v in f.box[2:])
        part, n = jpeg(frame[top:bottom, left:right], 75)
        seen[top:bottom, left:right] = part
        size += n + 8  # and the region's place
    return seen, size


def jpeg(image: Frame, quality: int) -> tuple[Frame, int]:
    """An image after JPEG, and its bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer)), buffer.tell()


# --- Quality: F1 of a frame's boxes ---------------------------------------------------------------


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (_area(a) + _area(b) - both)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def f1(found: list[Found], true: list[Box]) -> float:
    """2 hits / (found + true); a hit overlaps a sign of its own by 0.7. 1 if both are none."""
    left, hits = list(true), 0
    for f in sorted(found, key=lambda f: -f.score):
        best = max(left, key=lambda box: overlap(f.box, box), default=None)
        if best is not None and overlap(f.box, best) >= 0.7:
            left.remove(best)
            hits += 1
    return 2 * hits / (len(found) + len(true)) if found or true else 1.0


def measured(seed: int, drives: int, n: int) -> pd.DataFrame:
    """One row a frame and action: what `sliproad cnn table --import` reads."""
    rng, rows = np.random.default_rng(seed), []
    for track in range(drives):
        for k, (frame, true) in enumerate(drive(rng, n)):
            after = {0: list[Found]()}
            for block in (1, 2, 3):
                after[block] = run(frame, block, block, after[block - 1])
            for exit, split in ACTIONS:
                found, size = after[exit], 0
                if split < exit:
                    seen, size = sent(frame, split, after[split])
                    found = run(seen, split + 1, exit, after[split])
                rows.append(
                    {
                        "frame": track * n + k,
                        "track": track,
                        "exit": exit,
                        "split": split,
                        "confidence": float(np.mean([f.score for f in found])) if found else 0.5,
                        "quality": f1(found, true),
                        "payload_bytes": size,
                    }
                )
    return pd.DataFrame(rows)


# --- The world ------------------------------------------------------------------------------------


def made_up_cost(topology: Topology, payload_bytes: NDArray[np.int32]) -> CostModel:
    """Made up: blocks of 8, 20 and 60 ms on the device, a server ten times as fast.

    A crop or a frame takes 2 ms to encode. Powers are published ones of a Raspberry Pi 4 and of
    an LTE modem.
    """
    until = np.cumsum([0.0, 8.0, 20.0, 60.0])
    exit, split, local = topology.exit_of, topology.split_of, topology.is_local
    rest = np.where(local, 0.0, until[exit] - until[split])
    power = power_profile("raspberry-pi-4+lte")
    return CostModel(
        name="made up",
        source="made up in examples/05_import_a_detector_table.py",
        bundle_hash="",
        slowdown=1.0,
        device_ms=tuple((until[split] + np.where(local, 0.0, 2.0)).tolist()),
        fallback_ms=tuple(rest.tolist()),
        server_ms=tuple((rest / 10).tolist()),
        payload_bytes=tuple(payload_bytes.mean(0).round().astype(int).tolist()),
        wire_overhead_bytes=300.0,
        net_ms=1.0,
        jitter=0.1,
        idle_mw=power.device.idle_mw,
        busy_mw=power.device.busy_mw,
        power_source=f"published: {power.device.source}",
        radio=power.radio,
        topology=topology,
    )


SCENARIO = """
[frames]
train = "{0}/train.npz"
test = "{0}/test.npz"
[device]
cost_model = "{0}/cost.json"
[link]
kind = "highway-lte"
train_traces = 12
test_traces = 12
duration_s = 40.0
[timing]
n_frames = 60
[constraint]
accuracy_margin = 0.02   # mean F1 may be so much below that of the whole detector on the device
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/detector"), help="folder")
    parser.add_argument("--drives", type=int, default=24, help="drives to train on")
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)

    for name, seed, drives in (("train", 1, args.drives), ("test", 2, args.drives // 2)):
        measured(seed, drives, 10).to_parquet(out / f"{name}.parquet", index=False)
        # The same as: sliproad cnn table --import train.parquet --out train.npz
        import_table(out / f"{name}.parquet").table.save(out / f"{name}.npz")
    train = import_table(out / "train.parquet").table
    made_up_cost(train.topology, train.payload_bytes).save(out / "cost.json")
    (out / "detector.toml").write_text(SCENARIO.format(out), encoding="utf-8")

    world, test = (build_world(out / "detector.toml", split) for split in ("train", "test"))
    print(f"{len(train)} frames to train on, {len(test.table)} to test on; mean of test frames")
    for action in test.topology.actions:
        mean_f1, size = (v[:, action.index].mean() for v in (test.correct, test.sent_bytes))
        print(f"  {action.name}: F1 {mean_f1:.3f}, {size:6.0f} bytes on the uplink")

    found = evaluate(world, test, {}, drives=12)
    print(f"on {found.drives} test drives, floor: mean F1 of {found.floor:.3f}")
    for name in sorted(found.policies, key=lambda name: found.policies[name]["cost"]):
        s = found.policies[name]
        kept = "" if found.keeps_floor(name) else " (below the floor)"
        print(
            f"  {name}: cost {s['cost']:.3f}, F1 {s['accuracy']:.3f}, {s['delay_ms']:.1f} ms, "
            f"{s['energy_mj']:.1f} mJ{kept}"
        )
    print(f"  bound: no policy that keeps the floor costs less than {found.bound_cost:.3f}")


if __name__ == "__main__":
    main()
