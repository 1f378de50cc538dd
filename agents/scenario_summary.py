"""What a new scenario is made of: for its file's comments, the terminal and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from agents.baselines.rules import static_policies
from agents.evaluation import floor_on
from agents.floor_kept import keeps, rank
from agents.new_scenario import NewScenario, median_rtt_ms
from agents.rollout import simulate, summary
from agents.run_files import SCENARIO_MARK
from cnn.common.errors import shown
from cnn.topology import Topology
from offload_env.episode import episode_keys
from offload_env.scenario import scenario_toml
from offload_env.world import World

DRIVES: Final = 96
"""Training drives on which the static actions are compared."""
FRAMES: Final = 100
"""Their length: many short drives take less time than few long ones."""
_WIDTH: Final = 96


def file_text(made: NewScenario) -> str:
    """The scenario's file: keys that differ from their defaults, with comments."""
    return scenario_toml(made.scenario, _notes(made))


def report(made: NewScenario, out: Path) -> dict[str, Any]:
    """What the scenario is made of, in plain values."""
    world, scenario = made.train, made.scenario
    at = world.topology
    return {
        "scenario": str(out),
        "network": _form(at),
        "frames": {
            w.split: {"frames": len(w.table), "tracks": w.table.n_tracks, "source": w.table.source}
            for w in (made.train, made.test)
        },
        "traces": {w.split: len(w.traces) for w in (made.train, made.test)},
        "mean_mbps": _mean_mbps(world),
        "median_rtt_ms": median_rtt_ms(world),
        "device": world.cost.name,
        "full_local_ms": world.delay_ref_ms,
        "full_local_mj": world.energy_ref_mj,
        "period_ms": scenario.timing.period_ms,
        "timeout_ms": scenario.timing.timeout_ms,
        "measure": world.table.measure,
        "floor": world.accuracy_floor,
        "best_static": _best_static(world),
        "why": list(made.why),
        "notes": list(made.traces),
        "warnings": list(made.warnings),
    }


def _best_static(world: World) -> dict[str, Any]:
    """The cheapest action that keeps the floor if it is always taken; else the most accurate."""
    keys, floor = episode_keys(world.scenario.link.seed, DRIVES), 0.0
    found: dict[str, dict[str, float]] = {}
    for policy in static_policies(world.topology):
        driven = simulate(world, policy, keys, frames=FRAMES)
        found[policy.action.name] = summary(driven)
        floor = floor_on(world, driven.row)  # the same frames for every policy
    name = min(found, key=lambda name: rank(found[name]["cost"], found[name]["accuracy"], floor))
    return {
        "action": name,
        "floor": floor,
        "keeps_floor": keeps(found[name]["accuracy"], floor),
        **{key: found[name][key] for key in ("cost", "delay_ms", "energy_mj", "accuracy")},
    }


def lines(about: dict[str, Any]) -> list[str]:
    """A `report` for people."""
    network, frames, static = about["network"], about["frames"], about["best_static"]
    kept = "the cheapest static action that keeps it"
    if not static["keeps_floor"]:
        kept = "no static action keeps it, the most accurate one"
    said = [
        f"network  {_network(network)}",
        *(
            f"{split:<8} {part['frames']} frames in {part['tracks']} tracks, "
            f"{about['traces'][split]} drives of the link"
            for split, part in frames.items()
        ),
        f"link     mean {about['mean_mbps']:.3g} Mbit/s, "
        f"median round trip {about['median_rtt_ms']:.3g} ms",
        *(f"         {note}" for note in about["notes"]),
        f"device   {shown(about['device'])}: full local processing takes "
        f"{about['full_local_ms']:.4g} ms and {about['full_local_mj']:.4g} mJ, which cost 1",
        *(f"timing   {why}" for why in about["why"]),
        f"floor    {100 * about['floor']:.2f} % mean {about['measure']}",
        f"static   {kept}: {static['action']}, cost {static['cost']:.4f}, "
        f"{static['delay_ms']:.4g} ms, {static['energy_mj']:.4g} mJ, "
        f"{100 * static['accuracy']:.2f} % where the floor is {100 * static['floor']:.2f} % "
        f"({DRIVES} training drives of {FRAMES} frames)",
    ]
    return [_plain(line) for line in said]


def _mean_mbps(world: World) -> float:
    return float(np.mean(np.concatenate([trace.uplink_mbps for trace in world.traces])))


def _form(at: Topology) -> dict[str, Any]:
    return {
        "blocks": at.n_blocks,
        "exits": list(at.exits),
        "splits": list(at.splits),
        "actions": at.n_actions,
    }


def _network(network: dict[str, Any]) -> str:
    exits, splits = (", ".join(map(str, network[k])) for k in ("exits", "splits"))
    return (
        f"{network['blocks']} blocks, exits behind {exits}, "
        f"splits behind {splits or 'none'}: {network['actions']} actions"
    )


def _notes(made: NewScenario) -> dict[str, list[str]]:
    """The comments of the scenario's file, by section."""
    world, at = made.train, made.train.topology
    margin = made.scenario.constraint.accuracy_margin
    link = (
        f"{len(made.train.traces)} training and {len(made.test.traces)} test drives; training "
        f"drives have a mean of {_mean_mbps(world):.3g} Mbit/s and a median round trip of "
        f"{median_rtt_ms(world):.3g} ms."
    )
    said = {
        "": [
            SCENARIO_MARK.removeprefix("# "),
            "A key that is not here has its default (docs/environment.md). Paths count from the "
            "folder in which you run.",
        ],
        "frames": [
            f"{_network(_form(at))}.",
            *(
                f"{w.split}: {len(w.table)} frames in {w.table.n_tracks} tracks, "
                f"{shown(w.table.source)}."
                for w in (made.train, made.test)
            ),
        ],
        "device": [
            f"{shown(world.cost.name)}: full local processing takes {world.delay_ref_ms:.4g} ms "
            f"and {world.energy_ref_mj:.4g} mJ."
        ],
        "link": [link, *made.traces],
        "timing": [f"{why}." for why in made.why],
        "constraint": [
            f"The floor: {100 * world.accuracy_floor:.2f} % mean {world.table.measure}, full local "
            f"processing's on the training frames less {margin:g}."
        ],
    }
    return {section: _wrapped(each) for section, each in said.items()}


def _wrapped(texts: Sequence[str]) -> list[str]:
    wrap = textwrap.TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
    return [line for text in texts for line in wrap.wrap(_plain(text))]


def _plain(text: str) -> str:
    """Names come from files, and neither TOML nor a terminal takes every character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
