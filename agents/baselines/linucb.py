"""LinUCB: a contextual bandit that learns the exchange's delay while it drives.

The idea of Autodidactic Neurosurgeon (L. Zhang, L. Chen, J. Xu, WWW 2021, arXiv:2102.02638): the
device's own compute takes a known time; the delay beyond the split is a linear function of a
context, ``theta . x``, and ``theta`` is learnt from the device's own exchanges. The split is chosen
by an optimistic estimate, so that uncertain splits are tried. Three things are adapted to this
decision:

* the context of an action is the device's prediction for it (time to send, round trip and wait,
  server's compute), so ``theta`` starts at 1, 1, 1 and learns the error of that prediction;
* old exchanges are forgotten frame by frame (discounted LinUCB: Russac, Vernade, Cappé,
  NeurIPS 2019). A device that stays local becomes uncertain again and tries to send; Autodidactic
  Neurosurgeon has forced sampling for that;
* early exits cost accuracy, so the predicted error probability has a price, as in
  `agents.baselines.rules.GreedyPolicy`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.prediction import AccuracyTable, Floats, Predictor, best
from offload_env.world import World
from testbed.policy.decision_points import START, decision_points
from testbed.policy.policies import Feedback

_FEATURES: Final = 4
_BIAS_MS: Final = 10.0
"""The constant feature; of the same size as the others, so that one ridge weight serves all."""
_RIDGE_MS: Final = 20.0
"""Coefficients start with the certainty that one exchange of this length gives."""


class LinUcbPolicy:
    """See the module's text. Keeps one memory a row of `decide_batch`; learns by `learn`.

    Args:
        world: training world: device times, prices.
        price: cost of one wrong answer.
        optimism_ms: standard error of the exchange, milliseconds, that the estimate is
            lowered by (LinUCB's alpha); 0 does not explore.
        keep: factor on the weight of old exchanges at each frame, (0, 1].
        accuracy_table: table of P(correct), measured on training frames.
    """

    def __init__(
        self,
        world: World,
        price: float,
        optimism_ms: float,
        keep: float,
        accuracy_table: AccuracyTable,
    ) -> None:
        self.name = "linucb"
        self.space = decision_points(world.topology).frame
        self._is_local = world.topology.is_local
        self.price, self.optimism_ms, self.keep = price, optimism_ms, keep
        self._predict, self._accuracy_table = Predictor(world), accuracy_table
        self._timeout_ms = world.scenario.timing.timeout_ms
        self._rows = 0
        self._begin(1)

    def reset(self) -> None:
        """Forget every drive."""
        self._begin(self._rows)

    def _begin(self, rows: int) -> None:
        self._rows = rows
        # Discounted sums of x x' and of x (exchange - its prediction), without the ridge.
        self._seen = np.zeros((rows, _FEATURES, _FEATURES))
        self._missed = np.zeros((rows, _FEATURES))
        self._x = np.zeros((rows, _FEATURES))
        self._expected_ms = np.zeros(rows)

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """Canonical action number for one observation of one drive."""
        return int(self.decide_batch(np.asarray(observation)[None])[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Canonical action numbers; a different number of rows than before resets the memories."""
        if len(observations) != self._rows:
            self._begin(len(observations))
        raw = self._predict.read(observations)
        x, exchange = self._context(raw)
        inverse = np.linalg.inv(self._seen + _RIDGE_MS**2 * np.eye(_FEATURES))
        correction = (inverse @ self._missed[:, :, None])[:, :, 0]
        mean = exchange + np.einsum("baf,bf->ba", x, correction)
        spread = np.sqrt(np.einsum("baf,baf->ba", x @ inverse, x))
        hoped = np.clip(mean - self.optimism_ms * spread, 0.0, None)
        hoped[:, self._is_local] = 0.0
        wrong = 1.0 - self._accuracy_table(raw)
        chosen = best(self._predict.cost(raw, hoped) + self.price * wrong)
        rows = np.arange(len(raw))
        self._x, self._expected_ms = x[rows, chosen], exchange[rows, chosen]
        return chosen

    def learn(self, feedback: Feedback) -> None:
        """Learn from one more frame: the exchange's length where something was sent."""
        sent = np.isfinite(feedback.exchange_ms)
        x = self._x * sent[:, None]
        error = np.where(sent, feedback.exchange_ms - self._expected_ms, 0.0)
        self._seen *= self.keep
        self._seen += x[:, :, None] * x[:, None, :]
        self._missed *= self.keep
        self._missed += x * error[:, None]

    def _context(self, raw: Floats) -> tuple[Floats, Floats]:
        """Features (B, A, 4) and the device's own prediction of the exchange (B, A), by action.

        Nothing counts beyond the time-out: an exchange that takes longer times out.
        """
        parts = np.minimum(self._predict.exchange_parts_ms(raw), self._timeout_ms)
        x = np.concatenate([np.full((*parts.shape[:2], 1), _BIAS_MS), parts], axis=2)
        return x, np.minimum(parts.sum(2), self._timeout_ms)
