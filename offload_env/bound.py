"""What no policy can beat, and the best schedule found: the truth lies between.

**Lower bound.** Let x be any schedule (of any policy, clairvoyant or not) whose mean accuracy
over the episodes is at least the floor f, C(x) its mean cost and e(x) = its mean error
<= 1 - f. For every multiplier m >= 0

    C(x) >= C(x) + m (e(x) - (1 - f)) >= min_y [C'(y) + m e(y)] - m (1 - f) =: L(m),

where C' is the relaxed cost of `offload_env.relaxation`, below the true cost of every
option in every state that a schedule can bring about, and the minimum runs over all
sequences of options, feasible or not. So max_m L(m) is a lower bound on the cost of every
policy that keeps the floor. Without a modem tail the frames are independent in C' and the
minimum is taken frame by frame.

**Tail.** Between the end A_j of one exchange and the hand-over t_k of the next the modem
spends ``T min(t_k - A_j, tail)`` with T the price of tail time. With t_k >= c_k + d_k and
min(t_k, A_j + tail) >= min(c_k + d_k, a_j + tail), a_j the least answer time of frame j over
all actions, this is at least

    T (min(c_k + d_k, a_j + tail) - c_(j+1))  +  T (c_(j+1) - A_j).

The second term belongs to frame j alone; an answer later than the least one lowers it by T
for each millisecond but raises the delay's cost by D, so for T <= D the least answer time
gives a lower bound (for T > D the tail is left out: nothing negative is dropped). The first
term links j to the next exchange only, and a dynamic programme over "which frame exchanged
last" minimises the sum exactly.

**Upper bound.** `best_schedule` searches the real simulator (queues, FIFO radio, time-outs,
tail) with knowledge of everything: a beam search guided by the dynamic programme's cost to
go, for several multipliers, from which a mix that keeps the floor is picked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.errors import ConfigError
from offload_env.hashing import Keys
from offload_env.relaxation import OFFLOADS, Options, options
from offload_env.world import World

Floats = NDArray[np.float64]
_STEPS: Final = 40
"""Bisection steps for the multiplier."""


@dataclass(frozen=True, slots=True)
class LowerBound:
    """A cost below which no policy can go on these episodes.

    Attributes:
        cost: mean cost of a frame.
        multiplier: price of an error at which the bound is attained.
        floor: accuracy that was demanded.
        n_episodes, n_frames: what it was computed on.
    """

    cost: float
    multiplier: float
    floor: float
    n_episodes: int
    n_frames: int


def episode_keys(seed: int, n: int) -> Keys:
    """Keys of `n` episodes for evaluation, uint64 (n,); equal seeds give equal episodes."""
    return np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64)


def lower_bound(
    world: World, keys: Keys, *, floor: float | None = None, n_frames: int | None = None
) -> LowerBound:
    """The clairvoyant lower bound on the mean cost of a frame.

    Args:
        world: scenario and split.
        keys: uint64 (E,), episodes; the floor is owed on average over all of them.
        floor: accuracy floor; None takes the world's.
        n_frames: frames of each episode; None takes the scenario's.

    Raises:
        ConfigError: if the floor is above 1 or no option sequence can keep it.
    """
    n = world.scenario.timing.n_frames if n_frames is None else n_frames
    return Relaxed(world, options(world, keys, n)).bound(
        world.accuracy_floor if floor is None else floor
    )


class Relaxed:
    """Minimises the relaxed Lagrangian over whole option sequences.

    Args:
        world: for the prices.
        opts: of E episodes of n frames.
    """

    def __init__(self, world: World, opts: Options) -> None:
        self.opts = opts
        self.episodes, self.frames = opts.cost.shape[:2]
        price, radio = world.scenario.price, world.cost.radio
        self.tail_ms = radio.tail_ms
        tail_price = price.energy_weight / world.energy_ref_mj * radio.tail_mw / 1e3
        delay_price = price.delay_weight / world.delay_ref_ms
        possible = OFFLOADS & np.isfinite(opts.cost)
        ends = np.where(possible, opts.answer_ms, np.inf).min(2)
        # An exchange that cannot be answered has infinite cost: any end will do.
        self._ends = np.where(np.isfinite(ends), ends, 0.0) + self.tail_ms
        self.tail_price = tail_price if tail_price <= delay_price and radio.tail_ms > 0 else 0.0

    def bound(self, floor: float) -> LowerBound:
        """The best Lagrangian bound for one floor."""
        owed = 1.0 - floor
        if owed < 0 or float(self.opts.error.min(2).mean()) > owed:
            raise ConfigError(
                f"accuracy floor {floor}",
                expected="a floor that some sequence of actions keeps",
                mend="lower the floor or enlarge the margin",
            )
        low, high = 0.0, 1.0
        while self.solve(high)[1] > owed and high < 1e6:
            high *= 4.0
        best, best_at = -np.inf, 0.0
        for m in (0.0, high):
            value = self.solve(m)[0] - m * owed
            best, best_at = max((best, best_at), (value, m))
        for _ in range(_STEPS):
            middle = 0.5 * (low + high)
            value, error = self.solve(middle)
            best, best_at = max((best, best_at), (value - middle * owed, middle))
            low, high = (middle, high) if error > owed else (low, middle)
        return LowerBound(best, best_at, floor, self.episodes, self.frames)

    def solve(self, multiplier: float) -> tuple[float, float]:
        """(mean relaxed cost + multiplier * error, mean error) of the best sequences."""
        to_go = self.to_go(multiplier)
        actions = self.actions(multiplier, to_go)
        error = np.take_along_axis(self.opts.error, actions[:, :, None], 2)
        return float(to_go[:, 0, 0].mean()) / self.frames, float(error.mean())

    def actions(self, multiplier: float, to_go: Floats) -> NDArray[np.int64]:
        """Best option of every frame, int64 (E, n), given `to_go` of the same multiplier."""
        price = self.opts.cost + multiplier * self.opts.error
        if not self.tail_price:
            best: NDArray[np.int64] = price.argmin(2)
            return best
        chosen = np.empty((self.episodes, self.frames), np.int64)
        last = np.zeros(self.episodes, np.int64)
        each = np.arange(self.episodes)
        for i in range(self.frames):
            move = self._moves(price, to_go, i)
            sends = move.go[each, last] < move.stay[each, last]
            sent = np.where(move.far[each, last], move.send_far, move.send_near)
            chosen[:, i] = np.where(sends, sent, move.quiet)
            last = np.where(sends, i + 1, last)
        return chosen

    def to_go(self, multiplier: float) -> Floats:
        """Relaxed cost from frame i on, if the last exchange was at frame j - 1 (0: none).

        Returns:
            float64 (E, n + 1, n + 1): [episode, i, j], j <= i.
        """
        price = self.opts.cost + multiplier * self.opts.error
        n = self.frames
        value = np.zeros((self.episodes, n + 1, n + 1))
        if not self.tail_price:
            rest = price.min(2)[:, ::-1].cumsum(1)[:, ::-1]
            value[:, :n] = rest[:, :, None]
            return value
        # After the last frame the tail runs on until the next one would start.
        until = np.minimum(self.opts.captured_ms[n], self._tail_ends(n))
        value[:, n, 1:] = self.tail_price * (until - self.opts.captured_ms[1:])
        for i in range(n - 1, -1, -1):
            move = self._moves(price, value, i)
            value[:, i, : i + 1] = np.minimum(move.stay, move.go)
        return value

    def _moves(self, price: Floats, value: Floats, i: int) -> _Moves:
        """At frame i, for every frame that may have exchanged last."""
        tail_price, opts = self.tail_price, self.opts
        quiet = np.where(OFFLOADS, np.inf, price[:, i])
        stay = quiet.min(1)[:, None] + value[:, i + 1, : i + 1]
        ready = opts.captured_ms[i] + opts.compute_ms[:, i]
        own = price[:, i] + tail_price * (opts.captured_ms[i + 1] - opts.answer_ms[:, i])
        own = np.where(OFFLOADS, own + value[:, i + 1, i + 1][:, None], np.inf)
        # min over options of own + T min(ready, end) = min(min(own + T ready), min(own) + T end)
        near, far = own + tail_price * ready, own
        go = np.empty((self.episodes, i + 1))
        is_far = np.zeros((self.episodes, i + 1), bool)
        go[:, 0] = far.min(1)
        is_far[:, 0] = True  # no exchange before: no tail
        if i:
            while_on = near.min(1)[:, None]
            run_out = far.min(1)[:, None] + tail_price * self._tail_ends(i)
            is_far[:, 1:] = run_out < while_on
            go[:, 1:] = np.minimum(while_on, run_out) - tail_price * opts.captured_ms[1 : i + 1]
        return _Moves(quiet.argmin(1), stay, near.argmin(1), far.argmin(1), is_far, go)

    def _tail_ends(self, n: int) -> Floats:
        """Earliest end of the tail of an exchange at frames 0..n-1, float64 (E, n)."""
        return self._ends[:, :n]


@dataclass(frozen=True, slots=True)
class _Moves:
    """Best moves at one frame; states j = 0..i as in `Relaxed.to_go`.

    Attributes:
        quiet: int64 (E,), best option that sends nothing.
        stay: float64 (E, i + 1), its cost to go.
        send_near: int64 (E,), best option that sends while the last tail still runs.
        send_far: int64 (E,), best option that sends after it (or without one).
        far: bool (E, i + 1), whether the latter is the better one.
        go: float64 (E, i + 1), cost to go of sending.
    """

    quiet: NDArray[np.int64]
    stay: Floats
    send_near: NDArray[np.int64]
    send_far: NDArray[np.int64]
    far: NDArray[np.bool_]
    go: Floats
