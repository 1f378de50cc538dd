"""Other days' drives: the same signs, changed as told, whole tracks alike."""

import numpy as np
import pytest

from cnn.common.errors import ConfigError
from cnn.data.image_set import ImageSet
from cnn.make_frame_table import Condition, another_drive, dark, draw_condition, see, under


def ramp(size: int = 48) -> np.ndarray:
    """A picture that grows brighter from left to right, uint8 (H, W, 3)."""
    row = np.linspace(60, 200, size)
    return np.repeat(np.tile(row, (size, 1))[..., None], 3, 2).astype(np.uint8)


def tracks(n_tracks: int = 3, frames: int = 4) -> ImageSet:
    n = n_tracks * frames
    return ImageSet(
        images=np.stack([ramp()] * n),
        label=np.repeat(np.arange(n_tracks), frames).astype(np.int16),
        track=np.zeros(n, np.int32),
        frame=np.tile(np.arange(frames), n_tracks).astype(np.int16),
        width_px=np.full(n, 40, np.int16),
        height_px=np.full(n, 40, np.int16),
    )


def test_nothing_changes_without_a_condition() -> None:
    image, rng = ramp(), np.random.default_rng(0)
    np.testing.assert_allclose(see(image, Condition(), rng).astype(int), image, atol=1)
    np.testing.assert_array_equal(another_drive(tracks(), 0.0, 1).images, tracks().images)


@pytest.mark.parametrize(
    ("condition", "check"),
    [
        (Condition(gain=0.5), lambda a, b: b.mean() == pytest.approx(a.mean() / 2, abs=1)),
        (Condition(gamma=2.0), lambda a, b: b.mean() < a.mean() - 20),
        (Condition(contrast=0.5), lambda a, b: b.std() == pytest.approx(a.std() / 2, abs=1)),
        (Condition(noise=0.05), lambda a, b: (b - a).std() == pytest.approx(12.75, rel=0.1)),
        # A box moved right by a quarter sees what lay a quarter further right.
        (Condition(shift=(0.25, 0.0)), lambda a, b: abs(b[24, 12, 0] - a[24, 24, 0]) <= 2),
        # A box half as wide sees half the ramp.
        (Condition(zoom=0.5), lambda a, b: np.ptp(b) == pytest.approx(np.ptp(a) / 2, abs=4)),
        (Condition(dirt=(0.5, 0.5, 0.5, 0.5, 0.0)), lambda a, b: b[40, 40].max() == 0),
    ],
)
def test_a_condition_does_what_it_says(condition: Condition, check) -> None:
    image = ramp()
    seen = see(image, condition, np.random.default_rng(0))
    assert seen.shape == image.shape
    assert check(image.astype(int), seen.astype(int))


def test_blur_and_lost_resolution_take_away_detail() -> None:
    checks = (np.indices((48, 48)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.repeat(checks[..., None], 3, 2)
    for condition in (Condition(blur_px=1.5), Condition(resolution=0.4)):
        assert see(image, condition, np.random.default_rng(0)).std() < image.std() / 4


def test_a_track_has_one_condition_whatever_else_is_there() -> None:
    data = tracks()
    seen = another_drive(data, 1.1, 7)
    np.testing.assert_array_equal(seen.images, another_drive(data, 1.1, 7).images)
    assert not np.array_equal(seen.images, another_drive(data, 1.1, 8).images)
    alone = another_drive(data.only_tracks(["1/0"]), 1.1, 7)
    np.testing.assert_array_equal(alone.images, seen.images[4:8])
    brightness = seen.images.reshape(3, 4, -1).mean(2)
    assert np.ptp(brightness, axis=1).max() < 0.5 * np.ptp(brightness.mean(1))
    np.testing.assert_array_equal(seen.label, data.label)


def test_strength_scales_and_is_checked() -> None:
    def severity(strength: float) -> float:
        drawn = [draw_condition(np.random.default_rng(s), strength) for s in range(200)]
        return float(np.mean([abs(np.log(c.gain)) + c.blur_px + c.noise for c in drawn]))

    assert severity(1.0) == pytest.approx(2 * severity(0.5), rel=0.05)
    with pytest.raises(ConfigError, match="strength"):
        another_drive(tracks(), 3.0, 0)


def test_one_shift_for_all_frames() -> None:
    """Fog by hand: the light that is left, and the sky's; a blur takes the edges' contrast."""
    data = tracks(1, 2)
    foggy = under(data, Condition(fog=0.75)).images.astype(float)
    np.testing.assert_allclose(foggy, 0.25 * data.images + 0.75 * 0.9 * 255, atol=0.51)
    np.testing.assert_array_equal(under(data, Condition(fog=1.0)).images, round(0.9 * 255))
    steep = tracks(1, 1)
    steep.images[:, :, :24], steep.images[:, :, 24:] = 0, 200
    blurred = under(steep, Condition(blur_px=3.0)).images[0, 24, :, 0].astype(int)
    assert 80 < blurred[23] < blurred[24] < 120
    assert np.diff(blurred).max() < 40


def test_dusk_takes_light_and_leaves_noise() -> None:
    data = tracks(1, 4)
    data.images[:] = 150
    dark_frames = under(data, dark(0.6)).images.astype(float)
    assert dark_frames.mean() == pytest.approx(0.4 * 150, abs=0.5)
    assert dark_frames.std() == pytest.approx(0.02 * 255, rel=0.05)
