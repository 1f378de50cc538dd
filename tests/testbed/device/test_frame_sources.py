"""Frame sources: order, tracks, sizes, labels, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn.common.errors import ConfigError, DataError
from cnn.data.image_set import ImageSet
from testbed.device.frame_sources import (
    CameraFrame,
    cycled,
    gtsrb_frames,
    open_frames,
    prepared,
    rendered_frames,
)


def image_set(tracks: list[tuple[int, int, int]]) -> ImageSet:
    """(class, track, frames) -> blank images in that order."""
    label = np.concatenate([np.full(n, c) for c, _, n in tracks])
    track = np.concatenate([np.full(n, t) for _, t, n in tracks])
    frame = np.concatenate([np.arange(n) for *_, n in tracks])
    n = len(label)
    size = (20 + frame).astype(np.int16)
    images = np.zeros((n, 8, 8, 3), np.uint8)
    return ImageSet(
        images, label.astype(np.int16), track.astype(np.int32), frame.astype(np.int16), size, size
    )


def test_tracks_are_whole_in_order_shuffled_and_cut_at_splices() -> None:
    data = image_set([(0, 0, 5), (1, 4, 30), (2, 1, 5), (17, 4, 30)])
    frames = list(gtsrb_frames(data, seed=3))
    assert len(frames) == len(data)
    assert [f.track for f in frames] == sorted(f.track for f in frames)
    by_track: dict[int, list[int]] = {}
    for f in frames:
        by_track.setdefault(f.track, []).append(f.frame_in_track)
    assert len(by_track) == 6  # two of the four join two approaches
    assert all(seen == list(range(len(seen))) for seen in by_track.values())
    assert sorted(map(len, by_track.values())) == [5, 5, 12, 12, 18, 18]
    other = [f.name for f in gtsrb_frames(data, seed=4)]
    assert [f.name for f in frames] != other
    assert sorted(f.name for f in frames) == sorted(other)
    assert [f.name for f in frames] == [f.name for f in gtsrb_frames(data, seed=3)]


def test_a_source_goes_round_with_new_track_numbers() -> None:
    frames = list(islice(cycled(lambda: rendered_frames(48, seed=2, tracks=2)), 65))
    assert [f.track for f in frames] == [0] * 30 + [1] * 30 + [2] * 5
    np.testing.assert_array_equal(frames[0].image, frames[60].image)
    assert frames[0].image.shape == (48, 48, 3)
    assert frames[0].label is not None
    assert [f.name for f in open_frames("render", 48, seed=2, n=3)] == [f.name for f in frames[:3]]


def test_a_folder_and_its_subfolders_are_tracks(tmp_path: Path) -> None:
    for path, size in (("b.png", 10), ("a.ppm", 20), ("sub/x.jpg", 30), ("sub/notes.txt", 0)):
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        if size:
            Image.new("RGB", (size, 2 * size), (size, 0, 0)).save(file)
        else:
            file.write_text("no image")
    frames = list(islice(open_frames(f"folder:{tmp_path}", 48), 4))
    assert [(f.name, f.track, f.frame_in_track) for f in frames] == [
        ("a.ppm", 0, 0),
        ("b.png", 0, 1),
        ("x.jpg", 1, 0),
        ("a.ppm", 2, 0),
    ]
    assert [(f.width_px, f.height_px, f.label) for f in frames[:2]] == [
        (20, 40, None),
        (10, 20, None),
    ]
    assert frames[0].image.shape == (48, 48, 3)


def test_what_is_no_source_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLIPROAD_DATA", raising=False)
    with pytest.raises(ConfigError, match="frame source"):
        open_frames("gtsrb:everything", 48)
    with pytest.raises(DataError, match="SLIPROAD_DATA"):
        open_frames("gtsrb:policy-test", 48)
    with pytest.raises(DataError, match="without images"):
        next(open_frames(f"folder:{tmp_path}", 48))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.png"):
        next(open_frames(f"folder:{tmp_path}", 48))


@pytest.mark.slow(16)
def test_real_tracks_of_the_policy_test_part(data_dir: Path) -> None:
    frames = list(open_frames("gtsrb:policy-test", 48, n=300, data=data_dir / "gtsrb"))
    assert len(frames) == 300
    assert {f.label for f in frames} <= set(range(43))
    lengths = np.bincount([f.track for f in frames])
    assert lengths[0] in (12, 18, 29, 30)


def test_prepared_frames_are_the_same_and_made_before_the_first_is_needed() -> None:
    made = 0

    def source() -> Iterator[CameraFrame]:
        nonlocal made
        for frame in open_frames("render", 48, seed=2, n=7):
            made += 1
            yield frame

    frames = prepared(source(), 5)
    assert made == 5
    names = [f.name for f in frames]
    assert names == [f.name for f in open_frames("render", 48, seed=2, n=7)]
