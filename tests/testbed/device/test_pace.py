"""A paced device against the cost model that paces it, on the real network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cnn.bundle import Bundle
from cnn.common.errors import DataError
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Action
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import open_frames
from testbed.device.processor import Pace
from testbed.meters.cost_model import CostModel
from testbed.meters.power import ModelMeter, power_profile
from testbed.policy.decision_points import decision_points
from testbed.policy.observer import Observer
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement

POINTS = decision_points(SHIPPED)

MAIN = SHIPPED.main


@pytest.fixture(scope="module")
def cost() -> CostModel:
    """The shipped model without spread: times are then those of its formulas."""
    path = Path(str(resources.files("testbed"))) / "assets" / "cost_model.json"
    return replace(CostModel.load(path), jitter=0.0)


def test_it_is_the_cost_model_scaled_to_full_local_processing(cost: CostModel) -> None:
    pace = Pace.of(cost, full_local_ms=80.0)
    assert pace.full_local_ms == pytest.approx(80.0)
    factor = 80.0 / cost.device_ms[MAIN]
    np.testing.assert_allclose(pace.device_ms, factor * np.array(cost.device_ms))
    np.testing.assert_allclose(pace.fallback_ms, factor * np.array(cost.fallback_ms))
    assert Pace.of(cost).device_ms == pytest.approx(cost.device_ms)


@pytest.mark.parametrize("action", SHIPPED.actions, ids=lambda a: a.name)
def test_the_parts_of_an_action_add_up_to_it(cost: CostModel, action: Action) -> None:
    pace = Pace.of(cost, 80.0)
    blocks_ms, rest_ms = pace.parts_ms(action)
    assert min(blocks_ms, rest_ms) >= 0
    assert blocks_ms + rest_ms == pytest.approx(pace.device_ms[action.index])
    assert not (action.is_local and rest_ms)


def test_looking_at_exits_on_the_way_costs_their_heads_alone(cost: CostModel) -> None:
    """Blocks 1..5 run once whichever exits are looked at: each step is the difference of two
    local actions plus the head that the step before had to run."""
    pace = Pace.of(cost, 80.0)
    looks = [pace.parts_ms(SHIPPED.action(e, e), e - 1)[0] for e in SHIPPED.exits]
    heads = [pace.device_ms[SHIPPED.index(e, e)] - pace.standing_ms[e] for e in SHIPPED.exits]
    assert sum(looks) == pytest.approx(pace.standing_ms[SHIPPED.n_blocks] + sum(heads))


def test_a_file_that_is_no_cost_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(DataError, match=r"model\.json"):
        Pace.load(str(tmp_path / "model.json"))


class Scripted:
    """Plays lists of staged actions, or single ones."""

    name = "scripted"

    def __init__(self, paths: Sequence[Sequence[int]], staged: bool) -> None:
        self._paths, self.space = paths, POINTS.staged if staged else POINTS.frame

    def reset(self) -> None:
        self._left = iter([a for path in self._paths for a in path])

    def decide(self, observation: np.ndarray, point: int = 0) -> int:
        return next(self._left)


def drive(
    runtime: SplitRuntime, bundle: Bundle, pace: Pace, policy: Scripted, n: int
) -> tuple[list[Measurement], Device]:
    device = Device(
        runtime,
        None,
        policy,  # type: ignore[arg-type]
        Observer(Settings(True, 0.9, 0.5, pace.full_local_ms)),
        ModelMeter(power_profile("jetson-nano+5g-nsa-lowband")),
        DeviceConfig(period_ms=60.0, max_queue_ms=5000.0, pace=pace, seed=1),
    )
    frames = open_frames("render", bundle.config.input_size, seed=1, n=n)
    return list(device.run(frames)), device


def overrun_ms(rows: Sequence[Measurement], expected_ms: Sequence[float]) -> np.ndarray:
    """Time beyond the pace, which a busy machine may add to some of the frames."""
    busy = [row.delay_ms - row.queue_ms for row in rows]
    return np.array(busy) - np.array(expected_ms)


@pytest.mark.slow(1)
def test_a_paced_device_takes_what_its_profile_states(
    runtime: SplitRuntime, bundle: Bundle, cost: CostModel
) -> None:
    """Local answers, and sends that find no server and are finished here."""
    pace = Pace.of(cost, 40.0)
    actions = [SHIPPED.index(1, 1), SHIPPED.index(3, 3), MAIN, SHIPPED.index(5, 2)] * 5
    expected = [pace.device_ms[a] for a in actions]
    sent = pace.parts_ms(SHIPPED.action(5, 2))[0] + pace.fallback_ms[SHIPPED.index(5, 2)]
    expected = [
        sent if a == SHIPPED.index(5, 2) else ms for a, ms in zip(actions, expected, strict=True)
    ]
    rows, device = drive(runtime, bundle, pace, Scripted([actions], False), len(actions))
    over = overrun_ms(rows, expected)
    kept = device.pace_kept
    assert kept is not None
    assert kept.sections == len(actions) + actions.count(SHIPPED.index(5, 2))
    assert over.min() >= -1e-6
    assert np.sum(over > 1e-6) <= kept.late  # only what is counted is off
    for row in rows:
        assert row.head_ms <= row.delay_ms - row.queue_ms + 1e-6


@pytest.mark.slow(1)
def test_a_staged_paced_device_takes_what_its_looks_take(
    runtime: SplitRuntime, bundle: Bundle, cost: CostModel
) -> None:
    pace = Pace.of(cost, 40.0)
    one, two, five = (SHIPPED.index(e, e) for e in (1, 2, 5))
    paths = [[one, POINTS.answer], [one, two, POINTS.answer], [one, two, five], [five]] * 4
    exits = [[1], [1, 2], [1, 2, 5], [5]] * 4
    expected = [
        sum(pace.parts_ms(SHIPPED.action(b, b), a)[0] for a, b in pairwise([0, *evaluated]))
        for evaluated in exits
    ]
    rows, device = drive(runtime, bundle, pace, Scripted(paths, True), len(paths))
    over = overrun_ms(rows, expected)
    kept = device.pace_kept
    assert kept is not None
    assert kept.sections == sum(map(len, exits))
    assert over.min() >= -1e-6
    assert np.sum(over > 1e-6) <= kept.late


def test_frames_queue_as_arithmetic_says(
    runtime: SplitRuntime, bundle: Bundle, cost: CostModel
) -> None:
    """Slower than its camera: each frame starts when the one before it has ended."""
    pace = Pace.of(cost, 75.0)  # a frame every 60 ms
    rows, _ = drive(runtime, bundle, pace, Scripted([[MAIN] * 8], False), 8)
    free_ms = 0.0
    for number, row in enumerate(rows):
        captured_ms = 60.0 * number
        assert row.captured_s * 1e3 == pytest.approx(captured_ms, abs=1e-6)
        assert row.queue_ms == pytest.approx(max(0.0, free_ms - captured_ms), abs=1e-6)
        free_ms = captured_ms + row.delay_ms
    assert free_ms >= 8 * 75.0 - 1e-6
