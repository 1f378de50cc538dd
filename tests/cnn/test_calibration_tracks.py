"""Tracks set aside for calibration: by sign, by class, by seed."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from cnn.calibration_tracks import calibration_tracks, signs_of, some_tracks
from cnn.common.errors import ConfigError, DataError
from cnn.frame_table import FrameTable, embedded_table


@pytest.fixture(scope="module")
def plain() -> FrameTable:
    return embedded_table("policy-train")


@pytest.fixture(scope="module")
def varied() -> FrameTable:
    """The same signs, four drives past each."""
    return embedded_table("policy-train-varied")


def test_all_drives_past_a_sign_calibrate_or_none(plain: FrameTable, varied: FrameTable) -> None:
    n = plain.n_tracks
    assert varied.n_tracks == 4 * n
    np.testing.assert_array_equal(signs_of(varied), np.tile(np.arange(n), 4))
    np.testing.assert_array_equal(signs_of(plain), np.arange(n))
    chosen = calibration_tracks(varied, seed=3).reshape(4, n)
    assert (chosen == chosen[0]).all()
    # So the same signs are left out of both tables.
    np.testing.assert_array_equal(chosen[0], calibration_tracks(plain, seed=3))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_every_class_has_its_share(plain: FrameTable, share: float) -> None:
    label = plain.label[plain.track_starts()]
    for seed in range(5):
        chosen = calibration_tracks(plain, share, seed)
        assert chosen.sum() == round(share * plain.n_tracks)
        of_class = np.bincount(label)
        taken = np.bincount(label[chosen], minlength=len(of_class))
        assert (np.abs(taken - share * of_class) < 1.01).all()


def test_every_sign_has_the_same_chance(plain: FrameTable) -> None:
    times = np.sum([calibration_tracks(plain, 0.3, seed) for seed in range(1000)], axis=0)
    # 300 on average, with a standard deviation of at most 14.5.
    assert 230 < times.min() < 300 < times.max() < 370


def test_the_seed_decides(plain: FrameTable) -> None:
    a, again, b = (calibration_tracks(plain, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert (a != b).any()


def test_some_tracks_are_those_rows_numbered_anew(varied: FrameTable) -> None:
    keep = calibration_tracks(varied)
    some = some_tracks(varied, keep)
    rows = np.isin(varied.track, np.flatnonzero(keep))
    for field in fields(FrameTable):
        values = getattr(varied, field.name)
        if isinstance(values, np.ndarray) and field.name != "track":
            np.testing.assert_array_equal(getattr(some, field.name), values[rows])
    assert some.n_tracks == keep.sum()
    np.testing.assert_array_equal(some.track_starts(), np.flatnonzero(some.frame == 0))
    assert some.source == f"{varied.source}, {keep.sum()} of its {varied.n_tracks} tracks"
    # Whole signs are still recognised, and can be divided further.
    assert (np.bincount(signs_of(some)) == 4).all()


def test_qualities_come_along(plain: FrameTable) -> None:
    quality = np.random.default_rng(0).random(plain.prediction.shape).astype(np.float32)
    keep = np.arange(plain.n_tracks) < 3
    some = some_tracks(replace(plain, quality=quality), keep)
    assert some.quality is not None
    np.testing.assert_array_equal(some.quality, quality[: len(some)])


def test_bad_input_is_named(plain: FrameTable, varied: FrameTable) -> None:
    with pytest.raises(ConfigError, match="share 1"):
        calibration_tracks(plain, 1.0)
    with pytest.raises(ConfigError, match="seed -1"):
        calibration_tracks(plain, seed=-1)
    with pytest.raises(DataError, match="one sign"):
        calibration_tracks(some_tracks(plain, np.arange(plain.n_tracks) == 7))
    with pytest.raises(DataError, match="0 among"):
        some_tracks(plain, np.zeros(plain.n_tracks, bool))
    with pytest.raises(DataError, match="among 3 tracks"):
        some_tracks(plain, np.ones(3, bool))
    torn = some_tracks(varied, np.arange(varied.n_tracks) < 300)
    with pytest.raises(DataError, match="differ from drive to drive"):
        signs_of(torn)
