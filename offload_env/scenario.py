"""Scenarios: the frames, the device, the link, the server and the price.

A scenario is a TOML file with the sections of `Scenario`. Every key is checked: an unknown
one, a wrong type or an impossible value is a `ConfigError` that says what is expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from cnn.common.errors import MAX_SEED, ConfigError, in_range, require, shown
from offload_env.heat import Heat
from offload_env.server_load import ServerLoad
from testbed.common.toml_config import build, parse, toml_text
from testbed.meters.cost_model import SHIPPED_PROFILES
from testbed.meters.power import in_folder
from testbed.policy.observation_fields import MAX_MS
from testbed.traces.split_rule import RULES, SplitRule

Split = Literal["train", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "test")
CLASSIC: Final = (
    *("busy-edge", "fast-device", "highway-lte", "poor-coverage", "slow-device", "urban-5g"),
)
"""The first generation: the shipped network, at a pace that full local processing keeps."""
_MEND: Final = "correct the scenario"
_MAX_CLASS: Final = 2**15 - 1
"""A class is an int16 everywhere (`cnn.frame_table`)."""
_MAX_SAMPLES: Final = 20_000_000
"""Samples of all generated traces of a scenario; a few numbers each."""
_TEST_SEEDS: Final = 100_000
"""Test drives start this many seeds after the first training drive."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Frame tables; their tracks are disjoint.

    Attributes:
        train: table of the training drives: ``policy-train``, ``policy-train-varied``,
            ``policy-test``, ``cifar10-train``, ``dusk-train``, or the path of one that `sliproad
            cnn table` wrote (.npz).
        test: table of the test drives, likewise.
    """

    train: str = "policy-train-varied"
    test: str = "policy-test"


@dataclass(frozen=True, slots=True)
class Device:
    """The moving device.

    Attributes:
        cost_model: ``fitted`` (the shipped network's), ``ladder-cifar10``, ``ladder-dusk``, or the
            path of a device profile that `sliproad testbed fit` wrote.
        slowdown: factor on the model's device times; not together with `full_local_ms`.
        full_local_ms: instead of a factor, the time that full local processing takes on this
            device; 0 uses `slowdown`. It means the same device whatever machine the cost
            model was measured on.
        power: power profile ``device+modem`` (shipped names, or paths of power files); empty keeps
            the model's.
    """

    cost_model: str = "fitted"
    slowdown: float = 1.0
    full_local_ms: float = 0.0
    power: str = ""

    def __post_init__(self) -> None:
        _in_range("slowdown", self.slowdown, 0.001, 10_000)
        if self.full_local_ms != 0:
            _in_range("full_local_ms", self.full_local_ms, 0.01, MAX_MS)
        _require(
            self.slowdown == 1.0 or self.full_local_ms == 0.0,
            f"both slowdown {self.slowdown} and full_local_ms {self.full_local_ms}",
            "one of the two",
        )


@dataclass(frozen=True, slots=True)
class Link:
    """Network traces; train and test come from different seeds or different drives.

    Attributes:
        source: ``generated`` (nothing else is needed) or ``measured`` (the traces of `folder` or
            `files`, or the collection in the folder that SLIPROAD_DATA names).
        kind: ``urban-5g``, ``highway-lte`` or ``poor-coverage``, or the path of a file (.json)
            that `sliproad testbed traces fit` wrote.
        train_traces: number of generated training drives, at most 100000.
        test_traces: number of generated test drives, at most 100000.
        seed: training drives take seeds ``seed`` .. ``seed + train_traces - 1``, test drives
            the seeds from ``seed + 100000`` on; also the seed of `split`.
        duration_s: length of a generated drive.
        period_s: sample period of a drive.
        folder: of the measured traces; empty takes the one that SLIPROAD_DATA names.
        files: measured traces, instead of a folder.
        split: what trains and what tests of your own measured traces: whole files (``file``; in
            a collection whole groups), whole days (``day``), or the beginning of each trace
            against its end (``fraction``); empty is ``file``, and for a collection with drives
            of `kind` the list of docs/traces.md.
        train_share: share of the files, days or each trace's time that trains, between 0 and 1.
        rtt_ms: constant base round trip of measured traces that have none; 0 generates it by
            the model of `kind`.
    """

    source: str = "generated"
    kind: str = "urban-5g"
    train_traces: int = 64
    test_traces: int = 32
    seed: int = 1
    duration_s: float = 120.0
    period_s: float = 0.1
    folder: str = ""
    files: tuple[str, ...] = ()
    split: str = ""
    train_share: float = 0.7
    rtt_ms: float = 0.0

    def __post_init__(self) -> None:
        _require(
            self.source in ("generated", "measured"),
            f"link source {shown(self.source)}",
            "generated or measured",
        )
        _in_range("train_traces", self.train_traces, 1, _TEST_SEEDS)
        _in_range("test_traces", self.test_traces, 1, _TEST_SEEDS)
        _in_range("seed", self.seed, 0, MAX_SEED)
        _in_range("duration_s", self.duration_s, 0.001, 86_400)
        _in_range("period_s", self.period_s, 0.001, 3600)
        _require(
            self.duration_s >= self.period_s,
            f"duration_s {self.duration_s:g} with period_s {self.period_s:g}",
            "a drive of at least one sample",
        )
        samples = (self.train_traces + self.test_traces) * self.duration_s / self.period_s
        _require(
            samples <= _MAX_SAMPLES,
            f"{self.train_traces} and {self.test_traces} traces of {self.duration_s:g} s in "
            f"samples of {self.period_s:g} s",
            f"at most {_MAX_SAMPLES} samples in all",
        )
        _in_range("rtt_ms", self.rtt_ms, 0, 60_000)
        _require(
            not self.files or (self.source == "measured" and not self.folder),
            f"files with source {self.source}{' and a folder' if self.folder else ''}",
            "files with source measured and without a folder",
        )
        _ = self.rule  # checks split and train_share

    @property
    def rule(self) -> SplitRule:
        """How the user's own traces are divided."""
        return SplitRule(self.split or RULES[0], self.train_share, self.seed)

    def seeds(self, split: Split) -> range:
        """Seeds of the generated drives of one split."""
        if split == "train":
            return range(self.seed, self.seed + self.train_traces)
        first = self.seed + _TEST_SEEDS
        return range(first, first + self.test_traces)


@dataclass(frozen=True, slots=True)
class Timing:
    """Frame arrivals and time-outs.

    Attributes:
        n_frames: frames of one episode (one drive).
        period_ms: between two camera frames.
        timeout_ms: an exchange without answer after this is given up for local compute.
        deadline_ms: a frame answered later than this is a miss.
        max_queue_ms: a frame that has waited longer when its turn comes is skipped.
    """

    n_frames: int = 300
    period_ms: float = 100.0
    timeout_ms: float = 150.0
    deadline_ms: float = 100.0
    max_queue_ms: float = 200.0

    def __post_init__(self) -> None:
        _in_range("n_frames", self.n_frames, 1, 100_000)
        for name in ("period_ms", "timeout_ms", "deadline_ms"):
            _in_range(name, getattr(self, name), 0.01, 3_600_000)
        _in_range("max_queue_ms", self.max_queue_ms, 0, 3_600_000)


@dataclass(frozen=True, slots=True)
class Price:
    """Cost of a frame: see docs/architecture.md, "One frame on the device".

    Attributes:
        delay_weight: weight of delay over that of full local processing.
        energy_weight: weight of energy over that of full local processing.
        miss: added when the deadline is missed or the frame skipped.
        energy_budget_mj: energy allowed for an episode; 0 is no budget.
        over_budget: added for every frame that ends with the budget spent.
    """

    delay_weight: float = 0.5
    energy_weight: float = 0.5
    miss: float = 1.0
    energy_budget_mj: float = 0.0
    over_budget: float = 0.0

    def __post_init__(self) -> None:
        for name in ("delay_weight", "energy_weight", "miss", "over_budget"):
            _in_range(name, getattr(self, name), 0, 1e6)
        _in_range("energy_budget_mj", self.energy_budget_mj, 0, 1e12)
        _require(
            self.delay_weight + self.energy_weight > 0,
            "delay_weight and energy_weight of 0",
            "at least one weight above 0",
        )


@dataclass(frozen=True, slots=True)
class Constraint:
    """Required mean accuracy over the drives.

    Attributes:
        accuracy_margin: the floor is the main exit's local accuracy on the same frames,
            less this, 0..1.
        accuracy_floor: an explicit floor instead, 0..1; 0 uses the margin.
        critical_classes: classes (0..42) with a stricter floor of their own.
        critical_margin: like `accuracy_margin`, for those classes alone.
    """

    accuracy_margin: float = 0.005
    accuracy_floor: float = 0.0
    critical_classes: tuple[int, ...] = ()
    critical_margin: float = 0.0

    def __post_init__(self) -> None:
        for name in ("accuracy_margin", "accuracy_floor", "critical_margin"):
            _in_range(name, getattr(self, name), 0, 1)
        for number in self.critical_classes:
            _in_range("class in critical_classes", number, 0, _MAX_CLASS)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A complete, checked scenario.

    Attributes:
        name: its file's name.
        description: one sentence.
        frames, device, link, server, timing, price, constraint, heat: see their classes.
    """

    name: str
    description: str = ""
    frames: Frames = field(default_factory=Frames)
    device: Device = field(default_factory=Device)
    link: Link = field(default_factory=Link)
    server: ServerLoad = field(default_factory=ServerLoad)
    timing: Timing = field(default_factory=Timing)
    price: Price = field(default_factory=Price)
    constraint: Constraint = field(default_factory=Constraint)
    heat: Heat = field(default_factory=Heat)

    def with_weights(self, delay_weight: float, energy_weight: float) -> Scenario:
        """The same scenario under other weights (for Pareto sweeps)."""
        price = replace(self.price, delay_weight=delay_weight, energy_weight=energy_weight)
        return replace(self, price=price)

    def with_floor(self, accuracy_floor: float) -> Scenario:
        """The same scenario under an explicit accuracy floor."""
        return replace(self, constraint=replace(self.constraint, accuracy_floor=accuracy_floor))


def scenario_names() -> tuple[str, ...]:
    """Names of the shipped scenarios, those of the first generation before the others, sorted."""
    return CLASSIC + second_generation()


def second_generation() -> tuple[str, ...]:
    """Names of the scenarios in which frames queue and exits differ, sorted."""
    folder = resources.files("offload_env") / "scenarios"
    names = (f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
    return tuple(sorted(set(names) - set(CLASSIC)))


def load_scenario(name_or_path: str | Path | Scenario) -> Scenario:
    """A shipped scenario by name, or one of yours by the path of its TOML file.

    The first six are also known as ``classic-urban-5g`` and so on; their names stay what they were.

    Raises:
        ConfigError: if there is none of that name, the file cannot be read, or a key is
            unknown, of the wrong type, or impossible.
    """
    if isinstance(name_or_path, Scenario):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix == ".toml":
        text, name = toml_text(path), path.stem
    else:
        name = str(name_or_path)
        if (short := name.removeprefix("classic-")) in CLASSIC:
            name = short
        if name not in scenario_names():
            raise ConfigError(
                f"scenario {shown(name)}",
                expected=f"one of {', '.join(scenario_names())}, or a path ending in .toml",
                hint="correct the name",
            )
        folder = resources.files("offload_env") / "scenarios"
        text = (folder / f"{name}.toml").read_text(encoding="utf-8")
    return parse_scenario(text, name)


def parse_scenario(text: str, name: str) -> Scenario:
    """Read the text of a scenario file; raises `ConfigError` as `load_scenario`."""
    raw = parse(text, f"scenario {name}")
    if "name" in raw:
        raise ConfigError(
            f"scenario {name}: key 'name'",
            expected="no such key: the file's name is the scenario's",
            hint="remove it",
        )
    return build(Scenario, {"name": name, **raw}, f"scenario {name}", hidden={"name"})


def scenario_toml(scenario: Scenario, notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """`scenario` as TOML; `parse_scenario` with its name gives the same again.

    Args:
        scenario: the scenario.
        notes: None writes every key. Otherwise only keys that differ from their defaults, with
            these lines as comments: of a section by its name, of the file by ``""``.
    """
    short, notes = notes is not None, notes or {}
    text = [f"# {line}" for line in notes.get("", ())]
    if scenario.description or not short:
        text.append(f"description = {_value(scenario.description)}")
    text.append("")
    for section in fields(scenario):
        table, said = getattr(scenario, section.name), notes.get(section.name, ())
        if not is_dataclass(table) or table == Heat():
            continue  # without heat, the text is as before there was this section
        keys = [f for f in fields(table) if not short or getattr(table, f.name) != f.default]
        if keys or said:
            text += [*(f"# {line}" for line in said), f"[{section.name}]"]
            text += [f"{f.name} = {_value(getattr(table, f.name))}" for f in keys]
            text.append("")
    return "\n".join(text)


def anchored(scenario: Scenario) -> Scenario:
    """The same scenario with the paths in it made absolute (they count from here)."""
    frames, device, link = scenario.frames, scenario.device, scenario.link
    if device.cost_model not in ("fitted", *SHIPPED_PROFILES):
        device = replace(device, cost_model=_absolute(device.cost_model))
    if device.power:
        device = replace(device, power=in_folder(device.power, Path.cwd()))
    if link.folder:
        link = replace(link, folder=_absolute(link.folder))
    if link.files:
        link = replace(link, files=tuple(_absolute(name) for name in link.files))
    if link.kind.endswith(".json"):
        link = replace(link, kind=_absolute(link.kind))
    tables = {
        split: _absolute(name) if name.endswith(".npz") else name
        for split, name in (("train", frames.train), ("test", frames.test))
    }
    return replace(scenario, frames=replace(frames, **tables), device=device, link=link)


def _absolute(path: str) -> str:
    return str(Path(path).resolve())


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings escape as JSON's do, and DEL besides (toml.io/en/v1.0.0#string).
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _require(ok: bool, given: str, expected: str) -> None:
    require(ok, given, expected, _MEND)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    in_range(name, value, low, high, _MEND)
