"""Settings of one training run, checked when made and stored with its result.

Defaults, ranges and the help of the command line's options are stated here, once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from agents.run_files import CONFIG
from cnn.common.errors import MAX_SEED, ConfigError, DataError, in_range, require, shown
from cnn.common.files import write_text
from cnn.common.outside import json_sha256
from cnn.topology import Topology
from testbed.policy.decision_points import DecisionSpace, decision_points

ALGORITHMS: Final = ("ppo", "dqn", "qr-dqn", "maskable-ppo")
REPLAYED: Final = ("dqn", "qr-dqn")
"""Algorithms that learn from a replay buffer."""
ALGORITHMS_OF: Final = "ppo, dqn or qr-dqn with frame, maskable-ppo with staged"
"""Which algorithm learns in which environment, in words."""
ENVIRONMENTS: Final = ("frame", "staged")
TEACHERS: Final = ("planner", "mpc", "best")
"""What a training can begin with (`agents.teacher`)."""
STAGED_SETTINGS: Final[Mapping[str, Any]] = {
    "steps": 4_000_000,
    "n_envs": 256,
    "batch_size": 2048,
    "entropy": 0.03,
    "dual_rate": 100.0,
    "gamma": 0.8,
}
"""The command line's own defaults for the staged agent, chosen on training drives of urban-5g. A
policy must first learn that evaluating an exit pays later, so it explores more."""
MARGIN: Final = 0.001
"""Accuracy asked for above the floor on training drives, of agents and baselines alike.

A bootstrap over the 196 policy-train tracks puts the loss of exit 1 against the main exit at 0.82
points and its one-sided 95 % bound at 1.24: 0.4 points may be missing on other tracks.
"""
PRICED_ERRORS: Final = 0.015
"""Share of wrong answers up to which `dual_start` and `dual_rate` stay as they are (`priced`)."""
_OF_FLOOR: Final = " (the default falls with the floor below 98.5 %)"
MAX_ROLLOUT: Final = 2**22
"""Decisions of a rollout: an observation takes some 170 bytes, so this is 0.7 GB."""


def _number(default: float, low: float, high: float, help: str) -> Any:
    """A setting that is a number from `low` to `high`."""
    return field(default=default, metadata={"range": (low, high), "help": help})


def _text(default: str, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run. Each setting has its help beside its value; this adds details.

    Attributes:
        env: ``frame`` is `sliproad/Offload-v0`, ``staged`` is `sliproad/OffloadStaged-v0`.
        learning_rate: falls linearly to a tenth, as `dual_rate`; `entropy` falls to 0.
        gamma: an action affects only the next few frames (queue, modem tail, fresher network
            knowledge), so a short horizon loses little and keeps the noise of distant frames out of
            the advantage.
        hidden: a larger network's policy file is refused (`PolicyBundle`).
        dual_gain: the proportional term of a PID Lagrangian (A. Stooke, J. Achiam, P. Abbeel,
            "Responsive safety in reinforcement learning by PID Lagrangian methods", ICML 2020):
            the price is what the ascent has added up, plus this times the accuracy that is missing
            now, smoothed. 0 is the plain Lagrangian.
        margin: in training and validation. Errors come by track, and there are few tracks: the
            accuracy that early exits lose against the main exit differs about as much on other
            tracks as on the training tracks.
        validate_every: on training drives of their own.
        teacher_bonus: a teacher that sends often enough to keep the modem connected is worth
            imitating even if it is not the cheapest: a learner that never connects finds out
            late what it misses.
        records: file or folder; empty takes the scenario's link and speed.
        actions: canonical numbers of the actions offered, ascending; None offers all. A staged
            agent needs full local processing among them, with which it can always continue after
            an early time-out.
    """

    scenario: str = _text("urban-5g", "Scenario's name or the path of its TOML file")
    algo: str = _text("ppo", "ppo, dqn or qr-dqn, maskable-ppo with --env staged")
    env: str = _text("frame", "frame, one decision a frame, or staged, again after every exit seen")
    steps: int = _number(2_000_000, 1, 10**10, "Decisions to train on")
    seed: int = _number(0, 0, MAX_SEED, "Seed of everything random")
    n_envs: int = _number(128, 1, 65_536, "Parallel drives")
    n_steps: int = _number(64, 1, 65_536, "Steps of every drive between two updates")
    batch_size: int = _number(1024, 2, 2**22, "Transitions of a gradient step")
    epochs: int = _number(4, 1, 1000, "Passes of PPO over a rollout")
    learning_rate: float = _number(3e-3, 1e-9, 1, "Adam's, at the start")
    gamma: float = _number(0.9, 0, 0.999999, "Discount a frame")
    gae_lambda: float = _number(0.9, 0, 1, "Of generalised advantage estimation")
    entropy: float = _number(0.01, 0, 100, "PPO's entropy bonus at the start")
    hidden: int = _number(64, 1, 2048, "Width of both layers")
    dual_rate: float = _number(300.0, 0, 1e6, "How fast it follows missing accuracy" + _OF_FLOOR)
    dual_gain: float = _number(0.0, 0, 1e6, "How much the missing accuracy adds at once (PID)")
    dual_start: float = _number(10.0, 0, 1e6, "Price of a wrong answer at the start" + _OF_FLOOR)
    margin: float = _number(MARGIN, 0, 1, "Accuracy asked for above the floor")
    validate_every: int = _number(250_000, 1, 10**10, "Decisions between two validations")
    validate_drives: int = _number(256, 1, 10_000, "Drives of one validation")
    patience: int = _number(0, 0, 10**9, "Validations without a better policy to stop at; 0: never")
    checkpoint_every: int = _number(500_000, 1, 10**10, "Decisions between two checkpoints")
    records: str = _text(
        "", "Records of a deployed device: train on its link and at its speed; none"
    )
    teacher: str = _text("", "Imitate it first: planner, mpc or best, with --env staged; none")
    teacher_bonus: float = _number(0.0, 0, 1e6, "Bonus of its sending after a pause; 0: tuned")
    teacher_steps: int = _number(2_000_000, 1, 10**10, "Decisions of the imitation, beside steps")
    actions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            if "range" in each.metadata:
                in_range(each.name, getattr(self, each.name), *each.metadata["range"])
        self._check_batches()
        if self.algo not in ALGORITHMS:
            raise ConfigError(
                f"algorithm {shown(self.algo)}", expected=" or ".join(ALGORITHMS), hint="choose one"
            )
        if self.env not in ENVIRONMENTS or (self.algo == "maskable-ppo") != (self.env == "staged"):
            raise ConfigError(
                f"algorithm {shown(self.algo)} for environment {shown(self.env)}",
                expected=ALGORITHMS_OF,
                hint="give --algo maskable-ppo --env staged, or neither",
            )
        if self.teacher not in ("", *TEACHERS) or (self.teacher and self.env != "staged"):
            raise ConfigError(
                f"teacher {shown(self.teacher)} with --env {self.env}",
                expected=f"{', '.join(TEACHERS)}, with --env staged",
                hint="leave --teacher out, or train a staged agent",
            )

    def _check_batches(self) -> None:
        """Rollouts that fit into memory, and minibatches that PPO can normalise."""
        rollout = self.n_envs * self.n_steps
        require(
            rollout <= MAX_ROLLOUT,
            f"n_envs {self.n_envs} with n_steps {self.n_steps}",
            f"at most {MAX_ROLLOUT} decisions in a rollout",
        )
        require(
            self.algo in REPLAYED or math.gcd(self.batch_size, rollout) > 1,
            f"n_envs {self.n_envs}, n_steps {self.n_steps} and batch_size {self.batch_size}",
            "a batch_size that has a divisor in common with n_envs * n_steps",
        )

    @property
    def validation_seed(self) -> int:
        """Of the validation drives: others than those of training."""
        return self.seed + 1_000_003

    def of(self, topology: Topology) -> TrainConfig:
        """These settings for one network: with its actions, all of them if none are chosen.

        Raises:
            ConfigError: if `actions` are not actions that an agent of the network can have.
        """
        every = range(topology.n_actions)
        actions = tuple(every) if self.actions is None else self.actions
        if not (actions and set(actions) <= set(every) and list(actions) == sorted(set(actions))):
            raise ConfigError(
                f"actions {shown(actions)}",
                expected=f"some of 0..{topology.n_actions - 1}, ascending",
                hint="correct it",
            )
        if self.env == "staged" and topology.main not in actions:
            main = f"{topology.main} ({topology.actions[topology.main].name})"
            raise ConfigError(
                f"actions {shown(actions)} for a staged agent",
                expected=f"{main} among them, to go on after an early time-out",
                hint="add it",
            )
        if self.teacher and len(actions) < topology.n_actions:
            raise ConfigError(
                f"teacher {self.teacher} and only {len(actions)} of {topology.n_actions} actions",
                expected="all actions, which a teacher takes",
                hint="leave the actions or the teacher out",
            )
        return replace(self, actions=actions)

    def space(self, topology: Topology) -> DecisionSpace:
        """The decision space of the agent."""
        at = decision_points(topology)
        return at.staged if self.env == "staged" else at.frame

    def outputs(self, topology: Topology) -> tuple[int, ...]:
        """Action of each of the model's outputs: canonical, or staged.

        A staged agent may also answer with the exit it evaluated last, and send with an early
        time-out.
        """
        actions = self.of(topology).actions
        assert actions is not None
        if self.env == "frame":
            return actions
        at = decision_points(topology)
        hurried = (h for h in at.sending_early if at.canonical[h] in actions)
        return (*actions, at.answer, *hurried)

    def save(self, path: Path) -> None:
        """Write as JSON with a checksum; written whole or not at all."""
        values = json.loads(json.dumps(asdict(self)))
        values["sha256"] = json_sha256(values)
        write_text(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read what `save` wrote; unknown keys and a wrong checksum are errors.

        Raises:
            DataError: if the file is not as it was written, or no such file.
        """
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
            checksum = raw.pop("sha256", None)  # older versions wrote none
            if checksum not in (None, json_sha256(raw)):
                raise ValueError("it is damaged or was edited: its checksum differs")
            raw["actions"] = raw["actions"] and tuple(raw["actions"])
            unknown = set(raw) - {f.name for f in fields(cls)}
            if unknown:
                raise KeyError(f"unknown settings {sorted(unknown)}")
            return cls(**raw)
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ) as error:
            raise DataError(
                f"training settings {path}: {error}",
                expected="config.json of a training run",
                hint="give the folder that `sliproad agent train --out` wrote",
            ) from error


def setting_help(name: str) -> str:
    """Help of the option that sets `name`: what it is, its range, and its default.

    An option that is left out keeps the value of a resumed run, so it has no default of its own.
    """
    (setting,) = (each for each in fields(TrainConfig) if each.name == name)
    staged = STAGED_SETTINGS.get(name, setting.default)
    default, other = (
        f"{v:,}" if isinstance(v, int | float) else v for v in (setting.default, staged)
    )
    text = str(setting.metadata["help"])
    if "range" in setting.metadata:
        low, high = setting.metadata["range"]
        text += f", {low:.10g}..{high:.10g}"
    text += f"; {default} if left out" if default else " if left out"
    return text + (f", {other} with --env staged." if staged != setting.default else ".")


def config_of(given: Mapping[str, Any], out: Path, resume: bool) -> TrainConfig:
    """The settings of a run, from the options that were given.

    A setting that is not given has the value of the resumed run, otherwise the default. Paths are
    made absolute, so that the run can be resumed from anywhere.
    """
    settings = dict(given)
    for name, value in given.items():
        if name == "records" or (name == "scenario" and str(value).endswith(".toml")):
            settings[name] = str(Path(value).resolve())
    if resume:
        return replace(TrainConfig.load(out / CONFIG), **settings)
    defaults = STAGED_SETTINGS if given.get("env") == "staged" else {}
    return TrainConfig(**{**defaults, **settings})


def priced(config: TrainConfig, floor: float, given: Collection[str]) -> TrainConfig:
    """`config` with a price of wrong answers for that floor, where none is `given`.

    A policy that is still learning misses the floor by some share of the errors that the floor
    allows. So where it allows more than `PRICED_ERRORS`, the defaults of `dual_start` and
    `dual_rate` are lower in proportion; otherwise the price would rise far above what it must be,
    and most of the training would be spent on its way back.

    Args:
        config: of a run that is not resumed.
        floor: accuracy floor, in [0, 1].
        given: names of the settings that the user chose; they stay.
    """
    share = min(1.0, PRICED_ERRORS / max(1 - floor, 1e-9))
    names = [name for name in ("dual_start", "dual_rate") if name not in given]
    return replace(config, **{name: share * getattr(config, name) for name in names})
