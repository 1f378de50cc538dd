"""The cost of another policy, estimated from records of a policy that explored.

The log holds, for every frame, the observation, the action, the probability with which it was
taken, and the outcome. Three estimators of the candidate's mean outcome:

* ``ips``, inverse propensity scoring (Horvitz, Thompson, JASA 1952): logged outcomes of frames
  where the candidate would have done the same, divided by how likely that was;
* ``snips``, the same divided by the sum of the weights (Swaminathan, Joachims, NeurIPS 2015);
* ``dr``, doubly robust (Dudik, Langford, Li, ICML 2011): a model's prediction for the
  candidate's action, corrected by the weighted error of the model where both did the same.

The model is ridge regression on the predictions of `agents.baselines.prediction` for the action,
fitted to the log itself by blocks: no frame is predicted by a model that saw it. Intervals are
bootstrapped over blocks of consecutive frames. This is written here because it is a few lines of
numpy, and bandit libraries have no blocks of frames.

All three judge one frame's decision in the states of the log. The effect on later frames (queue,
modem tail, fresher knowledge of the link) is that of the logging policy on average, not of the
candidate. So estimates get less reliable the more the candidate differs from the log; ``match`` and
``effective_frames`` show how much it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.prediction import AccuracyTable, Floats, Predictor
from agents.evaluation import Interval
from agents.rollout import check_network
from cnn.common.console import warn
from cnn.common.errors import DataError
from offload_env.world import World
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy
from testbed.policy.policy_file import PolicyBundle

BLOCK: Final = 50
"""Frames of a block: a few seconds, beyond which outcomes hardly depend on each other."""
FOLDS: Final = 5
ESTIMATORS: Final = ("ips", "snips", "dr")
MIN_EFFECTIVE: Final = 100
"""Effective frames from which an estimate is reliable: the error of a mean of n frames is 1 /
sqrt(n) of their spread, here a tenth."""
_ROUNDING: Final = 1e-5
"""Of an element of an observation, float32 in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Log:
    """Logged decisions of N frames, in order.

    Attributes:
        observation: float32 (N, obs_dim).
        action: int64 (N,), canonical numbers.
        propensity: float64 (N,), probability of that action in that state, > 0.
        outcomes: float64 (N,) by name, such as ``delay_ms`` or ``cost``.
    """

    observation: NDArray[np.float32]
    action: NDArray[np.int64]
    propensity: Floats
    outcomes: Mapping[str, Floats]

    def __post_init__(self) -> None:
        n = len(self.action)
        fits = all(len(v) == n for v in (self.observation, self.propensity))
        fits &= all(len(v) == n and np.isfinite(v).all() for v in self.outcomes.values())
        if not fits or n < FOLDS * BLOCK or not (self.propensity > 0).all():
            raise DataError(
                f"log of {n} frames, least propensity "
                f"{self.propensity.min() if n else 'none'}, outcomes {sorted(self.outcomes)}",
                expected=f"at least {FOLDS * BLOCK} frames, each with a propensity above 0 and "
                "finite outcomes",
                hint="record more frames with `sliproad testbed device --explore 0.05`",
            )


@dataclass(frozen=True, slots=True)
class Estimate:
    """The candidate's mean outcomes.

    Attributes:
        figures: an `Interval` (95 %) by outcome and estimator; NaN from ``ips`` and ``snips``
            if the candidate never took the logged action.
        logged: the log's own mean by outcome.
        match: share of frames in which the candidate would have taken the logged action.
        effective_frames: effective sample size of the weights, frames (Kish).
        frames: of the log.
    """

    figures: dict[str, dict[str, Interval]]
    logged: dict[str, float]
    match: float
    effective_frames: float
    frames: int

    @property
    def enough(self) -> bool:
        """Whether there are enough effective frames for an estimate (`MIN_EFFECTIVE`)."""
        return self.effective_frames >= MIN_EFFECTIVE

    def as_json(self) -> dict[str, Any]:
        """Plain figures."""
        return {
            "estimates": {
                outcome: {name: asdict(found) for name, found in by.items()}
                for outcome, by in self.figures.items()
            },
            "logged": self.logged,
            "match": self.match,
            "effective_frames": self.effective_frames,
            "enough_frames": self.enough,
            "frames": self.frames,
        }


def estimate(
    log: Log, candidate: Policy, world: World, *, seed: int = 0, resamples: int = 1000
) -> Estimate:
    """Estimate a deterministic candidate's mean outcomes from a log.

    Args:
        log: logged decisions.
        candidate: decides by the observation alone.
        world: training world of the same device, for the model's features.
        seed: of the bootstrap.
        resamples: bootstrap resamples.

    Raises:
        ConfigError: if the candidate decides for another network than the world's.
    """
    check_network(world, candidate)
    candidate.reset()
    chosen = candidate.decide_batch(log.observation)
    same = chosen == log.action
    weight = same / log.propensity
    blocks = np.arange(len(chosen)) // BLOCK
    n_blocks = int(blocks[-1]) + 1
    features = _Features(world)(log.observation)
    rows = np.arange(len(chosen))
    did, would = features[rows, log.action], features[rows, chosen]
    size = np.bincount(blocks, minlength=n_blocks).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(
        n_blocks, np.full(n_blocks, 1 / n_blocks), size=resamples
    )
    draws = np.concatenate([np.ones((1, n_blocks)), drawn])  # the first is the log itself

    def sums(values: Floats) -> Floats:
        per_block: Floats = draws @ np.bincount(blocks, values, n_blocks)
        return per_block

    frames, weights = draws @ size, sums(weight)
    figures: dict[str, dict[str, Interval]] = {}
    for name, y in log.outcomes.items():
        predicted_did, predicted_would = _cross_fit(did, would, y, blocks)
        weighted = sums(weight * y)
        corrected = sums(predicted_would + weight * (y - predicted_did))
        seen = weights > 0  # a resample without a frame of the candidate has no estimate
        found = {
            "ips": np.where(same.any(), weighted / frames, np.nan),
            "snips": np.where(seen, weighted / np.where(seen, weights, 1.0), np.nan),
            "dr": corrected / frames,
        }
        figures[name] = {k: _interval(v) for k, v in found.items()}
    return Estimate(
        figures=figures,
        logged={name: float(y.mean()) for name, y in log.outcomes.items()},
        match=float(same.mean()),
        effective_frames=float(weight.sum() ** 2 / max(float((weight**2).sum()), 1e-12)),
        frames=len(chosen),
    )


def _interval(values: Floats) -> Interval:
    known = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high))


class _Features:
    """Features of each action for a linear model of outcomes, float64 (N, n_actions, F), from
    predictions."""

    def __init__(self, world: World) -> None:
        self._predict, self._accuracy_table = Predictor(world), AccuracyTable(world)
        self._deadline_ms = world.scenario.timing.deadline_ms
        self._timeout_ms = world.scenario.timing.timeout_ms
        of = world.topology
        one_hot, depth = np.eye(of.n_actions), of.n_blocks
        self._fixed = np.column_stack([one_hot, of.exit_of / depth, of.split_of / depth])
        self._is_local = of.is_local

    def __call__(self, observations: NDArray[np.float32]) -> Floats:
        at, raw = self._predict.read.at, self._predict.read(observations)
        exchange = self._predict.exchange_ms(raw)
        delay = self._predict.delay_ms(raw, exchange)
        # An infinite exchange (a link treated as dead) has a lateness of 1.
        late = 1.0 - self._timeout_ms / (exchange + self._timeout_ms)
        moving = [
            delay / self._deadline_ms,
            np.minimum(delay / self._deadline_ms, 2.0) ** 2,
            self._predict.energy_mj(raw, exchange) / self._predict.world.energy_ref_mj,
            (delay > self._deadline_ms).astype(np.float64),
            late,
            self._accuracy_table(raw),
            *(
                np.where(self._is_local, 0.0, observations[:, at[name], None])
                for name in ("transfer_spread_ms", "transfer_age_s", "failure_age_s", "failures")
            ),
            np.broadcast_to(observations[:, at["last_confidence"], None], delay.shape),
        ]
        fixed = np.broadcast_to(self._fixed, (len(raw), *self._fixed.shape))
        return np.concatenate([np.stack(moving, axis=2), fixed], axis=2)


def _cross_fit(
    did: Floats, would: Floats, y: Floats, blocks: NDArray[np.int64], ridge: float = 1.0
) -> tuple[Floats, Floats]:
    """Predictions for the logged and the candidate's actions, by models of other blocks."""
    logged, wanted = np.empty(len(y)), np.empty(len(y))
    for fold in range(FOLDS):
        out = blocks % FOLDS == fold
        x, target = did[~out], y[~out]
        gram = x.T @ x + ridge * np.eye(x.shape[1])
        beta = np.linalg.solve(gram, x.T @ (target - target.mean()))
        logged[out] = did[out] @ beta + target.mean()
        wanted[out] = would[out] @ beta + target.mean()
    return logged, wanted


def warn_of_other_log(path: Path, bundle: PolicyBundle, observations: NDArray[np.float32]) -> None:
    """One line on standard error if a log's device had another task than the policy's.

    Args:
        path: policy file.
        bundle: its content.
        observations: float32 (N, obs_dim), logged.
    """
    task = bundle.task
    if task is None:
        return
    expected = np.array(task.settings().scaled())
    schema = schema_of(bundle.topology)
    first = schema.constants_at
    apart = np.abs(observations[:, first:] - expected).max(0) > _ROUNDING
    names = [field.name for field in schema.fields[first:]]
    free = {"accuracy_floor": task.accuracy_floors, "delay_share": task.delay_shares}
    said = [n for n, differs in zip(names, apart, strict=True) if differs and not free.get(n)]
    if said:
        warn(
            f"the records' device was told another {', '.join(said)} than policy file {path} is "
            "for: the figures are those of a policy that is told the same"
        )
