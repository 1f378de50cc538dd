"""The HTML report of an evaluation, with a live run beside it if there was one.

One self-contained page: tables, and pictures inlined as PNG (``assets/report.html``, jinja2).
"""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from numpy.typing import NDArray

import cnn
from agents import action_plots, plots
from agents.baselines.prediction import reader
from agents.evaluation import AGENT, BEST_STATIC, STAGED, Evaluation
from agents.rollout import Rollout, simulate
from agents.terminal import COLUMNS, Comparison, cells, comparison, energy_table, floor_table
from agents.train_config import MARGIN
from cnn.common.files import write_text
from cnn.topology import Topology
from offload_env.batch_simulator import FALLBACK, SKIPPED
from offload_env.episode import episode_keys
from offload_env.world import World
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy

MAP_COLUMNS = 24
MAP_DOUBTS = np.geomspace(1e-4, 1.0, 21)
"""Columns of the action map, and edges of its rows; smaller values count with the first row."""
_DRAWN = ("uplink_mbps", "action", "status", "confidence", "correct", "delay_ms")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are shown, one row a policy, its name first."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @staticmethod
    def style(row: Sequence[str]) -> str:
        """CSS classes of a row, from its policy's name and whether it says MISSED."""
        name = row[0]
        classes = ["agent"] if "agent" in name else []
        classes += ["bound"] if "clairvoyant" in name or "bound" in name else []
        return " ".join([*classes, "missed"] if "MISSED" in row else classes)


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a sentence on how to read it, a table and a picture."""

    title: str
    text: str = ""
    table: Table | None = None
    png: bytes | None = None

    @property
    def image(self) -> str:
        """The picture in base64, empty if there is none."""
        return base64.b64encode(self.png).decode() if self.png else ""


def write_report(
    result: Evaluation,
    world: World,
    agents: Mapping[str, Policy],
    path: Path,
    *,
    learning: pd.DataFrame | None = None,
    live: Mapping[str, Mapping[str, float]] | None = None,
    live_text: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Draw all figures and write one self-contained page.

    Args:
        result: of `agents.evaluation.evaluate`.
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
        *(_as_section(table) for table in (floor_table(result), energy_table(result))),
        _frontier(result),
        _cdfs(result, deadline),
        _shares(result, world.topology),
    ]
    if live is not None:
        sections.insert(1, _live(live, live_text))
    for name, policy in agents.items():
        sections.append(_timeline(result, world, deadline, name))
        if not policy.space.is_staged:
            sections.append(_map(world, policy))
    if learning is not None and len(learning):
        floor = world.settings.accuracy_floor
        sections.append(
            Section(
                "Learning",
                f"Cost and {result.measure} of the exploring policy at each update, of the greedy "
                "policy on validation drives, and the price of a wrong answer that dual ascent "
                "sets.",
                png=plots.learning_curve(learning, floor, MARGIN, result.measure),
            )
        )
    template = resources.files("agents").joinpath("assets/report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)  # everything from outside is escaped
    content = page.render(
        title=f"sliproad: {result.scenario}",
        summary=_summary(result),
        facts={**_facts(result, world), **(facts or {})},
        sections=sections,
    )
    write_text(path, content)
    return path


def _summary(result: Evaluation) -> str:
    if result.better is None:
        return "Baselines and the clairvoyant bound; no learnt policy was given."
    who = result.better.replace("-", " ")
    agent, local = result.policies[result.better], result.policies["full-local"]
    kept = "keeps" if result.keeps_floor(result.better) else "MISSES"
    origin = result.origins.get(result.better)
    who += " (shipped)" if origin is not None and origin.shipped else ""
    gains = result.energy_gains()
    return (
        f"On {result.drives} drives that training never saw, the {who} needs "
        f"{local['delay_ms'] / agent['delay_ms']:.2f} times less delay and "
        f"{gains['active']:.2f} times less energy in its active window (idle time between frames "
        f"included, {gains['whole']:.2f} times) than full local processing, and {kept} the "
        f"{result.measure} floor on average ({100 * agent['accuracy']:.2f} % against "
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
        interval = result.intervals.get(key)
        difference = result.differences.get(AGENT, {}).get(key)
        over = "" if difference is None else f"{difference.mean:+.4f} "
        if difference is not None:
            over += f"({difference.low:+.4f} to {difference.high:+.4f})"
        ends = "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"
        rows.append((*row, ends, over))
    columns = (*table.columns, "cost, 95 % interval", "cost over the agent, paired")
    text = (
        "Means over all frames. Every policy met the same frames, traces and random numbers; "
        "intervals are bootstrapped over drives. Baselines were tuned on training drives. "
        + " ".join(f"{note[0].upper()}{note[1:]}." for note in table.notes)
    )
    return Section("Comparison", text, Table(columns, rows))


def _as_section(table: Comparison) -> Section:
    text = " ".join(f"{note[0].upper()}{note[1:]}." for note in table.notes)
    return Section(table.title, text, Table(table.columns, table.rows))


def _live(live: Mapping[str, Mapping[str, float]], text: str) -> Section:
    return Section(
        "Live against replay", text, Table(COLUMNS, [cells(k, v) for k, v in live.items()])
    )


def _frontier(result: Evaluation) -> Section:
    statics = {name: m for name, m in result.statics.items() if np.isfinite(m["cost"])}
    return Section(
        f"Cost and {result.measure}",
        "Left and up is better. Grey: the static pairs (those within the picture). "
        f"Below the dashed line the {result.measure} floor is broken; left of the dotted line no "
        "policy that keeps the floor can be. Sizes say nothing: later points are smaller, so that "
        "each of those that coincide shows.",
        png=plots.cost_accuracy(
            result.policies, statics, result.floor, result.bound_cost, result.measure
        ),
    )


def _cdfs(result: Evaluation, deadline_ms: float) -> Section:
    always = (AGENT, STAGED, best_baseline(result), BEST_STATIC, "full-local", "full-offload")
    names = [n for n in dict.fromkeys(always) if n in result.rollouts]
    delays = {n: result.rollouts[n].delay_ms.ravel() for n in names}
    return Section(
        "Delay",
        "Share of frames whose answer is known within a time, queueing included. Of the rules, "
        f"{best_baseline(result)} is the cheapest on these drives that keeps the floor.",
        png=plots.delay_cdfs(delays, deadline_ms),
    )


def best_baseline(result: Evaluation) -> str:
    """The cheapest rule that keeps the floor on these drives; of all, if none does."""
    rules = [n for n in result.rollouts if n not in (AGENT, STAGED)]
    kept = [n for n in rules if result.keeps_floor(n)]
    return min(kept or rules, key=lambda name: result.policies[name]["cost"])


def _shares(result: Evaluation, topology: Topology) -> Section:
    shares = {name: driven_shares(r) for name, r in result.rollouts.items() if name != "random"}
    return Section(
        "Actions taken",
        "As driven: frames whose server did not answer and frames that were skipped count as "
        "such. Colour: how many blocks run on the device; lighter: earlier exit.",
        png=action_plots.action_shares(shares, topology),
    )


def _timeline(result: Evaluation, world: World, deadline_ms: float, name: str) -> Section:
    rollout = result.rollouts[name]
    drive = _telling_drive(rollout)
    period_s = world.scenario.timing.period_ms / 1e3
    frame = pd.DataFrame(
        {
            "time_s": np.arange(rollout.action.shape[1]) * period_s,
            **{name: getattr(rollout, name)[drive] for name in _DRAWN},
        }
    )
    return Section(
        "One drive" if name == AGENT else f"One drive of the {name.replace('-', ' ')}",
        f"Test drive {drive}: true uplink capacity (the agent sees only what its own transfers "
        "told it), the exit and split as driven, how sure the answer was, and the delay.",
        png=action_plots.drive_timeline(frame, deadline_ms, rollout.topology),
    )


def _telling_drive(rollout: Rollout) -> int:
    """The drive with the most changes of action, which shows the policy best."""
    return int((np.diff(rollout.action, axis=1) != 0).sum(1).argmax())


def _map(world: World, policy: Policy) -> Section:
    return Section(
        "Action map",
        "Most frequent action of the frames driven on test drives, over the mean time of the "
        "device's recent exchanges and its doubt of the last answer on the track (1 less the "
        "calibrated confidence). Blank: never met.",
        png=action_plots.action_map(driven_actions(world, policy, episode_keys(1, 64))),
    )


def driven_actions(
    world: World, policy: Policy, keys: NDArray[np.uint64], frames: int = 100
) -> action_plots.DrivenActions:
    """A policy's most frequent action over the device's estimates, on the evaluated drives.

    The axis is the mean time of recent exchanges, not the estimated rate: payloads are small, so
    they hardly show the rate, which lies at the end of its range most of the time. Only frames of
    tracks that had an answer count: before it there is no confidence.
    """
    observations: list[NDArray[np.float32]] = []
    simulate(world, policy, keys, frames=frames, seen=observations.append)
    seen = np.concatenate(observations)
    topology = world.topology
    read = reader(topology)
    answers = read.at["answers_on_track"]
    seen = seen[seen[:, answers] > schema_of(topology).scale_one(answers, 0.5)]
    actions = policy.decide_batch(seen) if len(seen) else np.empty(0, np.int64)
    raw = read(seen)
    took_ms, confidence = raw[:, read.at["transfer_mean_ms"]], raw[:, read.at["last_confidence"]]
    ends = (took_ms.min(), took_ms.max()) if len(seen) else (1.0, 1000.0)
    times = np.geomspace(0.95 * ends[0], 1.05 * ends[1], MAP_COLUMNS + 1)
    column = np.searchsorted(times, took_ms, "right") - 1
    row = (np.searchsorted(MAP_DOUBTS, 1.0 - confidence, "right") - 1).clip(0, len(MAP_DOUBTS) - 2)
    counts = np.zeros((len(MAP_DOUBTS) - 1, MAP_COLUMNS, topology.n_actions), np.int64)
    np.add.at(counts, (row, column, actions), 1)
    most = np.where(counts.any(2), counts.argmax(2), -1)
    return action_plots.DrivenActions(most, times, MAP_DOUBTS, topology)


def driven_shares(rollout: Rollout) -> NDArray[np.float64]:
    """Shares of frames by outcome, (n_actions + 2,); see `action_plots.action_shares`."""
    n = rollout.topology.n_actions
    outcome = np.where(rollout.status == FALLBACK, n, rollout.action)
    outcome = np.where(rollout.status == SKIPPED, n + 1, outcome)
    counts = np.bincount(outcome.ravel(), minlength=n + 2)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares
