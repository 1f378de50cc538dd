"""A study: many trainings of a grid of settings, with several seeds each, from one TOML file.

A setting is an algorithm with one point of the grid. It is trained on every scenario with every
seed; a trial is one such training. Trials are the same on every machine: their names and settings
follow from the file and the first seed alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from itertools import product
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from agents.run_files import STUDY_SPEC
from agents.train_config import (
    ALGORITHMS,
    ALGORITHMS_OF,
    ENVIRONMENTS,
    TrainConfig,
    config_of,
    priced,
)
from cnn.common.errors import MAX_SEED, ConfigError, DataError, require, shown
from cnn.common.files import write_text
from testbed.common.toml_config import build, check_ranges, parse, ranged, toml_text

if TYPE_CHECKING:
    from offload_env.world import World

MAX_TRIALS: Final = 20_000
_NAMED: Final = {
    "scenario": "scenarios",
    "env": "envs",
    "algo": "algos",
    "steps": "steps",
    "seed": "seeds",
}
"""Settings of a training that a study has own keys for, and these keys."""
_TYPES: Final = {
    name: kind for name, kind in get_type_hints(TrainConfig).items() if name not in _NAMED
}
_Fixed: Final = make_dataclass("_Fixed", [(n, k, field(default=None)) for n, k in _TYPES.items()])
_Lists: Final = make_dataclass(
    "_Lists", [(n, GenericAlias(tuple, (k, ...)), field(default=())) for n, k in _TYPES.items()]
)
_LABEL_IN_NAME: Final = 80
"""Characters of a setting in the name of a trial's folder; its number makes the name unique."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a study.

    Attributes:
        name: of its folder.
        setting: label of what is compared, such as ``ppo gamma=0.9``.
        point: the grid's settings of this trial.
        scenario: short name of its scenario.
        given: names of the settings that the file gives; the others are defaults.
        config: settings of the training, as in the file; `config_in` are those that are trained.
    """

    name: str
    setting: str
    point: Mapping[str, Any]
    scenario: str
    given: frozenset[str]
    config: TrainConfig

    def config_in(self, world: World) -> TrainConfig:
        """The settings that are trained in a world: priced for its floor, for its network."""
        return priced(self.config, world.accuracy_floor, self.given).of(world.topology)


@dataclass(frozen=True, slots=True)
class Study:
    """The content of a study's file.

    Attributes:
        scenarios: names, or paths of TOML files; relative ones start at the study's folder.
        envs: ``frame``, ``staged``, or both.
        algos: of `agents.train_config.ALGORITHMS`; none takes ``ppo`` for ``frame`` and
            ``maskable-ppo`` for ``staged``.
        steps: decisions of every training; None takes the default of each environment.
        seeds: trainings of a setting in a scenario; their seeds follow each other.
        settings: of all trainings, by name (`TrainConfig`).
        grid: values to combine, by name.
    """

    scenarios: tuple[str, ...] = ("urban-5g",)
    envs: tuple[str, ...] = ("frame",)
    algos: tuple[str, ...] = ()
    steps: int | None = None
    seeds: int = ranged(5, 1, 1000)
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self)
        lists = {"scenarios": self.scenarios, "envs": self.envs, "algos": self.algos}
        for name, values in lists.items():
            _check_list(name, values, empty=name == "algos")
        for name, values in self.grid.items():
            _check_list(f"grid: {name}", values)
            require(
                name not in self.settings, f"{name} in both settings and grid", "one of the two"
            )
        self._check_pairs()
        n = len(self.scenarios) * len(self.pairs) * self.seeds
        for values in self.grid.values():
            n *= len(values)
        require(n <= MAX_TRIALS, f"{n} trainings", f"at most {MAX_TRIALS}", "make the grid smaller")

    def _check_pairs(self) -> None:
        """Every environment has an algorithm, and every algorithm an environment."""
        for env in self.envs:
            require(env in ENVIRONMENTS, f"envs {shown(env)}", " or ".join(ENVIRONMENTS))
        for algo in self.algos:
            require(algo in ALGORITHMS, f"algos {shown(algo)}", " or ".join(ALGORITHMS))
        for env in self.envs:
            require(
                any(e == env for e, _ in self.pairs),
                f"envs {shown(env)} with algos {shown(self.algos)}",
                f"{' or '.join(_algos_of(env))} among the algorithms",
            )
        for algo in self.algos:
            require(
                any(a == algo for _, a in self.pairs),
                f"algos {shown(algo)} with envs {shown(self.envs)}",
                ALGORITHMS_OF,
            )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(environment, algorithm) of the trainings."""
        return [
            (env, algo)
            for env in self.envs
            for algo in self.algos or _algos_of(env)[:1]
            if algo in _algos_of(env)
        ]

    def trials(self, seed: int) -> list[Trial]:
        """All trainings: by setting, scenario and seed, from `seed` on.

        Raises:
            ConfigError: if a combination is none that can be trained.
        """
        last = seed + self.seeds - 1
        require(last <= MAX_SEED, f"seeds up to {last}", f"at most {MAX_SEED}", "give another seed")
        points = [
            dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())
        ]
        return [
            self._trial(index, env, algo, point, scenario, seed + k)
            for index, ((env, algo), point) in enumerate(product(self.pairs, points))
            for scenario in self.scenarios
            for k in range(self.seeds)
        ]

    def _trial(
        self, index: int, env: str, algo: str, point: dict[str, Any], scenario: str, seed: int
    ) -> Trial:
        given = {"scenario": scenario, "env": env, "algo": algo, **self.settings, **point}
        if self.steps is not None:
            given["steps"] = self.steps
        config = config_of({**given, "seed": seed}, Path(), resume=False)
        short = _short(scenario)
        label = " ".join([algo, *(f"{name}={_plain(value)}" for name, value in point.items())])
        slug = re.sub(r"[^\w.,=]+", "-", f"{short} {label}")[:_LABEL_IN_NAME]
        name = f"{index:03d}-{slug}-seed{seed}"
        return Trial(name, label, point, short, frozenset(given), config)

    def as_json(self, seed: int) -> dict[str, Any]:
        """The content of ``spec.json``: what the trials follow from."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        plain: dict[str, Any] = json.loads(json.dumps({**values, "seed": seed}))
        return plain


def _algos_of(env: str) -> tuple[str, ...]:
    """Algorithms of an environment, its default first (`TrainConfig` has the rule)."""
    staged = env == "staged"
    return tuple(algo for algo in ALGORITHMS if (algo == "maskable-ppo") == staged)


def _short(scenario: str) -> str:
    return Path(scenario).stem if scenario.endswith(".toml") else scenario


def _plain(value: Any) -> str:
    return ",".join(map(_plain, value)) if isinstance(value, tuple) else f"{value}"


def _check_list(name: str, values: tuple[Any, ...], *, empty: bool = False) -> None:
    require(bool(values) or empty, f"{name} []", "at least one value")
    require(
        len(set(values)) == len(values), f"{name} {shown(values)}", "every value once", "remove one"
    )


def read_study(path: Path) -> Study:
    """Read and check a study's file; scenarios and records get absolute paths.

    Raises:
        ConfigError: if it cannot be read, has an unknown key, a wrong type or a value that no
            training can have.
    """
    where = str(path)
    raw = parse(toml_text(path), where)
    settings = _table(_Fixed, raw, "settings", where)
    grid = _table(_Lists, raw, "grid", where)
    folder = path.resolve().parent
    try:
        study = build(Study, raw, where)
        scenarios = tuple(
            str(folder / name) if name.endswith(".toml") else name for name in study.scenarios
        )
        if settings.get("records"):
            settings["records"] = str(folder / settings["records"])
        if "records" in grid:
            grid["records"] = tuple(str(folder / name) if name else "" for name in grid["records"])
        study = replace(study, scenarios=scenarios, settings=settings, grid=grid)
        _check_list("scenarios, by short name,", tuple(map(_short, scenarios)))
        study.trials(0)
    except ConfigError as error:
        if error.given.startswith(where):
            raise
        raise ConfigError(
            f"{where}: {error.given}", expected=error.expected, hint=error.hint
        ) from None
    return study


def _table(kind: type, raw: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The settings that the file's table `name` gives, taken out of `raw`."""
    table = raw.pop(name, {})
    for key in table if isinstance(table, dict) else ():
        require(
            key not in _NAMED,
            f"{where}: {name}: {key}",
            f"a setting without a key of its own; this one is {_NAMED.get(key)}",
            "move it to the top of the file",
        )
    require(isinstance(table, dict), f"{where}: {name} = {shown(table)}", "a table")
    built: Any = build(kind, table, f"{where}: {name}")
    return {key: getattr(built, key) for key in table}


def begin(study: Study, seed: int, out: Path, resume: bool) -> None:
    """Write ``spec.json``, or check that it says the same of the study that is resumed.

    Raises:
        DataError: if `out` holds a study that is not resumed, or none to resume, or another one.
    """
    path, now = out / STUDY_SPEC, study.as_json(seed)
    if path.exists() and not resume:
        raise DataError(
            f"{out}, which holds a study",
            expected="a folder without one",
            hint="continue it with --resume, or give another --out",
        )
    if not resume:
        write_text(path, json.dumps(now, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{out}, which holds no study",
            expected="the folder of a study that was begun",
            hint="give its folder with --out, or start without --resume",
        ) from error
    if before != now:
        keys = [key for key in now if before.get(key) != now[key]]
        raise DataError(
            f"a study that differs from the one in {out} in {', '.join(keys) or 'its keys'}",
            expected="the study that was begun there",
            hint="give the same file and --seed, or another --out without --resume",
        )
