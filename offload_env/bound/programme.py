"""The cheapest sequences of choices in the relaxed problem, by dynamic programming.

A frame is in one of two states: *punctual* (it starts when it is captured and finds the radio
free), where its costs are exact and so is the state of the next one, or *late*, where its
costs are relaxed and the next frame may be in either state. Where the radio may still be busy
with payloads that were given up, a punctual frame's costs are relaxed a little
(`offload_env.bound.radio_busy`). With a modem tail the programme remembers the last exchange as
well. `offload_env.bound.proof` has the proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload_env.bound.frame_outcomes import ANSWERED_BY, N_QUIET, SKIP, Floats, Prices
from offload_env.bound.on_time import punctual
from offload_env.bound.radio_busy import jammed, may_jam
from offload_env.bound.relaxed import late
from offload_env.episode import Keys
from offload_env.world import World

Ints = NDArray[np.int64]
PUNCTUAL: Final = 0
LATE: Final = 1


@dataclass(frozen=True, slots=True)
class Options:
    """Costs of E episodes of n frames and the 26 choices of each (`frame_outcomes`).

    Attributes:
        far, near: indexed [from][to], the state of the frame and of the next one: float64
            (E, n, 26), see `offload_env.bound.on_time.Punctual`.
        error: float64 (E, n, 26), 1 if the answer is wrong.
        critical: bool (E, n), frames of critical classes.
        captured_ms: float64 (n + 1,), capture times, and that of the frame after the last.
        tail_ends_ms: float64 (E, n), earliest end of the tail of an exchange in each frame.
        tail_price: of a millisecond; 0 leaves the tail out.
        rows: int64 (E, n), table rows.
    """

    far: tuple[tuple[Floats, Floats], tuple[Floats, Floats]]
    near: tuple[tuple[Floats, Floats], tuple[Floats, Floats]]
    error: Floats
    critical: NDArray[np.bool_]
    captured_ms: Floats
    tail_ends_ms: Floats
    tail_price: float
    rows: Ints


def options(world: World, keys: Keys, n_frames: int, premium: float = 0.0) -> Options:
    """The costs of the first `n_frames` frames of the episodes `keys`.

    Args:
        world: scenario and split.
        keys: uint64 (E,).
        n_frames: of each episode.
        premium: added to the price of a millijoule.
    """
    plans = world.plans(keys)
    rows = np.stack([world.rows(int(key), n_frames) for key in keys])
    captured = np.arange(n_frames + 1, dtype=np.float64) * world.scenario.timing.period_ms
    prices = Prices.of(world, premium)
    exact = punctual(world, plans, rows, captured, prices)
    least = late(world, plans, rows, captured, prices)
    jam = may_jam(world, plans, captured)
    behind = jammed(world, plans, rows, captured, prices, jam)
    for costs, relaxed in zip((exact.far, exact.near), behind, strict=True):
        costs[:, jam] = np.minimum(costs[:, jam], relaxed)
    error: Floats = 1.0 - world.correct[rows][..., ANSWERED_BY].astype(np.float64)
    error[..., SKIP] = 1.0
    return Options(
        far=((exact.far[0], exact.far[1]), (least.far, least.far)),
        near=((exact.near[0], exact.near[1]), (least.near, least.near)),
        error=error,
        critical=world.critical[rows],
        captured_ms=captured,
        tail_ends_ms=least.answer_ms.min(2) + world.cost.radio.tail_ms,
        tail_price=prices.tail,
        rows=rows,
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
    """Cheapest of some choices of every frame: cost float64 (E, n), choice int64 (E, n)."""

    cost: Floats
    choice: Ints


class _Step(NamedTuple):
    """From one state to another: the best choices that send nothing, that send while the last
    tail still runs, and that send after it (or without one)."""

    quiet: _Best
    near: _Best
    far: _Best


class Relaxed:
    """Minimises relaxed cost + multipliers * errors over whole sequences of choices."""

    def __init__(self, opts: Options) -> None:
        self.opts = opts
        self.episodes, self.frames = opts.error.shape[:2]
        self._has_tail = opts.tail_price > 0

    def solve(self, multiplier: float, critical: float = 0.0) -> Solution:
        """The cheapest sequences at the price `multiplier` of an error, `critical` more on a
        critical class."""
        steps = self._steps(multiplier, critical)
        to_go = self._to_go(steps)
        choices = self._choices(steps, to_go)
        error = np.take_along_axis(self.opts.error, choices[:, :, None], 2)[:, :, 0]
        return Solution(
            float(to_go[PUNCTUAL, :, 0, 0].mean()) / self.frames,
            float(error.mean()),
            float((error * self.opts.critical).mean()),
        )

    def choices(self, multiplier: float, critical: float = 0.0) -> Ints:
        """Best choice of every frame, int64 (E, n)."""
        steps = self._steps(multiplier, critical)
        return self._choices(steps, self._to_go(steps))

    def to_go(self, multiplier: float, critical: float = 0.0) -> Floats:
        """Relaxed cost from frame i on, by its state and the last exchange.

        Returns:
            float64 (2, E, n + 1, J): [state, episode, i, j], the last exchange at frame j - 1
            (0: none), j <= i; J is 1 without a tail, otherwise n + 1.
        """
        return self._to_go(self._steps(multiplier, critical))

    def _steps(self, multiplier: float, critical: float) -> list[list[_Step]]:
        opts = self.opts
        price = (multiplier + critical * opts.critical)[..., None] * opts.error

        def best(cost: Floats, first: int, end: int) -> _Best:
            total = cost[..., first:end] + price[..., first:end]
            at = total.argmin(2)
            return _Best(np.take_along_axis(total, at[..., None], 2)[..., 0], at + first)

        def step(far: Floats, near: Floats) -> _Step:
            quiet, apart = best(far, 0, N_QUIET), best(far, N_QUIET, far.shape[2])
            return _Step(
                quiet, best(near, N_QUIET, far.shape[2]) if self._has_tail else apart, apart
            )

        exact = [step(opts.far[0][to], opts.near[0][to]) for to in (PUNCTUAL, LATE)]
        relaxed = step(opts.far[1][0], opts.near[1][0])
        return [exact, [relaxed, relaxed]]

    def _to_go(self, steps: list[list[_Step]]) -> Floats:
        n, price = self.frames, self.opts.tail_price
        captured = self.opts.captured_ms
        value = np.zeros((2, self.episodes, n + 1, n + 1 if self._has_tail else 1))
        if self._has_tail:
            # After the last frame the tail runs on until the next one would start.
            until = np.minimum(captured[n], self.opts.tail_ends_ms)
            value[:, :, n, 1:] = price * (until - captured[1:])
        for i in range(n - 1, -1, -1):
            known = slice(0, i + 1 if self._has_tail else 1)
            sent = i + 1 if self._has_tail else 0
            for state in (PUNCTUAL, LATE):
                quiet = np.minimum(
                    *(
                        s.quiet.cost[:, i, None] + value[to, :, i + 1, known]
                        for to, s in enumerate(steps[state])
                    )
                )
                far = np.minimum(
                    *(
                        s.far.cost[:, i] + value[to, :, i + 1, sent]
                        for to, s in enumerate(steps[state])
                    )
                )
                go = np.broadcast_to(far[:, None], quiet.shape)
                if self._has_tail and i:
                    near = np.minimum(
                        *(
                            s.near.cost[:, i] + value[to, :, i + 1, sent]
                            for to, s in enumerate(steps[state])
                        )
                    )
                    go = go.copy()
                    run_out = far[:, None] + price * self.opts.tail_ends_ms[:, :i]
                    go[:, 1:] = np.minimum(near[:, None], run_out) - price * captured[1 : i + 1]
                value[state, :, i, known] = np.minimum(quiet, go)
        return value

    def _choices(self, steps: list[list[_Step]], to_go: Floats) -> Ints:
        chosen = np.empty((self.episodes, self.frames), np.int64)
        each = np.arange(self.episodes)
        state, last = np.zeros(self.episodes, np.int64), np.zeros(self.episodes, np.int64)
        for i in range(self.frames):
            costs, choices = self._moves(steps, to_go, i, last)
            move = costs[state, :, each].argmin(1)
            chosen[:, i] = choices[state, move, each]
            state = move % 2
            last = np.where(move >= 2, i + 1, last) if self._has_tail else last
        return chosen

    def _moves(
        self, steps: list[list[_Step]], to_go: Floats, i: int, last: Ints
    ) -> tuple[Floats, Ints]:
        """Cost to go and choice of the six moves (quiet, near, far; each to either state).

        Returns:
            float64 and int64 (2, 6, E), by the state now.
        """
        each, price = np.arange(self.episodes), self.opts.tail_price
        sent = i + 1 if self._has_tail else 0
        none = last == 0
        ends = self.opts.tail_ends_ms[each, np.maximum(last - 1, 0)]
        from_last = np.where(none, 0.0, price * self.opts.captured_ms[last])
        run_out = np.where(none, 0.0, price * ends) - from_last
        costs, choices = [], []
        for state in (PUNCTUAL, LATE):
            for kind in ("quiet", "near", "far"):
                for to, step in enumerate(steps[state]):
                    best: _Best = getattr(step, kind)
                    after = to_go[to, :, i + 1]
                    if kind == "quiet":
                        cost = best.cost[:, i] + after[each, last]
                    elif kind == "near":
                        cost = np.where(none, np.inf, best.cost[:, i] + after[:, sent] - from_last)
                    else:
                        cost = best.cost[:, i] + after[:, sent] + run_out
                    costs.append(cost)
                    choices.append(best.choice[:, i])
        shape = (2, 6, self.episodes)
        return np.array(costs).reshape(shape), np.array(choices).reshape(shape)
