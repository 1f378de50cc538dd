"""The renderer: shapes against their own symmetries, geometry against closed forms, and
the whole against the shipped network, which never saw a rendered image."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from cnn.common.errors import ConfigError
from cnn.render.rendered_tracks import RenderedFrame, render_set, render_tracks
from cnn.render.sign_camera import View, sign_to_image
from cnn.render.sign_canvas import LAYER_PX, Material, inset
from cnn.render.signs import N_SIGNS, SIGN_NAMES, outline_points, sign_masks

MIRROR_PAIRS = [(19, 20), (33, 34), (36, 37), (38, 39)]
OWN_MIRROR = [11, 12, 13, 15, 17, 18, 22, 26, 30, 35]


def painted(label: int) -> np.ndarray:
    """All materials of a sign as one array (LAYER_PX, LAYER_PX, materials)."""
    empty = np.zeros((LAYER_PX, LAYER_PX), np.float32)
    masks = sign_masks(label)
    return np.dstack([masks.get(m, empty) for m in Material if m is not Material.NONE])


def near_view(**changes: float) -> View:
    given = {
        "sign_px": 100.0, "yaw_deg": 0.0, "pitch_deg": 0.0, "roll_deg": 0.0, "distance": 1e6,
        "shift_x": 0.0, "shift_y": 0.0, "look_x": 128.0, "look_y": 128.0, "background_px": 80.0,
    }  # fmt: skip
    return View(**(given | changes))


@pytest.mark.parametrize("label", range(N_SIGNS))
def test_masks_are_shares_inside_the_plate(label: int) -> None:
    shares = painted(label)
    total = shares.sum(2)
    assert total.max() <= 1 + 3 / 255  # materials never overlap (8 bits, each rounded)
    assert total[LAYER_PX // 2, LAYER_PX // 2] > 0.99  # the plate has no hole
    assert total[:8].max() == total[:, :8].max() == 0.0  # and stays inside the layer


def test_every_sign_differs_from_every_other() -> None:
    drawings = [painted(label) for label in range(N_SIGNS)]
    small = [d[::4, ::4].astype(np.float32) for d in drawings]
    for a, b in itertools.combinations(range(N_SIGNS), 2):
        assert np.abs(small[a] - small[b]).sum(2).mean() > 0.004, (a, b)


@pytest.mark.parametrize(("left", "right"), MIRROR_PAIRS)
def test_opposite_signs_are_mirror_images(left: int, right: int) -> None:
    difference = np.abs(painted(left)[:, ::-1] - painted(right))
    assert difference.mean() < 2e-3
    assert np.abs(painted(left) - painted(right)).mean() > 5 * difference.mean()


@pytest.mark.parametrize("label", OWN_MIRROR)
def test_symmetric_signs_are_their_own_mirror_image(label: int) -> None:
    assert np.abs(painted(label)[:, ::-1] - painted(label)).mean() < 3e-3


def test_speed_limits_carry_a_red_ring_of_about_an_eighth_of_the_diameter() -> None:
    row = sign_masks(1)[Material.RED][LAYER_PX // 2]
    plate = sum(m[LAYER_PX // 2] for m in sign_masks(1).values())
    ring = row.sum() / 2 / float(np.sum(plate))
    assert ring == pytest.approx(1 / 8, abs=0.015)


def test_unknown_sign_is_refused() -> None:
    with pytest.raises(ConfigError, match="sign class 43"):
        sign_masks(43)
    assert len(SIGN_NAMES) == N_SIGNS == 43


def test_inset_of_a_square_is_a_smaller_square() -> None:
    square = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    for points in (square, square[::-1]):
        np.testing.assert_allclose(inset(points, 0.25), 0.75 * np.array(points))


def test_frontal_sign_keeps_its_shape() -> None:
    matrix, width, height = sign_to_image(near_view(), outline_points(1))
    assert (width, height) == pytest.approx((100, 100), abs=0.5)
    x, y, w = matrix @ np.array([0.0, 0.0, 1.0])
    assert (x / w, y / w) == pytest.approx((50, 50), abs=0.5)


@pytest.mark.parametrize("yaw", [-40.0, 25.0])
def test_far_sign_that_is_turned_narrows_by_the_cosine(yaw: float) -> None:
    _, width, height = sign_to_image(near_view(yaw_deg=yaw), outline_points(1))
    assert width / height == pytest.approx(math.cos(math.radians(yaw)), rel=0.02)


def test_near_side_of_a_turned_sign_is_larger() -> None:
    matrix, _, _ = sign_to_image(near_view(yaw_deg=40, distance=5.0), outline_points(1))

    def place(x: float, y: float) -> np.ndarray:
        p = matrix @ np.array([x, y, 1.0])
        return p[:2] / p[2]

    right = np.linalg.norm(place(0.7, -0.7) - place(0.7, 0.7))
    left = np.linalg.norm(place(-0.7, -0.7) - place(-0.7, 0.7))
    # Turned by a positive yaw the right side comes closer: by hand 5 + 0.7 sin 40 deg.
    near, far = 5 - 0.7 * math.sin(math.radians(40)), 5 + 0.7 * math.sin(math.radians(40))
    assert right / left == pytest.approx(far / near, rel=1e-6)


def pictures(frames: list[RenderedFrame]) -> np.ndarray:
    return np.stack([f.image for f in frames])


def test_same_seed_same_frames_other_seed_other_frames() -> None:
    one = pictures(list(render_tracks(3, seed=4, size=32, frames_per_track=3)))
    again = pictures(list(render_tracks(3, seed=4, size=32, frames_per_track=3)))
    other = pictures(list(render_tracks(3, seed=5, size=32, frames_per_track=3)))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one.astype(int) - other).mean() > 5


def test_a_longer_run_begins_with_the_same_frames() -> None:
    short = list(render_tracks(2, seed=4, size=32, frames_per_track=2))
    long = render_tracks(5, seed=4, size=32, frames_per_track=2)  # lazy: only four are drawn
    np.testing.assert_array_equal(pictures(short), pictures(list(itertools.islice(long, 4))))


@pytest.mark.slow(3)
def test_43_tracks_show_all_signs_and_crops_have_the_stated_form() -> None:
    data = render_set(86, seed=2, size=24, frames_per_track=2)
    assert data.images.shape == (172, 24, 24, 3)
    assert data.images.dtype == np.uint8
    for block in (data.label[:86], data.label[86:]):
        assert set(block.tolist()) == set(range(43))
    assert data.track.tolist() == [i // 2 for i in range(172)]
    assert data.frame.tolist() == [i % 2 for i in range(172)]
    assert len(set(data.track_names())) == 86


@pytest.mark.slow(1)
def test_the_sign_grows_as_the_car_comes_nearer() -> None:
    data = render_set(24, seed=6, size=16, frames_per_track=6)
    width = data.width_px.reshape(24, 6)
    assert (width[:, -1] > 1.3 * width[:, 0]).all()
    assert (np.diff(np.median(width, axis=0)) > 0).all()
    # GTSRB's own medians are 30 pixels in a track's first frame and 94 in its last.
    assert 22 <= np.median(width[:, 0]) <= 40
    assert 70 <= np.median(width[:, -1]) <= 120


def test_frames_of_a_track_are_alike_and_tracks_are_not() -> None:
    data = render_set(12, seed=8, size=24, frames_per_track=8, labels=[1])
    images = data.images.reshape(12, 8, -1).astype(np.float32)
    within = np.abs(np.diff(images, axis=1)).mean()
    between = np.abs(np.diff(images, axis=0)).mean()
    assert between > 2 * within


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n_tracks": 0}, "n_tracks = 0"),
        ({"frames_per_track": 0}, "frames = 0"),
        ({"size": 0}, "size = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"labels": [43]}, "labels"),
        ({"labels": []}, "labels"),
    ],
)
def test_bad_settings_are_refused_at_once(options: dict[str, object], word: str) -> None:
    settings: dict[str, object] = {"n_tracks": 1, "seed": 0} | options
    with pytest.raises(ConfigError, match=word):
        render_tracks(**settings)  # type: ignore[arg-type]


@pytest.mark.slow(3)
def test_the_shipped_network_reads_the_renders() -> None:
    """Trained on real signs only, it must know ours by exit 3 (chance: 1 in 43)."""
    from cnn.bundle import load_bundle
    from cnn.runtime import SplitRuntime

    bundle = load_bundle()
    runtime = SplitRuntime(bundle)
    data = render_set(86, seed=12, size=bundle.config.input_size, frames_per_track=3)
    answers, _ = runtime.tail(data.images, 3, 0)
    assert (answers == data.label).mean() >= 0.8
    worst = min((answers[data.label == c] == c).mean() for c in range(43))
    assert worst > 1 / 43
