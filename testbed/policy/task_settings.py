"""The task of a policy: the conditions it was trained for, and the settings of its device.

A policy decides as in training only with the same floor and weights, with an observation
scaled by the same full local time, and with the same frame period and time-out. So its
file carries all of that (``task`` in the manifest of format 2). An explicitly given value
takes precedence over the task. `DEFAULT_TASK` applies if neither gives a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from cnn.common.errors import ConfigError
from testbed.common.toml_config import build
from testbed.meters.power import names_file
from testbed.policy.observation_fields import SETTING_FIELDS, scale, transform_of

MAX_MJ: Final = 1e12
_, _FLOOR, _SHARE, _FULL = SETTING_FIELDS
_SCALING: Final = tuple(transform_of(field) for field in SETTING_FIELDS)
_NEARLY: Final = 1e-6
"""Relative difference below which two numbers are equal: a period given as a rate is rounded."""
_LEAST_MS: Final = 1e-3
_MOST_MS: Final = 3.6e6
"""An hour: every clock can wait for it."""
_RANGES: Final = {"accuracy_floor": "accuracy_floors", "delay_share": "delay_shares"}
"""User preferences, and the fields with the range of each that the policy supports."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that a scenario gives its device once, before the drive.

    Attributes:
        radio_5g: the modem is on 5G (otherwise LTE).
        accuracy_floor: constraint on mean accuracy, [0, 1].
        delay_share: w_delay / (w_delay + w_energy), [0, 1].
        full_local_ms: mean time of full local processing on this device, 0.01..100,000.
        energy_budget_mj: energy allowed for the drive, at most 1e12; 0 is no budget.

    Raises:
        ConfigError: if one is not a number, or is out of the range of the observation
            (`testbed.policy.observation_fields.Field.reach`).
    """

    radio_5g: bool
    accuracy_floor: float
    delay_share: float
    full_local_ms: float
    energy_budget_mj: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "accuracy floor": (self.accuracy_floor, _FLOOR.least, _FLOOR.most, ""),
            "delay share": (self.delay_share, _SHARE.least, _SHARE.most, ""),
            "full local processing": (self.full_local_ms, _FULL.least, _FULL.most, " ms"),
            "energy budget": (self.energy_budget_mj, 0.0, MAX_MJ, " mJ"),
        }
        for name, (value, least, most, unit) in ranges.items():
            if not least <= value <= most:  # also refuses NaN
                raise ConfigError(
                    f"{name} {value:g}{unit}",
                    expected=f"{least:g} to {most:g}{unit}",
                    hint="correct the scenario, or what the device is told",
                )

    def scaled(self) -> tuple[float, float, float, float]:
        """The four constant elements of the observation, scaled."""
        raw = (float(self.radio_5g), self.accuracy_floor, self.delay_share, self.full_local_ms)
        r, f, d, t = map(scale, _SCALING, raw)
        return r, f, d, t


@dataclass(frozen=True, slots=True)
class Task:
    """The task of a policy.

    Attributes:
        tech: radio technology, ``5G`` or ``LTE``.
        accuracy_floor: mean accuracy required, [0, 1].
        delay_share: w_delay / (w_delay + w_energy), [0, 1].
        full_local_ms: full local processing on the policy's device; None is the time measured
            on the current device.
        period_ms: between two camera frames; 0 takes the next one as soon as the device is free.
        timeout_ms: an exchange times out after this.
        deadline_ms: a frame answered later than this is a miss.
        max_queue_ms: a frame that has waited longer is skipped.
        power: power profile of `testbed.meters.power`; empty for none.
        energy_budget_mj: energy allowed for a drive; 0 is no budget.
        accuracy_floors: lowest and highest floor that the policy supports, if its user may choose
            the floor; `accuracy_floor`, within them, is then the default.
        delay_shares: the same of `delay_share`.

    Raises:
        ConfigError: if a value is impossible.
    """

    tech: str
    accuracy_floor: float
    delay_share: float
    full_local_ms: float | None
    period_ms: float
    timeout_ms: float
    deadline_ms: float
    max_queue_ms: float
    power: str = ""
    energy_budget_mj: float = 0.0
    accuracy_floors: tuple[float, ...] | None = None
    delay_shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _require(self.tech in ("5G", "LTE"), f"tech {self.tech!r}", "5G or LTE")
        for name, range_name in _RANGES.items():
            value, ends = getattr(self, name), getattr(self, range_name)
            _require(0 <= value <= 1, f"{name} {value:g}", "a number in 0..1")
            if ends is not None:
                ok = len(ends) == 2 and 0 <= ends[0] <= value <= ends[1] <= 1
                expected = f"the two ends of a range in 0..1 with {name} {value:g} in it"
                _require(ok, f"{range_name} {shown(ends)}", expected)
        for name in ("full_local_ms", "timeout_ms", "deadline_ms", "period_ms", "max_queue_ms"):
            value = getattr(self, name)
            low = 0.0 if name in ("period_ms", "max_queue_ms") else _LEAST_MS
            if value is not None:
                fits = low <= value <= _MOST_MS  # also refuses NaN
                _require(fits, f"{name} {value:g}", f"{low:g} to {_MOST_MS:g} ms")
        budget = self.energy_budget_mj
        _require(0 <= budget <= MAX_MJ, f"energy_budget_mj {budget:g}", f"0 to {MAX_MJ:g} mJ")
        device, plus, modem = self.power.partition("+")
        named = not self.power or (device and plus and modem) or names_file(self.power)
        _require(bool(named), f"power {self.power!r}", "a power profile device+modem, or a file")

    def settings(self, measured_ms: float | None = None) -> Settings:
        """The task as the observation shows it.

        Args:
            measured_ms: full local processing on this device, for a task without that time.
        """
        known_ms = measured_ms if self.full_local_ms is None else self.full_local_ms
        if known_ms is None:
            raise ValueError("a task without full_local_ms, and no measured time")
        return Settings(
            radio_5g=self.tech == "5G",
            accuracy_floor=self.accuracy_floor,
            delay_share=self.delay_share,
            full_local_ms=known_ms,
            energy_budget_mj=self.energy_budget_mj,
        )

    def to_json(self) -> dict[str, Any]:
        """Its form in a policy file."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value is not None
        }

    @classmethod
    def of_json(cls, raw: Any) -> Self:
        """The task in a policy file; raises `ConfigError` if it is invalid."""
        if not isinstance(raw, Mapping):
            raise ConfigError(f"task {raw!r:.40}", expected="a JSON object", hint="correct it")
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        missing = ", ".join(sorted(needed - set(raw)))
        _require(not missing, f"task without {missing}", "every setting of the task")
        return build(cls, dict(raw), "task")


def effective_task(task: Task | None, given: Mapping[str, Any]) -> Task:
    """The task of a device: given values, else the policy's task, else `DEFAULT_TASK`.

    Args:
        task: of the policy; None if its file has no task, or there is no file.
        given: values by field of `Task`; None means not given.

    Raises:
        ConfigError: if a given value is impossible.
    """
    base = task or DEFAULT_TASK
    if not base.power:
        base = replace(base, power=DEFAULT_TASK.power)
    chosen = {name: value for name, value in given.items() if value is not None}
    # A given value applies even outside the range that the policy supports.
    return replace(base, accuracy_floors=None, delay_shares=None, **chosen)


def differing(task: Task, others: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields of `others` that contradict the task: (the other value, the task's value).

    A power profile that the task leaves open contradicts nothing. Neither does a floor or a weight
    within the range that the policy supports.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name, value in others.items():
        own = getattr(task, name)
        ends = getattr(task, _RANGES[name]) if name in _RANGES else None
        if value is None or own is None or own == "":
            continue
        if ends is not None:
            same, own = ends[0] - _NEARLY <= value <= ends[1] + _NEARLY, ends
        elif isinstance(own, float):
            same = math.isclose(value, own, rel_tol=_NEARLY)
        else:
            same = value == own
        if not same:
            found[name] = (value, own)
    return found


def contradictions(
    task: Task | None, given: Mapping[str, Any], names: Mapping[str, str]
) -> list[str]:
    """One line for each given value that contradicts the policy's task.

    Args:
        task: of the policy; None contradicts nothing.
        given: as in `effective_task`.
        names: how each field is named where it was given. A name with ``fps`` in it counts the
            period in frames a second.
    """
    if task is None:
        return []
    lines = []
    for field, (value, own) in differing(task, given).items():
        name = names[field]
        if "fps" in name:
            value, own = (1e3 / ms if ms else 0.0 for ms in (value, own))
        now, was = shown(value), shown(own)
        lines.append(f"{name} {now} contradicts the policy's {was}; using {now}")
    return lines


def assumptions_note(path: Path | str, given: Mapping[str, Any]) -> str:
    """The note for a policy file without a task: the assumed values, and how to fix it.

    Args:
        path: the file.
        given: as in `effective_task`.
    """
    assumed = {**DEFAULT_TASK.to_json(), "full_local_ms": "as measured"}
    left = {k: v for k, v in assumed.items() if v and given.get(k) is None}
    return (
        f"policy file {path} (format 1) does not say its task; assuming "
        f"{', '.join(f'{name} {shown(value)}' for name, value in left.items()) or 'nothing'}; "
        f"write it again with `sliproad agent export --policy {path} --out FILE`"
    )


def shown(value: Any) -> str:
    """A value of a task as text for people."""
    if isinstance(value, tuple):
        return "..".join(shown(v) for v in value)
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)


def _require(ok: bool, given: str, expected: str) -> None:
    if not ok:
        raise ConfigError(given, expected=expected, hint="correct the setting")


DEFAULT_TASK: Final = Task(
    tech="5G",
    accuracy_floor=0.95,
    delay_share=0.5,
    full_local_ms=None,
    period_ms=100.0,
    timeout_ms=250.0,
    deadline_ms=100.0,
    max_queue_ms=200.0,
    power="jetson-nano+5g-nsa-lowband",
)
"""The task of a device that is given no values."""
