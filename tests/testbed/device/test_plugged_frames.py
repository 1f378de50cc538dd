"""A plug-in's frame source: cycled, checked, and read ahead only if it is not live."""

from __future__ import annotations

import importlib
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from distributions import install

from cnn.common.errors import ConfigError, DataError
from testbed.device.frame_sources import open_frames, prepared

MODULE = """
from dataclasses import replace
import numpy as np
from testbed import CameraFrame

made = []

def frame(size, number, **more):
    made.append(number)
    image = np.full((size, size, 3), number, np.uint8)
    given = dict(image=image, label=None, track=number // 2, frame_in_track=number % 2,
                 width_px=9, height_px=7, name=f"f{number}")
    return CameraFrame(**(given | more))

def grey(setting, size, seed, class_names):
    for number in range(int(setting or 3)):
        yield frame(size, number, label=len(class_names) - 1 if class_names else None)

def live(setting, size, seed, class_names):
    for number in range(100):
        one = frame(size, number)
        yield replace(one, refresh=lambda one=one: replace(one, image=one.image + 100))

def wrong(setting, size, seed, class_names):
    changes = {
        "float": dict(image=np.zeros((size, size, 3))),
        "small": dict(image=np.zeros((size, size - 1, 3), np.uint8)),
        "label": dict(label=len(class_names)),
        "negative": dict(label=-1),
        "track": dict(track=-1),
        "width": dict(width_px=0),
    }
    yield frame(size, 0)
    if setting == "none":
        yield None
    if setting == "dead":
        raise OSError("unplugged")
    yield frame(size, 1, **changes[setting]) if setting in changes else setting
"""


@pytest.fixture(autouse=True)
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = "\n".join(f"{name} = frames_plug:{name}" for name in ("grey", "live", "wrong"))
    install(tmp_path, "frames-plug", MODULE, {"sliproad.frame_sources": points})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "frames_plug", raising=False)


def test_a_source_that_ends_begins_again_with_new_tracks() -> None:
    frames = list(open_frames("grey", 4, n=7, class_names=("stop", "go")))
    assert [int(f.image[0, 0, 0]) for f in frames] == [0, 1, 2, 0, 1, 2, 0]
    assert [f.track for f in frames] == [0, 0, 1, 2, 2, 3, 4]
    assert {f.label for f in frames} == {1}
    assert frames[0].image.shape == (4, 4, 3)


def test_a_live_one_is_not_read_ahead_and_shows_the_newest_image() -> None:
    frames_plug = importlib.import_module("frames_plug")

    for source, n in (("grey:50", 20), ("live", 1)):
        frames_plug.made.clear()
        frames = prepared(open_frames(source, 4), 20)
        assert len(frames_plug.made) == n
        first = next(frames)
    assert first.refresh is not None
    np.testing.assert_array_equal(first.refresh().image, 100)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("float", r"an image of type float64 \(4, 4, 3\)"),
        ("small", r"uint8 \(4, 3, 3\), expected uint8 \(4, 4, 3\)"),
        ("label", "label 2"),
        ("negative", "label -1"),
        ("track", "below their lowest: f1"),
        ("width", "below their lowest: f1"),
        ("text", r"raised TypeError \(it gives str, no testbed.CameraFrame\)"),
        ("dead", r"raised OSError \(unplugged\)"),
    ],
)
def test_what_is_wrong_with_a_frame_is_one_line(setting: str, said: str) -> None:
    frames = open_frames(f"wrong:{setting}", 4, class_names=("stop", "go"))
    next(frames)
    with pytest.raises(ConfigError, match=f"frame source wrong of frames-plug 1.0 .*{said}"):
        next(frames)


def test_a_source_without_a_frame_is_refused() -> None:
    with pytest.raises(DataError, match=r"frame source grey of frames-plug 1.0 .* without a frame"):
        next(open_frames("grey:0", 4))
    assert len(list(islice(open_frames("grey:1", 4), 3))) == 3


def test_an_unknown_source_lists_the_plug_ins() -> None:
    with pytest.raises(ConfigError, match=r"or a plug-in: grey, live, wrong"):
        open_frames("gray", 4)
