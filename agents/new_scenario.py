"""A scenario of a user's own parts: `sliproad agent new-scenario`.

What is not given has the default of `offload_env.scenario`, but for the timing, which follows from
the device (`offload_env.timing_rule`). The parts are put together as for a training, so that parts
that do not fit are found before the file is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from cnn.common.errors import ConfigError, DataError, require, shown
from cnn.frame_table import FrameTable
from cnn.topology import SHIPPED
from offload_env.scenario import (
    SPLITS,
    Constraint,
    Device,
    Frames,
    Link,
    Scenario,
    Split,
    Timing,
)
from offload_env.sources import check_fit, load_cost, load_table, measured_traces
from offload_env.timing_rule import timing_for
from offload_env.world import World, build_world
from testbed.common.output_kinds import TRACE_KIND
from testbed.traces.generator import KINDS
from testbed.traces.split_rule import RULES

Section = TypeVar("Section", Device, Link, Timing, Constraint)
_OPTION: Final = "correct the option"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the command line gives; None or empty is the default.

    Attributes:
        train_frames, test_frames: as `offload_env.scenario.Frames`.
        device: path of a device profile.
        full_local_ms, power: as `offload_env.scenario.Device`.
        link: a shipped kind's name or a kind's file, and a folder or files of measured traces.
        split, rtt_ms: of measured traces, as `offload_env.scenario.Link`.
        period_ms: between two camera frames.
        margin: `offload_env.scenario.Constraint.accuracy_margin`.
        description: one sentence.
        seed: of generated drives, of the split of measured ones, and of the static actions' drives.
    """

    train_frames: str = ""
    test_frames: str = ""
    device: str = ""
    full_local_ms: float | None = None
    power: str = ""
    link: tuple[str, ...] = ()
    split: str = ""
    rtt_ms: float | None = None
    period_ms: float | None = None
    margin: float | None = None
    description: str = ""
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class NewScenario:
    """A scenario whose parts fit together.

    Attributes:
        scenario: the scenario.
        train, test: its worlds.
        why: reasons of the timing, one sentence each.
        traces: what was taken of measured traces, and what was left out.
        warnings: what the user may not have intended.
    """

    scenario: Scenario
    train: World
    test: World
    why: tuple[str, ...]
    traces: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def compose(parts: Parts, name: str) -> NewScenario:
    """Put the parts together as a training does.

    Args:
        parts: of the scenario.
        name: of the scenario: its file's, without ``.toml``.

    Raises:
        ConfigError: a setting is impossible, or parts are of different networks.
        DataError: a part cannot be read, or does not fit the others.
    """
    scenario = Scenario(
        name,
        parts.description,
        _frames(parts),
        _device(parts),
        _link(parts),
        constraint=_given(Constraint(), accuracy_margin=parts.margin),
    )
    train = load_table(scenario, "train")
    _check_tables(train, load_table(scenario, "test"))
    if not parts.device and train.topology != SHIPPED:
        raise ConfigError(
            f"frames of {train.topology} without --device",
            expected="the profile of a device that ran this network",
            hint="measure it with `sliproad testbed campaign` and `sliproad testbed fit`, "
            "docs/your-device.md",
        )
    cost = load_cost(scenario)
    check_fit(train, cost)
    _given(Timing(), period_ms=parts.period_ms)  # checks it
    timing, why = timing_for(cost, parts.period_ms)
    scenario = replace(scenario, timing=timing)
    worlds: dict[Split, World] = {}
    said: list[str] = []
    for split in SPLITS:
        if scenario.link.source == "measured":
            found = measured_traces(scenario, split)
            said += [f"{split}: {note}" for note in found.notes]
            worlds[split] = build_world(scenario, split, traces=found.traces)
        else:
            worlds[split] = build_world(scenario, split)
    made = NewScenario(scenario, worlds["train"], worlds["test"], why, tuple(said))
    return replace(made, warnings=tuple(_warnings(made)))


def _frames(parts: Parts) -> Frames:
    given = (parts.train_frames, parts.test_frames)
    require(
        bool(given[0]) == bool(given[1]),
        f"--train-frames {given[0] or 'missing'} and --test-frames {given[1] or 'missing'}",
        "both, or none for the shipped network's",
        "give the other one: `sliproad cnn table` writes them",
    )
    return Frames(*given) if given[0] else Frames()


def _device(parts: Parts) -> Device:
    return _given(
        Device(),
        cost_model=parts.device or None,
        full_local_ms=parts.full_local_ms,
        power=parts.power or None,
    )


def _link(parts: Parts) -> Link:
    """Each value is a kind, or measured traces."""
    kinds = [word for word in parts.link if word in KINDS or TRACE_KIND.holds(Path(word))]
    traces = [word for word in parts.link if word not in kinds]
    for word in traces:
        require(
            Path(word).exists(),
            f"--link {shown(word)}, which is not there",
            f"one of {', '.join(KINDS)}, a kind's file, or a folder or files of traces",
            "correct the name or the path",
        )
    folders = [word for word in traces if Path(word).is_dir()]
    require(
        len(kinds) <= 1 and (not folders or len(traces) == 1),
        " ".join(f"--link {word}" for word in parts.link),
        "one kind at most, and one folder or any number of files",
        "give one of them, or put the traces into one folder",
    )
    require(
        bool(traces) or (not parts.split and parts.rtt_ms is None),
        "--split or --rtt-ms without traces",
        "--link with a folder or files of traces",
        "leave them out: generated drives need neither",
    )
    require(
        parts.split in ("", *RULES), f"--split {parts.split}", f"one of {', '.join(RULES)}", _OPTION
    )
    return _given(
        Link(),
        source="measured" if traces else None,
        kind=kinds[0] if kinds else None,
        folder=folders[0] if folders else None,
        files=tuple(traces) if traces and not folders else None,
        split=parts.split or None,
        rtt_ms=parts.rtt_ms,
        seed=parts.seed,
    )


def _given(section: Section, **values: Any) -> Section:
    """A section of the scenario with those values that are not None."""
    try:
        return replace(section, **{k: v for k, v in values.items() if v is not None})
    except ConfigError as error:
        raise ConfigError(error.given, expected=error.expected, hint=_OPTION) from None


def _check_tables(train: FrameTable, test: FrameTable) -> None:
    """Raise an error unless both are of one network, and of different frames."""
    given, expected = f"test frames ({test.source})", f"the training frames ({train.source})"
    train.topology.require_same(test.topology, given, expected)
    if (train.bundle_hash, train.measure) != (test.bundle_hash, test.measure):
        raise DataError(
            f"{given} with {test.measure} of bundle {test.bundle_hash[:12]}",
            expected=f"{train.measure} of bundle {train.bundle_hash[:12]}, as {expected}",
            hint="make both tables with one bundle: `sliproad cnn table`",
        )
    if np.array_equal(train.features, test.features) and np.array_equal(
        train.confidence, test.confidence
    ):
        raise DataError(
            f"{given} that are also {expected}",
            expected="other frames to judge a policy on",
            hint="make them of another part: `sliproad cnn table`",
        )


def _warnings(made: NewScenario) -> list[str]:
    world, timing = made.train, made.scenario.timing
    found = []
    if world.delay_ref_ms > timing.period_ms:
        found.append(
            f"full local processing takes {world.delay_ref_ms:.4g} ms, longer than the period "
            f"({timing.period_ms:g} ms): frames will be skipped"
        )
    trip = median_rtt_ms(world) + world.cost.net_ms
    if trip > timing.timeout_ms:
        found.append(
            f"half of all exchanges take at least {trip:.4g} ms, longer than the time-out "
            f"({timing.timeout_ms:g} ms): give a longer --period-ms, or another --link"
        )
    if world.accuracy_floor <= 0:
        found.append("the floor is 0, any answer keeps it: --margin 0.01 is one point")
    return found


def median_rtt_ms(world: World) -> float:
    """Of the base round trips of a world's drives, over time."""
    return float(np.median(np.concatenate([trace.rtt_ms for trace in world.traces])))
