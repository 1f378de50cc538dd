"""A planner within the frame that nobody trained: predicted cost, a price of errors, fresh links.

At each decision point it reads the device's own observation alone and predicts, by the scenario's
cost model, the cost of every legal action from there (`agents.baselines.cost_ahead`). It adds
`error_price` times the probability that the answer is wrong (`agents.baselines.answer_odds`) and
subtracts up to `freshness_bonus` from sending, the more the older the knowledge of the link is. It
takes the cheapest action, and never times out early: it knows no spread of the exchange.

Evaluating an exit leaves the frame open, so its cost is the expectation of what is cheapest
afterwards, over the exit's confidence: computed from the last exit to the first. The next frames
are not looked at, unless a `horizon` is given (`agents.baselines.backlog_cost`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.answer_odds import STATES, AnswerOdds
from agents.baselines.backlog_cost import BacklogCost
from agents.baselines.cost_ahead import CostAhead
from agents.baselines.prediction import Floats
from agents.baselines.seen import Seen
from agents.baselines.usual_exchange import UsualExchange
from offload_env.world import World
from testbed.policy.decision_points import START, decision_points
from testbed.policy.policies import Policy

_AT_ONCE: Final = 256
"""Rows that are decided at once: arrays of more leave the processor's caches, and take longer."""


class PlannerPolicy:
    """See the module's text; E exits, A actions, S states of an exit, C contexts.

    Args:
        world: training world: device times, prices.
        error_price: cost of one wrong answer.
        freshness_bonus: cost that sending is worth when nothing is known of the link any more.
        odds: shared tables of P(correct), measured on training frames.
        horizon: frames after this one that are played in the model (`BacklogCost`): above 0 this
            is model-predictive control.
        usual: lets knowledge of link and load fade to the usual; None believes the last estimates.
    """

    memoryless: Final = True

    def __init__(
        self,
        world: World,
        error_price: float,
        freshness_bonus: float,
        odds: AnswerOdds,
        horizon: int = 0,
        usual: UsualExchange | None = None,
    ) -> None:
        topology = world.topology
        self.name = "mpc" if horizon else "planner"
        self._points = at = decision_points(topology)
        self.space = at.staged
        backlog = BacklogCost(world, horizon) if horizon else None
        self._odds, self._ahead = odds, CostAhead(world, backlog, usual)
        self._places: list[int] = topology.exit_place.tolist()
        self._own, self._local = topology.local, np.array(topology.local)
        self._n_early = topology.n_exits - 1
        self._wrong_before, self._wrong = 1.0 - odds.right_before, 1.0 - odds.right
        # By point: place of the exit evaluated last (-1: none), and 0 or infinity, by legality.
        self._place = [self._places[e] if e else -1 for e in at.evaluated.tolist()]
        barred = np.where(at.legal, 0.0, np.inf)
        ends = ~topology.is_local
        ends[topology.main] = True
        self._ends_barred = barred[:, : topology.n_actions] + np.where(ends, 0.0, np.inf)
        self._early_barred = barred[:, self._local[:-1]]
        # [whether an exchange timed out], see `_ways_on` and `_afterwards`.
        self._ways = [self._ways_on(timed_out) for timed_out in (False, True)]
        early = slice(0, self._n_early)
        # [context, exit, deeper exit]: (S, S)
        follows = odds.shown[:, early, :, early].transpose(0, 1, 3, 2, 4)
        self._follows = np.ascontiguousarray(follows)
        self._price(error_price, freshness_bonus)

    def priced(self, error_price: float, freshness_bonus: float) -> PlannerPolicy:
        """The same planner with another price and bonus; both share all else."""
        other = copy.copy(self)
        other._price(error_price, freshness_bonus)
        return other

    def _price(self, error_price: float, freshness_bonus: float) -> None:
        self.error_price, self.freshness_bonus = float(error_price), float(freshness_bonus)
        self._after = [self.error_price * wrong + beside for wrong, beside in self._ways]

    def _ways_on(self, timed_out: bool) -> tuple[Floats, Floats]:
        """What ending the frame by a pair costs after each early exit, beside its predicted cost.

        Returns:
            P(wrong), which the price of errors multiplies; and for going on beyond the exit, its
            evaluation, infinity for what cannot be done there. float64 (C, A, E - 1, S) each.
        """
        topology = self._points.topology
        shape = (len(self._wrong), topology.n_actions, self._n_early, STATES)
        errors, ways = np.zeros(shape), np.full(shape, np.inf)
        for e, exit in enumerate(topology.exits[:-1]):
            wrong = self._wrong[:, e].transpose(0, 2, 1)
            own, main = topology.local[e], topology.main
            on = [
                a.index
                for a in topology.actions
                if a.index == main
                or (not a.is_local and a.split >= exit and a.exit > exit and not timed_out)
            ]
            ways[:, on, e], ways[:, own, e] = self._ahead.beside[e], 0.0
            errors[:, on, e], errors[:, own, e] = wrong[:, on], wrong[:, own]
        return errors, ways

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """Staged action for one observation."""
        seen, odds = self._ahead.read(observation), self._odds
        context = 1 + self._places[round(seen.last_exit)]
        place = self._place[point]
        if place < 0:
            state = odds.bin(context - 1, seen.last_confidence) if context else 0
        else:
            state = 2 * odds.bin(place, seen.stage_confidence) + (seen.stage_agrees_track > 0.75)
        ahead = self._ahead.of(seen, point, self.freshness_bonus, self.error_price)
        return int(self._values(*ahead, point, context, state, self.error_price).argmin())

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Staged actions for a batch, int64 (B,)."""
        points = np.full(len(observations), START) if points is None else points
        return self._decide_rows(observations, points, self.error_price, self.freshness_bonus)

    def decide_beside(
        self,
        planners: Sequence[PlannerPolicy],
        whose: NDArray[np.int64],
        observations: NDArray[np.float32],
        points: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """`decide_batch` for planners that this one was `priced` to, each for its own rows.

        Args:
            planners: P of them.
            whose: int64 (B,), the planner of each row.
            observations, points: (B, obs_dim) and (B,).
        """
        prices = np.array([p.error_price for p in planners])
        bonuses = np.array([p.freshness_bonus for p in planners])
        alike = bool((prices == self.error_price).all())
        price = self.error_price if alike else prices[whose, None]
        return self._decide_rows(observations, points, price, bonuses[whose, None])

    def _decide_rows(
        self,
        observations: NDArray[np.float32],
        points: NDArray[np.int64],
        price: Any,
        bonus: Any,
    ) -> NDArray[np.int64]:
        """Staged actions with the price of errors and the bonus of every row, (B, 1) each.

        Floats are this planner's own.
        """
        seen = self._ahead.read(observations)
        last_exit = np.rint(seen.last_exit[:, 0]).astype(np.int64)
        contexts = 1 + np.array(self._places)[last_exit]
        groups, which = np.unique(points * len(self._wrong) + contexts, return_inverse=True)
        chosen = np.empty(len(observations), np.int64)
        for g, group in enumerate(groups.tolist()):
            every = np.flatnonzero(which == g)
            for rows in np.split(every, range(_AT_ONCE, len(every), _AT_ONCE)):
                alike = Seen._make(values[rows] for values in seen)
                point, context = divmod(group, len(self._wrong))
                own: list[Any] = [x if isinstance(x, float) else x[rows] for x in (price, bonus)]
                chosen[rows] = self._decide_alike(alike, point, context, *own)
        return chosen

    def _decide_alike(
        self, seen: Seen, point: int, context: int, price: Any, bonus: Any
    ) -> NDArray[np.int64]:
        """`_decide_rows` of rows at one decision point and in one context."""
        odds, place = self._odds, self._place[point]
        if place >= 0:
            agrees = seen.stage_agrees_track[:, 0] > 0.75
            state = 2 * odds.bins(place, seen.stage_confidence[:, 0]) + agrees
        elif context:
            state = odds.bins(context - 1, seen.last_confidence[:, 0])
        else:
            state = np.zeros(len(seen.last_exit), np.int64)
        ahead = self._ahead.of(seen, point, bonus, price)
        found: NDArray[np.int64] = self._values(*ahead, point, context, state, price).argmin(-1)
        return found

    def _values(
        self,
        pairs: Floats,
        now: Any,
        point: int,
        context: int,
        state: Any,
        price: Any,
    ) -> Floats:
        """What every staged action is expected to cost, (n_actions,) or (B, n_actions).

        Args:
            pairs, now: from `CostAhead.of`.
            point, context: of all rows.
            state: of the exit evaluated last, or the bin of the last answer's confidence at the
                frame's start: an int, or int64 (B,).
            price: of errors, (B, 1), or this planner's as a float.
        """
        place, odds = self._place[point], self._odds
        if place < 0:
            wrong, shown = self._wrong_before[context, state], odds.shown_before[context, state]
        else:
            wrong, shown = self._wrong[context, place, state], odds.shown[context, place, state]
        wrong = price * wrong
        n = pairs.shape[-1]
        value = np.full((*pairs.shape[:-1], self._points.n_actions), np.inf)
        value[..., :n] = pairs + wrong + self._ends_barred[point]
        first = place + 1
        if first < self._n_early:
            timed_out = self._points.has_timed_out(point)
            after = self._afterwards(pairs, context, first, timed_out, price)
            expected = (shown[..., first : self._n_early, :] * after).sum(-1)
            at = self._local[first : self._n_early]
            value[..., at] = expected + self._early_barred[point, first:]
        if place >= 0:
            own, answer = self._own[place], self._points.answer
            value[..., answer : answer + 1] = now + wrong[..., own : own + 1]
        return value

    def _afterwards(
        self, pairs: Floats, context: int, first: int, timed_out: bool, price: Any
    ) -> Floats:
        """Least expected cost after each early exit from `first` on, by state.

        float64 (E - 1 - first, S), or (B, E - 1 - first, S).
        """
        if isinstance(price, float):
            ways = self._after[timed_out][context, :, first:]
        else:
            wrong, beside = (part[context, :, first:] for part in self._ways[timed_out])
            ways = price[..., None, None] * wrong + beside
        after: Floats = np.minimum.reduce(pairs[..., None, None] + ways, axis=-3)
        for e in range(self._n_early - 2, first - 1, -1):
            deeper = after[..., e + 1 - first :, :, None]
            on = np.matmul(self._follows[context, e, e + 1 :], deeper)[..., 0]
            least = np.minimum.reduce(on, axis=-2) + self._ahead.beside[e]
            np.minimum(after[..., e - first, :], least, out=after[..., e - first, :])
        return after


def planners_alike(policies: Sequence[Policy]) -> list[PlannerPolicy]:
    """All of `policies`, if they are one planner `PlannerPolicy.priced` in several ways, else none.

    Then one of them can decide for all (`PlannerPolicy.decide_beside`).
    """
    alike: list[PlannerPolicy] = []
    for policy in policies:
        if type(policy) is not PlannerPolicy or (alike and policy._ahead is not alike[0]._ahead):
            return []
        alike.append(policy)
    return alike
