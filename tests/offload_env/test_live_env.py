"""The live environment: real network, real processes, real sockets; few frames."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

import offload_env
from cnn.bundle import Bundle
from cnn.common.errors import ConfigError
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from offload_env.live_env import OffloadLiveEnv, OffloadLiveStagedEnv
from offload_env.outcome import STATUS
from offload_env.world import World, build_world
from testbed.policy.decision_points import decision_points
from testbed.policy.network_policy import load_policy
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import STAGED_KIND, PolicyBundle
from testbed.records.record_file import read_records
from testbed.server.server_process import ServerProcess
from testbed.traces.trace import Trace
from tests.support.networks import THREE_EXITS, scenario_of

KINDS = (OffloadLiveEnv, OffloadLiveStagedEnv)
POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)

pytestmark = pytest.mark.slow(35)

offload_env.register()


@pytest.fixture(scope="module")
def calm_world(make_world: Callable[..., World]) -> World:
    """A steady fast link, and patience: nothing times out, nothing is skipped."""
    base = make_world()
    return make_world(
        traces=[Trace(np.full(50, 50.0), np.full(50, 10.0), 0.1, "steady", "5G", "generated")],
        cost=replace(base.cost, slowdown=1.0),
        timing=replace(
            base.scenario.timing, period_ms=150.0, timeout_ms=2000.0, max_queue_ms=5000.0
        ),
    )


@pytest.fixture(scope="module")
def live(calm_world: World) -> Iterator[OffloadLiveEnv]:
    """A live environment, as fast as this machine is."""
    env = gym.make("sliproad/OffloadLive-v0", world=calm_world, n_frames=8, paced=False).unwrapped
    assert isinstance(env, OffloadLiveEnv)
    with contextlib.closing(env):
        yield env


@pytest.fixture(scope="module")
def staged(calm_world: World) -> Iterator[OffloadLiveStagedEnv]:
    """The same, decided in stages."""
    env = gym.make(
        "sliproad/OffloadLiveStaged-v0", world=calm_world, n_frames=40, paced=False
    ).unwrapped
    assert isinstance(env, OffloadLiveStagedEnv)
    with contextlib.closing(env):
        yield env


def test_every_step_is_a_real_frame(live: OffloadLiveEnv) -> None:
    observation, _ = live.reset(seed=1)
    assert live.observation_space.contains(observation)
    wanted = ["e1s1", "e5s0", "e3s3", "e5s5", "e2s0", "e1s1", "e5s0", "e4s4"]
    for i, name in enumerate(wanted):
        action = next(a.index for a in SHIPPED.actions if a.name == name)
        observation, reward, terminated, truncated, info = live.step(action)
        row = info["measurement"]
        assert live.observation_space.contains(observation)
        assert (row.frame_id, info["action"], terminated) == (i, action, False)
        assert truncated == (i == len(wanted) - 1)
        assert info["accuracy"] == float(row.prediction == row.label)
        assert info["delay_ms"] == row.delay_ms > 0
        if SHIPPED.actions[action].is_local:
            assert row.transfer_ms is None
        elif row.status == "ok":
            assert row.transfer_ms >= 10.0  # the link's round trip
        assert reward == pytest.approx(-info["cost"])


def test_a_drive_of_another_network_gives_its_answers(
    tiny_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = tiny_bundle(THREE_EXITS, n_classes=43)
    scenario = scenario_of(THREE_EXITS, tmp_path)
    calm = replace(scenario.timing, timeout_ms=2000.0, max_queue_ms=5000.0)
    world, runtime = build_world(replace(scenario, timing=calm)), SplitRuntime(bundle)
    env: Any
    for env in (kind(world=world, bundle=bundle.path, n_frames=8) for kind in KINDS):
        with contextlib.closing(env):
            env.reset(seed=0)
            for action in THREE_EXITS.actions:
                frame = env._rig.image.copy()
                observation, *_, truncated, info = env.step(action.index)
                if isinstance(env, OffloadLiveStagedEnv) and not info["frame_done"]:
                    assert action.is_local
                    observation, *_, truncated, info = env.step(THREE_EXITS.n_actions)  # answer
                row = info["measurement"]
                assert (info["action"], info["exit_used"]) == (action.index, action.exit)
                assert (row.prediction, row.status) == (runtime.act(frame, action)[0], "ok")
                assert env.observation_space.contains(observation)
            assert truncated


def test_a_picture_shows_the_frame_itself(
    live: OffloadLiveEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "render_mode", "rgb_array")
    live.reset(seed=3)
    seen = Image.fromarray(live._rig.image).resize((120, 120))
    before = live.render()
    live.step(SHIPPED.index(1, 1))
    after = live.render()
    for picture in (before, after):  # then it is the frame just done, not the next one
        assert isinstance(picture, np.ndarray)
        np.testing.assert_array_equal(picture[12:132, 16:136], np.array(seen))
    assert not np.array_equal(before, after)
    monkeypatch.setattr(live, "render_mode", "ansi")
    assert str(live.render()).startswith("e1s1 ")


def test_what_was_sent_is_observed(live: OffloadLiveEnv) -> None:
    age = next(f.index for f in SCHEMA.fields if f.name == "transfer_age_s")
    observation, _ = live.reset(seed=2)
    assert observation[age] == 1.0  # never
    observation, *_ = live.step(SHIPPED.index(1, 1))
    assert observation[age] == 1.0
    observation, *_, info = live.step(SHIPPED.index(5, 0))
    if STATUS[info["status"]] == "ok":
        assert observation[age] < 0.5


@pytest.mark.parametrize("name", ["live", "staged"])
def test_gymnasium_accepts_it(name: str, request: pytest.FixtureRequest) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    env = request.getfixturevalue(name)
    with warnings.catch_warnings():
        # Observations are similar but not equal: real time has passed.
        warnings.filterwarnings("ignore", message=".*similar.*")
        check_env(env, skip_render_check=True)
        sb3_check_env(env)


def _doubtful(bundle_hash: str) -> PolicyBundle:
    """A staged policy that looks at exits 1 and 2 and answers where it is sure; what leaves it
    in doubt it sends from block 2 to exit 5. It reads the frame's own confidences alone."""
    at = {field.name: field.index for field in SCHEMA.staged_fields}
    weight = np.zeros((POINTS.n_actions, SCHEMA.staged_obs_dim))
    bias = np.full(POINTS.n_actions, -9.0)
    for exit in (1, 2):
        bias[SHIPPED.index(exit, exit)] = 1.0
    weight[SHIPPED.index(1, 1), at["stands_at_0"]] = 9.0
    weight[SHIPPED.index(2, 2), at["stands_at_1"]] = 0.1
    bias[SHIPPED.index(5, 2)] = -4.0
    weight[SHIPPED.index(5, 2), at["stands_at_2"]] = 5.0
    weight[POINTS.answer, at["stage_confidence"]] = 100.0
    bias[POINTS.answer] = -97.0
    manifest = {
        "kind": STAGED_KIND,
        "name": "doubtful",
        "layers": 1,
        "activation": "tanh",
        "actions": list(range(POINTS.n_actions)),
        "observation": {"schema_hash": SCHEMA.staged_hash},
        "bundle_hash": bundle_hash,
        "metrics": {},
    }
    arrays = {"weight0": weight.astype(np.float32), "bias0": bias.astype(np.float32)}
    return PolicyBundle(manifest, arrays)


def test_a_staged_policy_decides_here_as_in_the_device_process(
    staged: OffloadLiveStagedEnv, tmp_path: Path
) -> None:
    path, out = tmp_path / "doubtful.policy", tmp_path / "rows.parquet"
    _doubtful(load_bundle().hash).save(path)
    policy = load_policy(path, load_bundle().hash)

    observation, _ = staged.reset(seed=5)
    rows, truncated = [], False
    while not truncated:
        masks = staged.action_masks()
        position = int(observation[SCHEMA.obs_dim : SCHEMA.obs_dim + SHIPPED.n_exits].argmax())
        np.testing.assert_array_equal(masks, POINTS.legal[position])
        action = policy.decide(observation, position)
        assert masks[action]
        observation, reward, _, truncated, info = staged.step(action)
        assert staged.observation_space.contains(observation)
        if info["frame_done"]:
            rows.append(info["measurement"])
            assert info["accuracy"] == float(rows[-1].correct)
            assert reward == pytest.approx(-info["cost"])
        else:
            assert (reward, STATUS[info["status"]], info["delay_ms"]) == (0.0, "deciding", 0.0)

    with ServerProcess() as server:
        command = [sys.executable, "-m", "testbed", "device", "--server", server.target]
        command += ["--policy", str(path), "--frames", "render", "--seed", str(staged.frames_seed)]
        command += ["--n-frames", "40", "--fps", "0", "--timeout-ms", "5000", "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    device = list(read_records(out).rows())
    assert {row.status for row in rows} == {row.status for row in device} == {"ok"}
    assert len({row.action for row in rows}) == 3  # both exits answered, and some were sent
    assert [row.action for row in rows] == [row.action for row in device]
    assert [row.prediction for row in rows] == [row.prediction for row in device]
    sure, sure_too = ([row.confidence for row in r] for r in (rows, device))
    assert sure == pytest.approx(sure_too, abs=1e-3)


def test_an_illegal_staged_action_is_read_as_the_nearest_legal_one(
    staged: OffloadLiveStagedEnv,
) -> None:
    staged.reset(seed=6)
    *_, info = staged.step(POINTS.answer)  # before any look: look at exit 1
    assert (info["frame_done"], info["action"]) == (False, SHIPPED.index(1, 1))
    *_, info = staged.step(SHIPPED.index(3, 0))  # a split that lies behind: split here
    assert (info["frame_done"], info["action"]) == (True, SHIPPED.index(3, 1))


@pytest.mark.parametrize("kind", [OffloadLiveEnv, OffloadLiveStagedEnv])
def test_what_cannot_be_used_is_refused_before_anything_starts(kind: Any, world: World) -> None:
    env = kind({"world": world, "render_mode": "ansi"})
    for early in (lambda: env.step(0), env.render):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            early()
    with pytest.raises(ConfigError, match="unknown reset option kye"):
        env.reset(options={"kye": 1})


def test_an_action_outside_the_space_is_refused(
    live: OffloadLiveEnv, staged: OffloadLiveStagedEnv
) -> None:
    for env in (live, staged):
        env.reset(seed=8)
        for action in (-1, 36, 1.0, "1"):
            with pytest.raises(gym.error.InvalidAction, match="expected an integer"):
                env.step(action)  # type: ignore[arg-type]
        env.step(SHIPPED.index(1, 1))
