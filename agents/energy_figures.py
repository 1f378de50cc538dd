"""The energy of driven frames, told in several ways: what counts decides how much is saved.

A simulated frame's energy is that of its active window: computing and exchanging, and the modem's
tail. Between frames the device waits at idle power, whatever the policy decides; and some modems
stay awake for seconds after every exchange (their tail).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from agents.rollout import Rollout
from offload_env.world import World
from testbed.meters.power import DEFAULT_PROFILE, RadioPower, power_names, power_profile

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EnergyFigures:
    """Means a frame, millijoules; from modelled times and the powers of the cost model.

    Attributes:
        whole: device and modem from the first capture to the end of the drive, idle time included.
        active: while the device computes or exchanges, and the modem's tail: what the simulator
            charges, and what the cost is made of.
        above_idle: `active` less the device's idle power for that time.
        modem: of it the modem's, without any tail.
        modem_with_tail: the same with the tail of the scenario's modem or, if that has none, of
            the shipped modem of the same name with a tail; None if there is none.
    """

    whole: float
    active: float
    above_idle: float
    modem: float
    modem_with_tail: float | None

    def as_json(self) -> dict[str, float | None]:
        """By name, each with its unit."""
        return {f"{name}_mj": value for name, value in asdict(self).items()}


def energy_figures(world: World, rollout: Rollout) -> EnergyFigures:
    """See `EnergyFigures`.

    Args:
        world: where it was driven.
        rollout: B drives of T frames.
    """
    cost, period_ms = world.cost, world.scenario.timing.period_ms
    n = rollout.action.shape[1]
    start = np.arange(n) * period_ms + rollout.queue_ms
    sent = start + rollout.compute_ms
    end = sent + rollout.exchange_ms
    window = rollout.compute_ms + rollout.exchange_ms + rollout.fallback_ms
    drive_ms = np.maximum(start[:, -1] + window[:, -1], n * period_ms)
    idle_ms = drive_ms.mean() / n - window.mean()

    def tail_mj(radio: RadioPower) -> float:
        tail_ms = _tail_ms(sent, end, rollout.exchange_ms > 0, drive_ms, radio.tail_ms)
        return radio.tail_mj(float(tail_ms.mean()) / n)

    active = float(rollout.energy_mj.mean())
    modem = float(rollout.radio_mj.mean()) - tail_mj(cost.radio)
    tailed = with_tail(cost.radio)
    return EnergyFigures(
        whole=active + float(cost.idle_mw * idle_ms / 1e3),
        active=active,
        above_idle=active - float(cost.idle_mw * window.mean() / 1e3),
        modem=modem,
        modem_with_tail=None if tailed is None else modem + tail_mj(tailed),
    )


def with_tail(radio: RadioPower) -> RadioPower | None:
    """The modem, if it has a tail; else the shipped one of its name that has; else None."""
    if radio.tail_ms > 0:
        return radio
    name = f"{radio.name}-tail"
    device = DEFAULT_PROFILE.partition("+")[0]
    return power_profile(f"{device}+{name}").radio if name in power_names() else None


def _tail_ms(
    sent: Floats, end: Floats, exchanged: NDArray[np.bool_], drive_ms: Floats, tail_ms: float
) -> Floats:
    """Time of each drive that a modem spends in its tail, float64 (B,).

    After an exchange it stays awake for `tail_ms`, until the next exchange or the drive's end.

    Args:
        sent, end: of each frame's exchange, since the start of the drive, (B, T).
        exchanged: whether the frame had one, (B, T).
        drive_ms: length of the drive, (B,).
        tail_ms: of the modem.
    """
    # The next exchange after each frame: the least `sent` of all later frames that had one.
    later = np.where(exchanged, sent, np.inf)[:, ::-1]
    following = np.minimum.accumulate(later, axis=1)[:, ::-1]
    following = np.column_stack((following[:, 1:], np.full(len(sent), np.inf)))
    gap = np.minimum(following, drive_ms[:, None]) - end
    total: Floats = np.where(exchanged, np.minimum(gap, tail_ms), 0.0).sum(1)
    return total
