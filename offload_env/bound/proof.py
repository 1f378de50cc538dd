"""A cost that no policy can beat, and the best schedule found: the optimum lies between.

**Lower bound.** Let x be any schedule (of any policy, clairvoyant or not, deciding once a frame
or after every exit) whose mean accuracy over the episodes is at least the floor f, C(x) its
mean cost and e(x) its mean error <= 1 - f. For every multiplier m >= 0

    C(x) >= C(x) + m (e(x) - (1 - f)) >= min_y [C'(y) + m e(y)] - m (1 - f) =: L(m),

where C' is the relaxed cost, at most the true one of every schedule, and the minimum runs over
all sequences of frame outcomes, feasible or not. So max_m L(m) is a lower bound on the cost of
every policy that keeps the floor.

**Two floors.** A floor f_c on the share s_c of critical frames adds a second multiplier in the
same way: with e_c(x) the errors on critical frames, per frame, ``+ m_c (e_c(x) - s_c (1 - f_c))``
is at most 0 as well (which frames are critical does not depend on decisions).

**Energy budget.** Of an episode that spends S in n frames with a budget of B, the frames that
end over budget have used at least S - B together (the first of them began within the budget),
and none of them more than e_max. So there are at least (S - B) / e_max of them, and for every
premium 0 <= p <= over_budget / e_max their charge is at least p (S - B): a premium on the price of
energy, less p B / n a frame. The bound tries several premiums and keeps the highest.

**Relaxed cost.** A frame is *on time* if it starts when it is captured and no earlier payload
occupies the radio; the first one is. The delay of a frame on time, its energy without the modem's
tail, and whether the next one is on time are those of the simulator, whatever came before:
`offload_env.bound.on_time` lists them for every way through the frame, evaluated exits included (of
networks with more ways than it can list, `offload_env.bound.relaxed` bounds them at once).
All other frames are *delayed*. Their costs are bounded from below by `offload_env.bound.relaxed`,
and in the relaxed problem the next frame may be in either state. Hence every schedule is a path
through these two states whose relaxed cost is at most its true one.

**Early time-out.** A staged device may stop waiting early and answer with any exit from there on.
That costs no less than the same local answer without the exchange. The local answer also frees the
device no later and leaves no tail (a connected modem takes at least as much power in an exchange as
after it). So the bound counts it as that local answer. The early time-out can do better only
through the state that it leaves for the next frame: if the device is delayed for the next frame, it
has been busy until then, and `offload_env.bound.on_time` charges that; if not, at most the radio is
still busy. Where that is possible, frames on time that send are bounded from below as well
(`offload_env.bound.relaxed`).

**Heat.** A hot processor computes for longer. That takes as much energy above idle as a cool one
needs, and idle power for longer (`offload_env.heat.slowed_mw`). So until its hand-over to the radio
no frame takes less time or energy than with a cool processor. But a payload that is handed over
later may meet a better link. The costs of delayed frames allow for just that: with heat every frame
counts with those, in a window as long as a hot processor needs. The bound is looser then.

**Tail.** Between the end A_j of one exchange and the hand-over t_k of the next the modem
spends ``T min(t_k - A_j, tail)`` with T the price of tail time. With t_k >= r_k and
min(t_k, A_j + tail) >= min(r_k, a_j + tail), r_k the hand-over (exact if k is on time, else the
capture and the least compute) and a_j the least end of an exchange of frame j, this is at least

    T (min(r_k, a_j + tail) - c_(j+1))  +  T (c_(j+1) - A_j).

The second term belongs to frame j alone: exact if j is on time; otherwise an end later than
the least one lowers it by T for each millisecond but raises the delay's cost by D, so for
T <= D the least end gives a lower bound (for T > D the tail is left out: nothing negative is
dropped). The first term links j to the next exchange only; of the two branches of its minimum
the cheaper is taken for each, and a dynamic programme over the two states and "which frame
exchanged last" (`offload_env.bound.programme`) minimises the sum exactly.

**Promotion.** A payload that waits for the modem to connect leaves later, as one behind earlier
payloads does. So with a promotion every frame on time that sends is bounded from below like one
whose radio may be busy. The relaxed problem charges nobody for connecting, so it does not matter
to it who left the modem connected.

**Upper bound.** `offload_env.bound.search.best_schedule` searches the real simulator (queues, FIFO
radio, time-outs, tail) with knowledge of everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError
from offload_env.bound.frame_outcomes import Floats, least_and_most
from offload_env.bound.programme import Relaxed, options
from offload_env.episode import Keys
from offload_env.world import World

Evaluate = Callable[[Floats], tuple[float, Floats]]
"""Multipliers (k,) -> value, gradient (k,)."""
_PREMIUMS: Final = (0.0, 0.25, 0.5, 1.0)
"""Shares of the largest premium that are tried where there is an energy budget."""
_ROUNDS: Final = 60
_CLOSE: Final = 1e-7
"""Relative gain that is not worth another evaluation."""
_MOST: Final = 1e6
"""No multiplier is raised beyond this."""


@dataclass(frozen=True, slots=True)
class LowerBound:
    """A lower bound on the cost of every policy on these episodes.

    Attributes:
        cost: mean cost of a frame.
        multiplier: price of an error at which the bound is attained.
        floor: required accuracy.
        n_episodes, n_frames: size of the drives it was computed on.
        critical_multiplier: price of an error on a critical class, on top; 0 without any.
        critical_floor: required accuracy of the critical classes; 0 without any.
        premium: added to the price of a millijoule for the energy budget; 0 without one.
    """

    cost: float
    multiplier: float
    floor: float
    n_episodes: int
    n_frames: int
    critical_multiplier: float = 0.0
    critical_floor: float = 0.0
    premium: float = 0.0


def lower_bound(
    world: World,
    keys: Keys,
    *,
    floor: float | None = None,
    critical_floor: float | None = None,
    n_frames: int | None = None,
) -> LowerBound:
    """The clairvoyant lower bound on the mean cost of a frame.

    Args:
        world: scenario and split.
        keys: uint64 (E,), episodes; the floors hold on average over all of them.
        floor: accuracy floor; None takes the world's.
        critical_floor: the same for the critical classes alone.
        n_frames: frames of each episode; None takes the scenario's.

    Raises:
        ConfigError: if a floor is above 1 or no sequence of outcomes can keep it.
    """
    return bound_and_relaxed(
        world, keys, floor=floor, critical_floor=critical_floor, n_frames=n_frames
    )[0]


def bound_and_relaxed(
    world: World,
    keys: Keys,
    *,
    floor: float | None = None,
    critical_floor: float | None = None,
    n_frames: int | None = None,
) -> tuple[LowerBound, Relaxed]:
    """`lower_bound`, and its relaxed problem, to guide a search."""
    n = world.scenario.timing.n_frames if n_frames is None else n_frames
    floor = world.accuracy_floor if floor is None else floor
    critical_floor = world.critical_floor if critical_floor is None else critical_floor
    largest = largest_premium(world)
    best: tuple[LowerBound, Relaxed] | None = None
    for share in _PREMIUMS if largest else (0.0,):
        relaxed = Relaxed(options(world, keys, n, share * largest))
        spent = share * largest * world.scenario.price.energy_budget_mj / n
        bound = _best_multipliers(relaxed, floor, critical_floor, share * largest, spent)
        if best is None or bound.cost > best[0].cost:
            best = bound, relaxed
    assert best is not None
    return best


def _best_multipliers(
    relaxed: Relaxed, floor: float, critical_floor: float, premium: float, spent: float
) -> LowerBound:
    """The best Lagrangian bound for one premium, which takes `spent` off each frame."""
    opts = relaxed.opts
    share = float(opts.critical.mean())
    allowed = np.array([1.0 - floor, share * (1.0 - critical_floor)])
    least = opts.error.min(2)
    unavoidable = np.array([least.mean(), (least * opts.critical).mean()])
    if (unavoidable > allowed + 1e-12).any() or floor > 1:
        raise ConfigError(
            f"accuracy floor {floor}, of critical classes {critical_floor}",
            expected="floors that some sequence of actions keeps",
            hint="lower the floor or enlarge the margin",
        )
    k = 2 if share > 0 and critical_floor > 0 else 1

    def evaluate(at: Floats) -> tuple[float, Floats]:
        found = relaxed.solve(*at.tolist())
        gradient = np.array([found.error, found.critical])[:k] - allowed[:k]
        return found.value - float(at @ allowed[:k]) - spent, gradient

    value, at = maximise(evaluate, k)
    return LowerBound(
        value,
        float(at[0]),
        floor,
        relaxed.episodes,
        relaxed.frames,
        float(at[1]) if k == 2 else 0.0,
        critical_floor if k == 2 else 0.0,
        premium,
    )


def largest_premium(world: World) -> float:
    """``over_budget / e_max``; 0 without an energy budget."""
    price, timing, cost = world.scenario.price, world.scenario.timing, world.cost
    if not price.energy_budget_mj or not price.over_budget:
        return 0.0
    slowest = float(world.device_jitter.max()) * world.scenario.heat.slowest
    compute_ms = float(least_and_most(world)[1].max()) * slowest
    # After an exchange it may restart from the frame, evaluate every exit, or just finish.
    busy_ms = 2 * compute_ms
    send_mj = cost.radio.mj_per_byte * float(world.sent_bytes.max())
    # From a frame's start to the next one's at most a period or all that it can do.
    window_ms = max(timing.period_ms, busy_ms + timing.timeout_ms)
    most_mj = (cost.busy_mw * busy_ms + cost.exchange_mw * timing.timeout_ms) / 1e3
    return price.over_budget / (most_mj + send_mj + cost.radio.tail_mw * window_ms / 1e3)


def maximise(evaluate: Evaluate, k: int) -> tuple[float, Floats]:
    """The largest value found over multipliers of at least 0, and where, by cutting planes.

    Each evaluation gives a value and a gradient, that is a plane above the function. The highest
    point below all planes found is tried next; the planes' own value there bounds what is left
    to gain. Every value returned is one that was attained, so stopping early costs height only.

    Args:
        evaluate: concave and piecewise linear in its argument.
        k: number of multipliers, 1 or 2.

    Returns:
        The value, and float64 (k,), the multipliers.
    """
    top = np.ones(k)
    planes: list[tuple[Floats, float]] = []
    best = -np.inf, np.zeros(k)
    at = np.zeros(k)
    for _ in range(_ROUNDS):
        value, gradient = evaluate(at)
        if value > best[0]:
            best = value, at
        planes.append((gradient, value - float(gradient @ at)))
        top = np.where((at >= top) & (gradient > 0) & (top < _MOST), 4.0 * top, top)
        at, hope = _highest(planes, top)
        if hope <= best[0] + _CLOSE * max(abs(best[0]), _CLOSE):
            break
    return best


def _highest(planes: list[tuple[Floats, float]], top: Floats) -> tuple[Floats, float]:
    """Highest point (x, t) with t <= slope . x + offset for all planes and 0 <= x <= top.

    Tries every corner, the common point of k + 1 planes or walls: for one multiplier, the usual
    case, that is five times as fast as a general solver (`scipy.optimize.linprog`), which would
    need scipy besides.
    """
    k = len(top)
    slopes = np.array([slope for slope, _ in planes])
    offsets = np.array([offset for _, offset in planes])
    eye, nothing = np.eye(k), np.zeros((k, 1))
    # Rows: coefficients of (x, t), right-hand side.
    rows = np.concatenate(
        [
            np.hstack([-slopes, np.ones((len(planes), 1))]),
            np.hstack([eye, nothing]),
            np.hstack([eye, nothing]),
        ]
    )
    right = np.concatenate([offsets, np.zeros(k), top])
    sets = np.array(list(combinations(range(len(rows)), k + 1)))
    systems, sides = rows[sets], right[sets]
    regular = np.abs(np.linalg.det(systems)) > 1e-12
    corners = np.linalg.solve(systems[regular], sides[regular][..., None])[..., 0]
    x, t = corners[:, :k], corners[:, k]
    below = (t[:, None] <= x @ slopes.T + offsets + 1e-9).all(1)
    inside = ((x >= -1e-9) & (x <= top + 1e-9)).all(1)
    t = np.where(below & inside, t, -np.inf)
    highest = int(t.argmax())
    return np.clip(x[highest], 0.0, top), float(t[highest])
