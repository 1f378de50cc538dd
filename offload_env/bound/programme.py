"""The cheapest sequences of frame outcomes in the relaxed problem, by dynamic programming.

A frame is in one of two states: *on time* (it starts when it is captured and finds the radio free)
or *delayed*. On time, its costs and the state of the next frame are exact. Delayed, its costs are
relaxed and the next frame may be in either state. Where the radio may still be busy with abandoned
payloads, the costs of a frame on time are relaxed a little. With a modem tail the programme
remembers the last exchange as well. `offload_env.bound.proof` has the proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload_env.bound.frame_outcomes import (
    Costs,
    Floats,
    FrameOutcomes,
    Ints,
    Prices,
    frame_outcomes_of,
)
from offload_env.bound.on_time import on_time_costs
from offload_env.bound.relaxed import delayed_costs, inexact_costs, may_be_busy
from offload_env.episode import Keys
from offload_env.world import World

ON_TIME: Final = 0
DELAYED: Final = 1


@dataclass(frozen=True, slots=True)
class Options:
    """Costs of E episodes of n frames and the K outcomes of each.

    Attributes:
        outcomes: of the network.
        on_time: costs of frames on time, (2, E, n, K), by the state of the next one.
        delayed: costs of delayed frames, (1, E, n, K), whatever the state of the next one.
        error: float64 (E, n, K), 1 if the answer is wrong; in general 1 less its quality.
        critical: bool (E, n), frames of critical classes.
        captured_ms: float64 (n + 1,), capture times, and that of the frame after the last.
        tail_ends_ms: float64 (E, n), earliest end of the tail of an exchange in each frame.
        tail_price: of a millisecond; 0 leaves the tail out.
    """

    outcomes: FrameOutcomes
    on_time: Costs
    delayed: Costs
    error: Floats
    critical: NDArray[np.bool_]
    captured_ms: Floats
    tail_ends_ms: Floats
    tail_price: float


def options(
    world: World, keys: Keys, n_frames: int, premium: float = 0.0, *, connects: bool = False
) -> Options:
    """The costs of the first `n_frames` frames of the episodes `keys`.

    Args:
        world: scenario and split.
        keys: uint64 (E,).
        n_frames: of each episode.
        premium: added to the price of a millijoule.
        connects: charge the promotion to whoever sends after the tail: nearer to the truth, to
            guide a search, but no bound (`offload_env.bound.proof`).
    """
    outcomes = frame_outcomes_of(world.topology)
    plans = world.plans(keys)
    rows = np.stack([world.rows(int(key), n_frames) for key in keys])
    captured = np.arange(n_frames + 1, dtype=np.float64) * world.scenario.timing.period_ms
    prices = Prices.of(world, premium)
    least, earliest_ms = delayed_costs(world, plans, rows, captured, prices)
    if world.scenario.heat.is_on:  # when a frame sends depends on what was computed before
        exact = Costs(*(np.concatenate([costs, costs]) for costs in least))
    else:
        exact = on_time_costs(world, plans, rows, captured, prices)
        not_exact = may_be_busy(world, plans, captured) | (outcomes.ways == (None,))
        relaxed = inexact_costs(world, plans, rows, captured, prices, not_exact)
        for costs, behind in zip(exact, relaxed, strict=True):
            costs[:, not_exact] = np.minimum(costs[:, not_exact], behind)
    if connects:
        promotion_ms = world.cost.radio.promotion_ms
        slow = on_time_costs(world, plans, rows, captured, prices, promotion_ms)
        exact = slow._replace(within_tail=exact.within_tail)
        answered = outcomes.outcome_of[outcomes.sending]
        least.after_tail[..., answered] += prices.delay * promotion_ms
    error: Floats = 1.0 - world.correct[rows][..., outcomes.answered_by].astype(np.float64)
    error[..., outcomes.skip] = 1.0
    return Options(
        outcomes=outcomes,
        on_time=exact,
        delayed=least,
        error=error,
        critical=world.critical[rows],
        captured_ms=captured,
        tail_ends_ms=earliest_ms + world.cost.radio.tail_ms,
        tail_price=prices.tail,
    )


class Solution(NamedTuple):
    """The cheapest sequences under given multipliers.

    Attributes:
        value: mean of relaxed cost + multipliers * errors of a frame.
        error: mean error of a frame.
        critical: errors on critical frames, per frame of any class.
    """

    value: float
    error: float
    critical: float


class _Best(NamedTuple):
    """Cheapest of some outcomes of every frame: cost float64 (E, n), outcome int64 (E, n)."""

    cost: Floats
    outcome: Ints


class _Step(NamedTuple):
    """From one state to another: the best outcomes that send nothing, that send while the last
    tail still runs, and that send after it (or without one)."""

    quiet: _Best
    within_tail: _Best
    after_tail: _Best


class Relaxed:
    """Minimises relaxed cost + multipliers * errors over whole sequences of outcomes."""

    def __init__(self, opts: Options) -> None:
        self.opts = opts
        self.episodes, self.frames = opts.error.shape[:2]
        self._has_tail = opts.tail_price > 0

    def solve(self, multiplier: float, critical: float = 0.0) -> Solution:
        """The cheapest sequences at the price `multiplier` of an error, `critical` more on a
        critical class."""
        steps = self._steps(multiplier, critical)
        to_go = self._to_go(steps)
        outcomes = self._outcomes(steps, to_go)
        error = np.take_along_axis(self.opts.error, outcomes[:, :, None], 2)[:, :, 0]
        return Solution(
            float(to_go[ON_TIME, :, 0, 0].mean()) / self.frames,
            float(error.mean()),
            float((error * self.opts.critical).mean()),
        )

    def outcomes(self, multiplier: float) -> Ints:
        """Best outcome of every frame, int64 (E, n)."""
        steps = self._steps(multiplier, 0.0)
        return self._outcomes(steps, self._to_go(steps))

    def to_go(self, multiplier: float, critical: float = 0.0) -> Floats:
        """Relaxed cost from frame i on, by its state and the last exchange.

        Returns:
            float64 (2, E, n + 1, J): [state, episode, i, j], the last exchange at frame j - 1
            (0: none), j <= i; J is 1 without a tail, otherwise n + 1.
        """
        return self._to_go(self._steps(multiplier, critical))

    def _steps(self, multiplier: float, critical: float) -> list[list[_Step]]:
        """By the state of a frame and that of the next one."""
        opts, n_quiet = self.opts, self.opts.outcomes.n_quiet
        price = (multiplier + critical * opts.critical)[..., None] * opts.error

        def best(cost: Floats, first: int, end: int | None) -> _Best:
            total = cost[..., first:end] + price[..., first:end]
            at = total.argmin(2)
            return _Best(np.take_along_axis(total, at[..., None], 2)[..., 0], at + first)

        def step(after_tail: Floats, within_tail: Floats) -> _Step:
            quiet, after = best(after_tail, 0, n_quiet), best(after_tail, n_quiet, None)
            within = best(within_tail, n_quiet, None) if self._has_tail else after
            return _Step(quiet, within, after)

        exact = [step(*costs) for costs in zip(*opts.on_time, strict=True)]
        relaxed = step(opts.delayed.after_tail[0], opts.delayed.within_tail[0])
        return [exact, [relaxed, relaxed]]

    def _to_go(self, steps: list[list[_Step]]) -> Floats:
        n, price = self.frames, self.opts.tail_price
        captured = self.opts.captured_ms
        value = np.zeros((2, self.episodes, n + 1, n + 1 if self._has_tail else 1))
        if self._has_tail:
            # After the last frame the tail runs on until the next one would start.
            until = np.minimum(captured[n], self.opts.tail_ends_ms)
            value[:, :, n, 1:] = price * (until - captured[1:])

        def least(kind: str, state: int, i: int, last: slice) -> Floats:
            """Over the states of the next frame, by the last exchange then, (E, J)."""
            costs = (
                getattr(step, kind).cost[:, i, None] + value[to, :, i + 1, last]
                for to, step in enumerate(steps[state])
            )
            cheapest: Floats = np.minimum(*costs)
            return cheapest

        for i in range(n - 1, -1, -1):
            known = slice(0, i + 1 if self._has_tail else 1)
            sent = slice(i + 1, i + 2) if self._has_tail else slice(0, 1)
            for state in (ON_TIME, DELAYED):
                quiet = least("quiet", state, i, known)
                after = least("after_tail", state, i, sent)
                go = np.broadcast_to(after, quiet.shape)
                if self._has_tail and i:
                    go = go.copy()
                    within = least("within_tail", state, i, sent)
                    run_out = after + price * self.opts.tail_ends_ms[:, :i]
                    go[:, 1:] = np.minimum(within, run_out) - price * captured[1 : i + 1]
                value[state, :, i, known] = np.minimum(quiet, go)
        return value

    def _outcomes(self, steps: list[list[_Step]], to_go: Floats) -> Ints:
        chosen = np.empty((self.episodes, self.frames), np.int64)
        each = np.arange(self.episodes)
        state, last = np.zeros(self.episodes, np.int64), np.zeros(self.episodes, np.int64)
        for i in range(self.frames):
            costs, outcomes = self._moves(steps, to_go, i, last)
            move = costs[state, :, each].argmin(1)
            chosen[:, i] = outcomes[state, move, each]
            state = move % 2
            last = np.where(move >= 2, i + 1, last) if self._has_tail else last
        return chosen

    def _moves(
        self, steps: list[list[_Step]], to_go: Floats, i: int, last: Ints
    ) -> tuple[Floats, Ints]:
        """Cost to go and outcome of the six moves (those of a `_Step`, each to either state).

        Returns:
            float64 and int64 (2, 6, E), by the state now.
        """
        each, price = np.arange(self.episodes), self.opts.tail_price
        sent = i + 1 if self._has_tail else 0
        none = last == 0
        ends = self.opts.tail_ends_ms[each, np.maximum(last - 1, 0)]
        from_last = np.where(none, 0.0, price * self.opts.captured_ms[last])
        run_out = np.where(none, 0.0, price * ends) - from_last
        costs, outcomes = [], []
        for state in (ON_TIME, DELAYED):
            for kind in _Step._fields:
                for to, step in enumerate(steps[state]):
                    best: _Best = getattr(step, kind)
                    after = to_go[to, :, i + 1]
                    if kind == "quiet":
                        cost = best.cost[:, i] + after[each, last]
                    elif kind == "within_tail":
                        cost = np.where(none, np.inf, best.cost[:, i] + after[:, sent] - from_last)
                    else:
                        cost = best.cost[:, i] + after[:, sent] + run_out
                    costs.append(cost)
                    outcomes.append(best.outcome[:, i])
        shape = (2, 6, self.episodes)
        return np.array(costs).reshape(shape), np.array(outcomes).reshape(shape)
