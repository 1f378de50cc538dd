"""A planner within the frame that nobody trained: predicted cost, a price of errors, fresh links.

At each decision point it reads the device's own observation alone and predicts, by the scenario's
cost model, the cost of every legal action from there. It adds `error_price` times the probability
that the answer is wrong (`agents.baselines.answer_odds`) and subtracts up to `freshness_bonus`
from sending, the more the older the knowledge of the link is. It takes the cheapest.

Evaluating an exit leaves the frame open, so its cost is the expectation of what is cheapest
afterwards, over the exit's confidence: computed from the last exit to the first. The next frames
are not looked at.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.answer_odds import AnswerOdds, Ints
from agents.baselines.prediction import Floats, Predictor, best
from offload_env.world import World
from testbed.policy.decision_points import START, decision_points
from testbed.policy.estimators import FORGET_TAU_S
from testbed.policy.observation_fields import MAX_RATE_MBPS, schema_of
from testbed.policy.reference_profile import unscaled


import os
TAU = float(os.environ.get("TAU", "5"))


class PlannerPolicy:
    """See the module's text.

    Args:
        world: training world: device times, prices.
        error_price: cost of one wrong answer.
        freshness_bonus: cost that sending is worth when the link was never seen.
        odds: shared tables of P(correct), measured on training frames.
    """

    memoryless: Final = True

    def __init__(
        self, world: World, error_price: float, freshness_bonus: float, odds: AnswerOdds
    ) -> None:
        topology = self.topology = world.topology
        self.name = "planner"
        self._points = at = decision_points(topology)
        self.space = at.staged
        self.error_price, self.freshness_bonus = error_price, freshness_bonus
        self._world, self._odds, self._predict = world, odds, Predictor(world)
        self._wrong = error_price * (1.0 - odds.right)
        self._local = np.array(topology.local)
        early = np.array(topology.exits[:-1], np.int64)
        # Milliseconds, and cost, of evaluating an exit beside the blocks that lead to it.
        beside_ms = world.device_ms[self._local[:-1]] - world.standing_ms[early]
        per_ms = world.delay_price + world.energy_price * world.cost.busy_mw / 1e3
        self._beside = per_ms * np.maximum(beside_ms, 0.0)
        # Canonical actions that end a frame, unless they time out.
        self._ends = ~topology.is_local
        self._ends[topology.main] = True
        stage = schema_of(topology).staged_fields
        found = self._predict.read.at
        self._confidence_at = found["stage_confidence"]
        self._agrees_at = found["stage_agrees_track"]
        self._spent = stage[found["stage_spent_ms"]]

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """Staged action for one observation."""
        return int(self.decide_batch(observation[None], np.array([point]))[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Staged actions for a batch, int64 (B,)."""
        if points is None:
            return self._decide_at(START, observations)
        chosen = np.empty(len(observations), np.int64)
        for point in np.unique(points):
            rows = points == point
            chosen[rows] = self._decide_at(int(point), observations[rows])
        return chosen

    def _decide_at(self, point: int, observations: NDArray[np.float32]) -> Ints:
        at, topology = self._points, self.topology
        raw = self._predict.read(observations)
        context = 1 + topology.exit_place[self._rounded(raw, "last_exit")]
        block, evaluated = int(at.block[point]), int(at.evaluated[point])
        place = int(topology.exit_place[evaluated]) if evaluated else -1
        legal = at.legal[point]
        cost, now = self._costs(raw, observations, point)
        after = self._afterwards(cost, context, place, at.has_timed_out(point), block)
        value = np.full((len(raw), at.n_actions), np.inf)
        ends = np.flatnonzero(self._ends & legal[: topology.n_actions])
        if evaluated:
            confidence = 0.5 * (observations[:, self._confidence_at] + 1.0)
            agrees = observations[:, self._agrees_at] > 0.5
            state = 2 * self._odds.bin(place, confidence) + agrees
            wrong = self._wrong[context, place, state]
            shown = self._odds.follows[context, place, :, state]
            value[:, at.answer] = now + wrong[:, self._local[place]]
        else:
            wrong = self.error_price * (1.0 - self._odds.before(raw))
            last = self._last_bin(raw, context)
            shown = self._odds.first[context, last]
        value[:, ends] = cost[:, ends] + wrong[:, ends]
        for e, left in after.items():
            if legal[self._local[e]]:
                value[:, self._local[e]] = (shown[:, e] * left).sum(1)
        return best(value)

    def _afterwards(
        self, cost: Floats, context: Ints, place: int, timed_out: bool, block: int
    ) -> dict[int, Floats]:
        """Least expected cost after each early exit beyond `place`, by its states, (B, S)."""
        topology, odds = self.topology, self._odds
        out: dict[int, Floats] = {}
        for e in range(topology.n_exits - 2, place, -1):
            exit = topology.exits[e]
            if exit < block:
                continue
            wrong, own = self._wrong[context, e], self._local[e]
            left = cost[:, own, None] + wrong[:, :, own]
            ends = self._ends & (topology.exit_of > exit) & (topology.split_of >= exit)
            if timed_out:
                ends &= topology.is_local
            at = np.flatnonzero(ends)
            then = (cost[:, None, at] + wrong[:, :, at]).min(2)
            for d, further in out.items():
                on = (odds.follows[context, e, d] @ further[:, :, None])[:, :, 0]
                then = np.minimum(then, on)
            out[e] = np.minimum(left, then + self._beside[e])
        return out

    def _costs(
        self, raw: Floats, observations: NDArray[np.float32], point: int
    ) -> tuple[Floats, Floats]:
        """Predicted cost of every pair from here, (B, A), and of answering now, (B,)."""
        world, at = self._world, self._points
        block = int(at.block[point])
        if point == START:
            spent = np.zeros((len(raw), 1))
        else:
            field = self._spent
            spent = unscaled(field, observations[:, field.index].astype(np.float64))[:, None]
        reached = world.resumed_ms if at.has_timed_out(point) else world.standing_ms
        device_ms = spent + np.maximum(world.device_ms - reached[block], 0.0)
        exchange = self._exchange_ms(raw)
        cost = self._predict.cost(raw, exchange, device_ms)
        age = raw[:, self._predict.read.at["transfer_age_s"], None]
        bonus = self.freshness_bonus * age / (age + TAU)
        main = self.topology.main
        now = self._predict.cost(raw, exchange, np.broadcast_to(spent, device_ms.shape))[:, main]
        return np.where(self.topology.is_local, cost, cost - bonus), now

    def _rounded(self, raw: Floats, name: str) -> Ints:
        return np.rint(raw[:, self._predict.read.at[name]]).astype(np.int64)

    def _last_bin(self, raw: Floats, context: Ints) -> Ints:
        confidence = raw[:, self._predict.read.at["last_confidence"]]
        out = np.zeros(len(raw), np.int64)
        for c in np.unique(context[context > 0]):
            rows = context == c
            out[rows] = self._odds.bin(int(c) - 1, confidence[rows])
        return out

    def _exchange_ms(self, raw: Floats) -> Floats:
        """Predicted exchange of every action, (B, A); infinite while the link counts as dead.

        The estimated round trip includes the network's fixed time. A rate at the field's upper end
        stands for a fitted line that falls or is level, so there the mean of recent transfers, of
        whatever size, is nearer than the line that the two elements show.
        """
        found = self._predict.read.at
        rate = raw[:, found["uplink_mbps"], None]
        line = self._predict.exchange_ms(raw) - self._world.cost.net_ms * ~self.topology.is_local
        level = raw[:, found["transfer_mean_ms"], None] + raw[:, found["server_wait_ms"], None]
        level = np.where(np.isfinite(line), level + self._world.server_ms, line)
        level[:, self.topology.is_local] = 0.0
        clipped = rate > (1.0 - 1e-3) * MAX_RATE_MBPS
        exchange: Floats = np.where(clipped, np.minimum(line, level), line)
        return exchange
