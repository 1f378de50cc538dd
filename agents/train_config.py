"""Settings of one training run, checked when made and stored with its result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from cnn.action import N_ACTIONS
from cnn.common.checksums import json_sha256
from cnn.common.errors import ConfigError, DataError
from cnn.common.files import write_text
from cnn.common.option_checks import MAX_SEED, in_range, require, shown
from testbed.policy.decision_points import ANSWER, CANONICAL, SENDING_EARLY

ALGORITHMS: Final = ("ppo", "dqn", "maskable-ppo")
ENVIRONMENTS: Final = ("frame", "staged")
STAGED_SETTINGS: Final[Mapping[str, Any]] = {
    "steps": 4_000_000,
    "n_envs": 256,
    "batch_size": 2048,
    "entropy": 0.03,
    "dual_rate": 100.0,
    "gamma": 0.8,
}
"""What the command line sets otherwise for the staged agent: chosen on training drives of
urban-5g. A policy must first find that looking pays later, so it explores more."""
MARGIN: Final = 0.001
"""Accuracy asked for above the floor on training drives, of agents and baselines alike.

A bootstrap over the 196 policy-train tracks puts what exit 1 loses against the main exit at
0.82 points and its one-sided 95 % bound at 1.24: 0.4 points may be missing on other tracks.
"""


MAX_ROLLOUT: Final = 2**22
"""Decisions of a rollout: an observation takes some 170 bytes, so this is 0.7 GB."""
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "steps": (1, 10**10),
    "seed": (0, MAX_SEED),
    "n_envs": (1, 65_536),
    "n_steps": (1, 65_536),
    "batch_size": (2, 2**22),
    "epochs": (1, 1000),
    "learning_rate": (1e-9, 1),
    "gamma": (0, 0.999999),
    "gae_lambda": (0, 1),
    "entropy": (0, 100),
    "hidden": (1, 2048),  # a larger network's policy file is refused (`PolicyBundle`)
    "dual_rate": (0, 1e6),
    "dual_start": (0, 1e6),
    "margin": (0, 1),
    "validate_every": (1, 10**10),
    "validate_drives": (1, 10_000),
    "patience": (0, 10**9),
    "checkpoint_every": (1, 10**10),
}
"""Least and greatest value of every setting that is a number."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run.

    Attributes:
        scenario: scenario's name or file.
        algo: ``ppo`` or ``dqn`` for one decision a frame, ``maskable-ppo`` for several.
        env: ``frame`` (`sliproad/Offload-v0`) or ``staged`` (`sliproad/OffloadStaged-v0`).
        steps: decisions in all; with ``frame`` one a frame.
        seed: of everything random.
        n_envs: parallel lanes of the vector environment.
        n_steps: steps of every lane between two PPO updates.
        batch_size: transitions of a gradient step.
        epochs: passes of PPO over a rollout.
        learning_rate: Adam's, falling linearly to a tenth.
        gamma: discount a frame. A choice reaches only a few frames ahead (queue, modem
            tail, fresher network knowledge), so a short horizon loses little and keeps
            the noise of far frames out of the advantage.
        gae_lambda: generalised advantage estimation.
        entropy: PPO's entropy bonus at the start, falling linearly to 0.
        hidden: width of both hidden layers.
        dual_rate: multiplier added per unit of missing accuracy and update, at the start; falls
            linearly to a tenth.
        dual_start: multiplier at the start, cost per unit of accuracy.
        margin: accuracy asked for above the floor in training and validation. Errors come
            by track, and there are few tracks: what early exits lose against the main
            exit on other tracks differs by about as much as on the training tracks.
        validate_every: steps between validations on training drives of their own.
        validate_drives: drives of one validation.
        patience: validations without a better policy before training stops; 0 never does.
        checkpoint_every: steps between checkpoints that a run can be resumed from.
        records: record file or folder of a deployed device whose link and speed it learns on;
            empty takes the scenario's.
        actions: canonical numbers of the actions offered, ascending; a staged agent needs e5s5
            among them, with which it can always go on after giving up (`outputs`).
    """

    scenario: str = "urban-5g"
    algo: str = "ppo"
    env: str = "frame"
    steps: int = 2_000_000
    seed: int = 0
    n_envs: int = 128
    n_steps: int = 64
    batch_size: int = 1024
    epochs: int = 4
    learning_rate: float = 3e-3
    gamma: float = 0.9
    gae_lambda: float = 0.9
    entropy: float = 0.01
    hidden: int = 64
    dual_rate: float = 300.0
    dual_start: float = 10.0
    margin: float = MARGIN
    validate_every: int = 250_000
    validate_drives: int = 256
    patience: int = 0
    checkpoint_every: int = 500_000
    records: str = ""
    actions: tuple[int, ...] = tuple(range(N_ACTIONS))

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            in_range(name, getattr(self, name), low, high)
        self._check_batches()
        if self.algo not in ALGORITHMS:
            raise ConfigError(
                f"algorithm {shown(self.algo)}", expected=" or ".join(ALGORITHMS), hint="choose one"
            )
        if self.env not in ENVIRONMENTS or (self.algo == "maskable-ppo") != (self.env == "staged"):
            raise ConfigError(
                f"algorithm {shown(self.algo)} for environment {shown(self.env)}",
                expected="ppo or dqn with frame, maskable-ppo with staged",
                hint="give --algo maskable-ppo --env staged, or neither",
            )
        legal = set(self.actions) <= set(range(N_ACTIONS))
        if not (legal and self.actions and list(self.actions) == sorted(set(self.actions))):
            raise ConfigError(
                f"actions {shown(self.actions)}",
                expected="some of 0..19, ascending",
                hint="correct it",
            )
        if self.env == "staged" and N_ACTIONS - 1 not in self.actions:
            raise ConfigError(
                f"actions {shown(self.actions)} for a staged agent",
                expected=f"{N_ACTIONS - 1} (e5s5) among them, to go on with after giving up",
                hint="add it",
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
            self.algo == "dqn" or math.gcd(self.batch_size, rollout) > 1,
            f"n_envs {self.n_envs}, n_steps {self.n_steps} and batch_size {self.batch_size}",
            "a batch_size that has a divisor in common with n_envs * n_steps",
        )

    @property
    def validation_seed(self) -> int:
        """Of the validation drives: others than those of training."""
        return self.seed + 1_000_003

    @property
    def outputs(self) -> tuple[int, ...]:
        """Action of each of the model's outputs: canonical, or staged.

        A staged agent may also answer with the exit it looked at last, and give up waiting early
        on whatever it may send.
        """
        if self.env == "frame":
            return self.actions
        return (*self.actions, ANSWER, *(h for h in SENDING_EARLY if CANONICAL[h] in self.actions))

    def save(self, path: Path) -> None:
        """Write as JSON with a checksum; written whole or not at all."""
        values = json.loads(json.dumps(asdict(self)))
        values["sha256"] = json_sha256(values)
        write_text(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read what `save` wrote; unknown keys are an error, as is another checksum.

        Raises:
            DataError: if the file is not as it was written, or no such file.
        """
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
            checksum = raw.pop("sha256", None)  # older versions wrote none
            if checksum not in (None, json_sha256(raw)):
                raise ValueError("it is damaged or was edited: its checksum differs")
            raw["actions"] = tuple(raw["actions"])
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
