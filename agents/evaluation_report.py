"""The HTML report of an evaluation, with a live run beside it if there was one."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import cnn
from agents import action_plots, plots
from agents.config import MARGIN
from agents.evaluate import AGENT, BEST_STATIC, STAGED, Evaluation
from agents.prediction import AT
from agents.report import Report, Section, Table
from agents.rollout import Rollout, action_shares, episode_keys, sample_observations
from agents.table import COLUMNS, cells, comparison
from cnn.action import ACTIONS, N_EXITS
from offload_env.world import World
from testbed.decide.observation import scale_one
from testbed.decide.policy import Policy
from testbed.decide.staged_policy import AnyPolicy, StagedPolicy

MAP_RATES_MBPS = np.geomspace(0.5, 200, 49)
MAP_CONFIDENCES = np.linspace(0.3, 1.0, 36)


def write_report(
    result: Evaluation,
    world: World,
    agents: Mapping[str, AnyPolicy],
    path: Path,
    *,
    learning: pd.DataFrame | None = None,
    live: Mapping[str, Mapping[str, float]] | None = None,
    live_text: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Draw everything and write one self-contained page.

    Args:
        result: of `agents.evaluate.evaluate`.
        world: its test world.
        agents: its learnt policies.
        path: the page.
        learning: the training log, if it is at hand.
        live: figures of live runs and of their replays, by row name.
        live_text: how the live run was made.
        facts: further facts for the head of the page.
    """
    deadline = world.scenario.timing.deadline_ms
    sections = [
        _comparison(result),
        _frontier(result),
        _cdfs(result, deadline),
        _shares(result),
    ]
    if live is not None:
        sections.insert(1, _live(live, live_text))
    for name, policy in agents.items():
        sections.append(_timeline(result, world, deadline, name))
        if not isinstance(policy, StagedPolicy):
            sections.append(_map(world, policy))
    if learning is not None and len(learning):
        floor = world.settings.accuracy_floor
        sections.append(
            Section(
                "Learning",
                "Cost and accuracy of the exploring policy at each update, of the greedy policy "
                "on validation drives, and the price of a wrong answer that dual ascent sets.",
                png=plots.learning_curve(learning, floor, MARGIN),
            )
        )
    report = Report(
        title=f"sliproad: {result.scenario}",
        summary=_summary(result),
        facts={**_facts(result, world), **(facts or {})},
        sections=sections,
    )
    return report.save(path)


def _summary(result: Evaluation) -> str:
    if result.better is None:
        return "Baselines and the clairvoyant bound; no learnt policy was given."
    who = result.better.replace("-", " ")
    agent, local = result.policies[result.better], result.policies["full-local"]
    kept = "keeps" if result.keeps_floor(result.better) else "MISSES"
    origin = result.origins.get(result.better)
    who += " (shipped)" if origin is not None and origin.shipped else ""
    return (
        f"On {result.drives} drives that training never saw, the {who} needs "
        f"{local['delay_ms'] / agent['delay_ms']:.2f} times less delay and "
        f"{local['energy_mj'] / agent['energy_mj']:.2f} times less device energy than full local "
        f"processing, and {kept} the accuracy floor ({100 * agent['accuracy']:.2f} % against "
        f"{100 * result.floor:.2f} %)."
    )


def _facts(result: Evaluation, world: World) -> dict[str, str]:
    return {
        "test drives": f"{result.drives} of {result.frames} frames, seed {result.seed}",
        "frames": f"{world.table.source}, {len(world.table)} frames, answers of the real network",
        "traces": f"{len(world.pool)} traces, such as {world.pool.names[0]}",
        "cost model": f"{world.cost.name} ({world.cost.source}), slowdown {world.cost.slowdown:g}",
        "power": world.cost.power_source,
        "model bundle": world.table.bundle_hash[:12],
        **{name: str(origin) for name, origin in result.origins.items()},
        "sliproad": f"{cnn.__version__}, Python {platform.python_version()}",
    }


def _comparison(result: Evaluation) -> Section:
    table = comparison(result)
    rows = []
    keys = sorted(result.policies, key=lambda name: result.policies[name]["cost"])
    for key, row in zip(keys, table.rows, strict=True):
        interval, difference = result.intervals.get(key), result.differences.get(key)
        rows.append(
            (
                *row,
                "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}",
                ""
                if difference is None
                else f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})",
            )
        )
    columns = (*table.columns, "cost, 95 % interval", "cost over the agent, paired")
    text = (
        "Means over all frames. Every policy met the same frames, traces and random numbers; "
        "intervals are bootstrapped over drives. Baselines were tuned on training drives. "
        + " ".join(f"{note[0].upper()}{note[1:]}." for note in table.notes)
    )
    return Section("Comparison", text, Table(columns, rows))


def _live(live: Mapping[str, Mapping[str, float]], text: str) -> Section:
    return Section(
        "Live against replay", text, Table(COLUMNS, [cells(k, v) for k, v in live.items()])
    )


def _frontier(result: Evaluation) -> Section:
    statics = {
        name: figures for name, figures in result.statics.items() if np.isfinite(figures["cost"])
    }
    return Section(
        "Cost and accuracy",
        "Left and up is better. Grey: the twenty static pairs (those within the picture). "
        "Below the dashed line the accuracy floor is broken; left of the dotted line no policy "
        "that keeps the floor can be.",
        png=plots.cost_accuracy(result.policies, statics, result.floor, result.bound_cost),
    )


def _cdfs(result: Evaluation, deadline_ms: float) -> Section:
    names = [
        n
        for n in (AGENT, STAGED, BEST_STATIC, "greedy", "threshold", "full-local", "full-offload")
        if n in result.rollouts
    ]
    delays = {n: result.rollouts[n].delay_ms.ravel() for n in names}
    return Section(
        "Delay",
        "Share of frames whose answer is known within a time, queueing included.",
        png=plots.delay_cdfs(delays, deadline_ms),
    )


def _shares(result: Evaluation) -> Section:
    shares = {name: action_shares(r) for name, r in result.rollouts.items() if name != "random"}
    return Section(
        "Actions taken",
        "Colour: how many blocks run on the device; lighter: earlier exit.",
        png=action_plots.action_shares(shares),
    )


def _timeline(result: Evaluation, world: World, deadline_ms: float, name: str) -> Section:
    rollout = result.rollouts[name]
    drive = _telling_drive(rollout)
    period_s = world.scenario.timing.period_ms / 1e3
    frame = pd.DataFrame(
        {
            "time_s": np.arange(rollout.action.shape[1]) * period_s,
            **{
                name: getattr(rollout, name)[drive]
                for name in ("uplink_mbps", "action", "confidence", "correct", "delay_ms")
            },
        }
    )
    return Section(
        "One drive" if name == AGENT else f"One drive of the {name.replace('-', ' ')}",
        f"Test drive {drive}: true uplink capacity (the agent sees only what its own transfers "
        "told it), the exit and split it chose, how sure the answer was, and the delay.",
        png=action_plots.drive_timeline(frame, deadline_ms),
    )


def _telling_drive(rollout: Rollout) -> int:
    """The drive with the most changes of action: it shows most of the policy."""
    return int((np.diff(rollout.action, axis=1) != 0).sum(1).argmax())


def _map(world: World, policy: Policy) -> Section:
    return Section(
        "Action map",
        "Most frequent action over the believed uplink rate and the confidence of the answers "
        "seen on the track; everything else as met on test drives after answers below 0.9.",
        png=action_plots.action_map(action_grid(world, policy), MAP_RATES_MBPS, MAP_CONFIDENCES),
    )


def action_grid(world: World, policy: Policy, samples: int = 64) -> NDArray[np.int64]:
    """Actions over `MAP_CONFIDENCES` x `MAP_RATES_MBPS`, the most frequent over observations.

    Returns:
        int64 (n_confidences, n_rates).
    """
    seen = sample_observations(world, policy, episode_keys(1, 16))
    seen = seen[seen[:, AT["answers_on_track"]] > scale_one(AT["answers_on_track"], 0.5)]
    # Where the last answer was certain, the rest of the observation says so, too: a map
    # around such frames would show how the policy reads contradictions.
    doubtful = seen[seen[:, AT["last_confidence"]] < scale_one(AT["last_confidence"], 0.9)]
    seen = doubtful if len(doubtful) >= samples else seen
    pick = np.random.default_rng(0).choice(len(seen), min(samples, len(seen)), replace=False)
    base = seen[pick]
    exits = slice(AT["confidence_exit1"], AT["confidence_exit1"] + N_EXITS)
    known = base[:, exits] > -1.0  # -1 is "not seen on this track"
    grid = np.empty((len(MAP_CONFIDENCES), len(MAP_RATES_MBPS)), np.int64)
    for i, confidence in enumerate(MAP_CONFIDENCES):
        x = np.repeat(base[None], len(MAP_RATES_MBPS), 0)
        scaled = scale_one(AT["last_confidence"], float(confidence))
        x[:, :, AT["last_confidence"]] = scaled
        x[:, :, exits] = np.where(known, scaled, x[:, :, exits])
        for j, rate in enumerate(MAP_RATES_MBPS):
            x[j, :, AT["uplink_mbps"]] = scale_one(AT["uplink_mbps"], float(rate))
        actions = policy.decide_batch(x.reshape(-1, x.shape[2])).reshape(len(MAP_RATES_MBPS), -1)
        for j, row in enumerate(actions):
            grid[i, j] = np.bincount(row, minlength=len(ACTIONS)).argmax()
    return grid
