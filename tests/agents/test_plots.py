"""Figures say what was driven, in labels that can be read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from networks import NETWORKS

from agents.action_plots import (
    FINISHED_LOCALLY,
    NOT_DRIVEN,
    action_map,
    action_shares,
    split_colours,
)
from agents.baselines.prediction import reader
from agents.drive_picture import Driven, _draw_delays
from agents.evaluation import evaluate
from agents.plots import ink_on, plain_axes, plain_linear, plain_log
from agents.report import best_baseline, driven_actions, driven_shares
from agents.rollout import simulate
from cnn.topology import SHIPPED
from offload_env.batch_simulator import FALLBACK, SKIPPED
from offload_env.episode import episode_keys
from testbed.policy.policies import RandomPolicy, StaticPolicy

READ = reader(SHIPPED)

KEYS = episode_keys(3, 4)


def contrast(one: object, other: object) -> float:
    """Contrast ratio by the definition of WCAG 2.2."""

    def luminance(colour: object) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
                 for c in to_rgb(colour)]  # type: ignore[arg-type] # fmt: skip
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_labels_on_bars_contrast_with_any_colour(colour: tuple[float, float, float]) -> None:
    assert contrast(ink_on(colour), colour) >= 4.5


def labels(low: float, high: float, log: bool) -> list[str]:
    figure, axes = plain_axes()
    axes.set_xlim(low, high)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        plain_log(axes.xaxis)
    else:
        plain_linear(axes.xaxis)
    FigureCanvasAgg(figure).draw()
    ticks = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)]
    assert axes.xaxis.get_offset_text().get_text() == ""
    return [t.get_text() for t in ticks if t.get_text()]


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(16, 51, True), (0.001, 1, True), (20, 300, True), (0, 5e6, False), (0.99991, 0.99993, False)],
)
def test_ticks_are_plain_numbers(low: float, high: float, log: bool) -> None:
    shown = labels(low, high, log)
    assert len(shown) >= 2
    for text in shown:
        float(text.replace(",", ""))  # no powers of ten
        assert "e" not in text


def test_shares_count_frames_as_they_were_driven(make_world) -> None:
    world = make_world([40.0, 0.05, 0.05], full_local_ms=90.0, n_frames=60)
    rollout = simulate(world, RandomPolicy(1), KEYS)
    counted: Counter[int] = Counter()
    for action, status in zip(rollout.action.ravel(), rollout.status.ravel(), strict=True):
        outcome = {FALLBACK: FINISHED_LOCALLY, SKIPPED: NOT_DRIVEN}.get(int(status), int(action))
        counted[outcome % (SHIPPED.n_actions + 2)] += 1
    shares = driven_shares(rollout)
    assert shares.sum() == pytest.approx(1)
    assert shares[FINISHED_LOCALLY] > 0
    assert shares[NOT_DRIVEN] > 0
    for outcome, share in enumerate(shares):
        assert share == pytest.approx(counted[outcome] / rollout.action.size)
    assert action_shares({"random": shares}, SHIPPED).startswith(b"\x89PNG")


def test_the_map_holds_only_what_was_driven(make_world) -> None:
    world = make_world([40.0, 2.0, 8.0], n_frames=60)

    class Doubtful(StaticPolicy):
        """Sends after a doubtful answer, else leaves at exit 2."""

        def decide_batch(self, observations, points=None):
            doubt = 1 - READ(observations)[:, READ.at["last_confidence"]]
            return np.where(doubt > 0.05, SHIPPED.index(5, 0), SHIPPED.index(2, 2))

    policy = Doubtful(SHIPPED.action(2, 2))
    found = driven_actions(world, policy, KEYS, 60)
    observations: list[np.ndarray] = []
    simulate(world, policy, KEYS, seen=observations.append)
    seen = READ(np.concatenate(observations))
    seen = seen[seen[:, READ.at["answers_on_track"]] > 0.5]
    met = set()
    for took, sure in zip(seen[:, READ.at["transfer_mean_ms"]], seen[:, READ.at["last_confidence"]],
                          strict=True):  # fmt: skip
        error_probability = max(1 - sure, found.doubts[0])
        row = max(i for i in range(len(found.doubts) - 1) if found.doubts[i] <= error_probability)
        column = max(i for i in range(len(found.times_ms) - 1) if found.times_ms[i] <= took)
        met.add((row, column))
    assert {(int(i), int(j)) for i, j in np.argwhere(found.actions >= 0)} == met
    for i, j in met:
        if found.doubts[i] > 0.05:
            assert found.actions[i, j] == SHIPPED.action(5, 0).index
        elif found.doubts[i + 1] < 0.05:
            assert found.actions[i, j] == SHIPPED.action(2, 2).index
    assert action_map(found).startswith(b"\x89PNG")


@pytest.mark.slow(1)
def test_the_best_rule_is_the_cheapest_that_keeps_the_floor(make_world) -> None:
    world = make_world([100.0, 0.1], floor=0.9, n_frames=20)
    result = evaluate(world, world, {}, drives=2, tuning_drives=2)
    best = best_baseline(result)
    for name in result.rollouts:
        if result.keeps_floor(name):
            assert result.policies[best]["cost"] <= result.policies[name]["cost"]


@pytest.mark.parametrize(
    ("beyond", "said"), [(0, ""), (1, "; 1 frame above"), (2, "; 2 frames above")]
)
def test_frames_above_the_picture_are_counted(beyond: int, said: str) -> None:
    delay_ms = np.full(400, 10.0)
    delay_ms[:beyond] = 1000.0
    still = np.zeros(400, np.int64)
    drive = Driven("agent", SHIPPED, np.arange(400) / 10, still, still, delay_ms)
    axes = Figure().subplots()
    _draw_delays(axes, drive, drive, 100.0)
    assert axes.get_xlabel() == f"time in the drive (s){said}"


def test_every_split_has_a_colour_of_its_own() -> None:
    for topology in (SHIPPED, *NETWORKS):
        assert len(set(split_colours(topology))) == len(topology.splits) + 1
