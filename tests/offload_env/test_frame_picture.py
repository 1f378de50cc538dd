"""What a person sees: a line of text or a picture, of the last frame that ended."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED, Action
from offload_env.env import OffloadEnv, OffloadStagedEnv
from offload_env.frame_picture import HEIGHT, WIDTH, Shown, paint
from offload_env.live_env import OffloadLiveEnv
from offload_env.outcome import NOTHING, OK, SKIPPED
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import World

PAIRS = [(OffloadEnv, OffloadVectorEnv), (OffloadStagedEnv, OffloadStagedVectorEnv)]
DEVICE, SERVER, BAD = (46, 110, 180), (232, 150, 40), (196, 52, 48)


def pixels(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels right of the sign have exactly this colour."""
    return int((picture[:, 150:] == colour).all(-1).sum())


@pytest.mark.parametrize(("single", "vector"), PAIRS)
@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_a_lane_of_the_vector_shows_what_a_single_one_shows(
    single: Any, vector: Any, mode: str, world: World
) -> None:
    lanes = vector(3, world=world, render_mode=mode, autoreset_mode="NextStep")
    alone = [single(world=world, render_mode=mode) for _ in range(3)]
    lanes.reset(options={"keys": [7, 8, 9]})
    for env, key in zip(alone, (7, 8, 9), strict=True):
        env.reset(options={"key": key})
    seen = set()
    for _ in range(8):
        ours, theirs = lanes.render(), [env.render() for env in alone]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
            seen.add(str(one) if mode == "ansi" else one.tobytes())
        lanes.step([1, 19, 12])
        for env, action in zip(alone, (1, 19, 12), strict=True):
            env.step(action)
    assert len(seen) > 8


def test_a_picture_is_new_each_time_and_equal_for_equal_frames(world: World) -> None:
    env = OffloadEnv(world=world, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert isinstance(first, np.ndarray)
    assert (first.shape, first.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(env.render(), kept)
    env.step(5)
    assert not np.array_equal(env.render(), kept)


def test_blocks_have_the_colour_of_where_they_run(world: World) -> None:
    def painted(action: Action, **more: Any) -> np.ndarray:
        outcome = NOTHING._replace(action=action.index, used=action.index, status=OK)
        return paint(world, Shown(0, 14, 0, outcome=outcome._replace(**more)))

    # Colours of text are blended into the paper; blocks and bars are not.
    none = paint(world, Shown(0, 14, 0))
    per_block = pixels(painted(SHIPPED.action(1, 1)), DEVICE) - pixels(none, DEVICE)
    assert per_block > 800
    for exit, split in ((3, 1), (5, 0), (2, 2), (5, 5)):
        picture = painted(SHIPPED.action(exit, split))
        ran = pixels(picture, DEVICE) - pixels(none, DEVICE)
        sent = pixels(picture, SERVER) - pixels(none, SERVER)
        assert ran == pytest.approx(split * per_block, rel=0.1)
        assert sent == pytest.approx((exit - split) * per_block, rel=0.1)
    skipped = painted(SHIPPED.action(5, 0), status=SKIPPED, delay_ms=1e4)
    assert pixels(skipped, SERVER) == pixels(none, SERVER)
    assert pixels(skipped, BAD) > 1000  # beyond the deadline


def test_a_class_without_a_drawing_and_an_image_in_its_place(world: World) -> None:
    grey = paint(world, Shown(0, 99, 0))
    assert (grey[20:120, 20:130] == grey[20, 20]).all()
    image = np.zeros((48, 48, 3), np.uint8)
    image[..., 0] = 200
    shown = paint(world, Shown(3, image=image))
    assert (shown[20:120, 20:130] == (200, 0, 0)).all()


def test_the_line_says_what_the_last_frame_cost(world: World) -> None:
    env = OffloadEnv(world=world, render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "no frame yet"
    *_, info = env.step(5)
    line = str(env.render())
    assert line.startswith("e3s0 ")
    assert f"delay {info['delay_ms']:.1f} ms energy {info['energy_mj']:.1f} mJ" in line
    env.reset()
    assert env.render() == "no frame yet"


@pytest.mark.parametrize("kind", [*PAIRS[0], *PAIRS[1], OffloadLiveEnv])
def test_a_mode_that_is_not_offered_is_refused(kind: Any, world: World) -> None:
    with pytest.raises(gym.error.UnsupportedMode, match="ansi, rgb_array, or None") as caught:
        kind(world=world, render_mode="human")
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("kind", [*PAIRS[0], *PAIRS[1]])
def test_no_mode_shows_nothing(kind: Any, world: World) -> None:
    env = kind(world=world)
    env.reset(seed=0)
    assert env.render() is None
