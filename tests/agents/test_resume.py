"""A run that was interrupted and resumed ends with the same policy as one that was not."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from agents.supervisor import TrainingInterrupted
from agents.train_config import TrainConfig
from agents.training import train
from cnn.common.errors import ConfigError, DataError
from cnn.topology import SHIPPED
from testbed.policy.observation_fields import schema_of

SCHEMA = schema_of(SHIPPED)

pytestmark = pytest.mark.slow(20)


@pytest.mark.parametrize("algo", ["ppo", "dqn", "qr-dqn"])
def test_resume_is_bit_for_bit(
    algo: str, make_world, tmp_path: Path, small_run: TrainConfig, cut_off: Callable[..., None]
) -> None:
    world = make_world(20.0)
    config = replace(small_run, algo=algo)
    whole = train(config, tmp_path / "whole", world=world)

    cut_off(config, tmp_path / "parts", world, 5 * 256)
    parts = train(config, tmp_path / "parts", world=world, resume=True)
    for name, array in whole.bundle.arrays.items():
        np.testing.assert_array_equal(parts.bundle.arrays[name], array)
    columns = ["step", "cost", "accuracy", "multiplier", "validation_cost"]
    np.testing.assert_array_equal(whole.log[columns], parts.log[columns])


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_run_told_to_stop_keeps_everything(
    algo: str, make_world, tmp_path: Path, small_run: TrainConfig
) -> None:
    """Told before any checkpoint was due, it resumes and ends as the uninterrupted run does."""
    world = make_world(20.0)
    config = replace(small_run, algo=algo, checkpoint_every=10**9)
    whole = train(config, tmp_path / "whole", world=world)

    def tell(step: int, row: dict[str, float]) -> None:
        if step == 3 * 256:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingInterrupted) as stopped:
        train(config, tmp_path / "parts", world=world, report=tell)
    assert stopped.value.step >= 3 * 256
    assert stopped.value.step < config.steps
    parts = train(config, tmp_path / "parts", world=world, resume=True)
    for name, array in whole.bundle.arrays.items():
        np.testing.assert_array_equal(parts.bundle.arrays[name], array)
    columns = ["step", "cost", "accuracy", "multiplier", "validation_cost"]
    np.testing.assert_array_equal(whole.log[columns], parts.log[columns])


def test_a_second_signal_ends_at_once(make_world, tmp_path: Path, small_run: TrainConfig) -> None:
    def tell(step: int, row: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(small_run, tmp_path / "run", world=make_world(20.0), report=tell)
    assert not isinstance(stopped.value, TrainingInterrupted)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_changed_scenario_is_not_resumed(
    make_world, tmp_path: Path, small_run: TrainConfig
) -> None:
    train(small_run, tmp_path / "run", world=make_world(20.0))
    with pytest.raises(ConfigError, match="scenario"):
        train(small_run, tmp_path / "run", world=make_world(20.0, n_frames=50), resume=True)


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_run_of_a_version_with_narrower_bounds_is_resumed(
    algo: str,
    make_world,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_run: TrainConfig,
    cut_off: Callable[..., None],
) -> None:
    """Checkpoints hold the space of their environment, once a box from -1 to 1."""
    world = make_world(20.0)
    config = replace(small_run, algo=algo)

    with monkeypatch.context() as older:
        box = gymnasium.spaces.Box(-1, 1, (SCHEMA.obs_dim,), np.float32)
        older.setattr("offload_env.vector_env.observation_box", lambda n: box)
        cut_off(config, tmp_path, world, 5 * 256)
    parts = train(config, tmp_path, world=world, resume=True)
    assert parts.log["step"].max() == config.steps


def test_same_seed_same_policy_other_seed_another(
    make_world, tmp_path: Path, small_run: TrainConfig
) -> None:
    world = make_world(20.0)
    a = train(small_run, tmp_path / "a", world=world).bundle.arrays
    b = train(small_run, tmp_path / "b", world=world).bundle.arrays
    c = train(replace(small_run, seed=6), tmp_path / "c", world=world).bundle.arrays
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not all(np.array_equal(a[k], c[k]) for k in a)


def test_refuses_to_resume_nothing_or_something_else(
    make_world, tmp_path: Path, small_run: TrainConfig
) -> None:
    world = make_world(20.0)
    with pytest.raises(DataError):
        train(small_run, tmp_path / "none", world=world, resume=True)
    train(small_run, tmp_path / "run", world=world)
    with pytest.raises(ConfigError):
        train(replace(small_run, gamma=0.5), tmp_path / "run", world=world, resume=True)
