"""How good a fit is: errors on conditions it never saw, and bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.topology import ACTIONS, N_ACTIONS
from testbed.costs.campaign_samples import Samples
from testbed.costs.cost_fit import Fit, fit_samples, predict
from testbed.costs.measured_power import Powers
from testbed.costs.terms import Floats

INTERVAL: Final = (2.5, 97.5)
"""Percentiles of a bootstrap interval."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Measured and modelled figures of every action under every condition, each condition
    predicted by a fit to the other ones.

    Attributes:
        condition: (C,), names.
        delay_ms: float64 (C, 20), median measured delay.
        delay_model_ms: float64 (C, 20), modelled.
        energy_mj: float64 (C, 20), median measured energy; NaN where none was read.
        energy_model_mj: float64 (C, 20), modelled.
        frame_delay_mape: mean absolute relative error of delay frame by frame.
    """

    condition: list[str]
    delay_ms: Floats
    delay_model_ms: Floats
    energy_mj: Floats
    energy_model_mj: Floats
    frame_delay_mape: float

    @property
    def delay_mape(self) -> float:
        """Mean absolute relative error of delay over actions and conditions."""
        return mape(self.delay_ms, self.delay_model_ms)

    @property
    def energy_mape(self) -> float:
        """Mean absolute relative error of energy over actions and conditions."""
        return mape(self.energy_mj, self.energy_model_mj)

    def by_action(self) -> dict[str, dict[str, float]]:
        """Both errors of each action, over the conditions."""
        return {
            action.name: {
                "delay_mape": mape(self.delay_ms[:, i], self.delay_model_ms[:, i]),
                "energy_mape": mape(self.energy_mj[:, i], self.energy_model_mj[:, i]),
            }
            for i, action in enumerate(ACTIONS)
        }


def hold_out(samples: Samples, slowdown: float, payload_bytes: Floats, powers: Powers) -> HeldOut:
    """Leave each condition out once.

    Raises:
        DataError: with a single condition.
    """
    names = np.unique(samples.condition).tolist()
    if len(names) < 2:
        raise DataError(
            f"one condition ({names[0]})",
            expected="at least two, so that one can be held out",
            hint="run the campaign with more --condition options",
        )
    cells = {k: np.full((len(names), N_ACTIONS), np.nan) for k in ("d", "dm", "e", "em")}
    errors: list[Floats] = []
    for c, name in enumerate(names):
        seen, unseen = samples.condition != name, samples.condition == name
        fit = fit_samples(samples.take(seen), slowdown, payload_bytes)
        test = samples.take(unseen)
        delay, energy = predict(test, fit, slowdown, payload_bytes, powers)
        errors.append(np.abs(delay / test.delay_ms - 1))
        for a in range(N_ACTIONS):
            rows = test.action == a
            cells["d"][c, a] = np.median(test.delay_ms[rows])
            cells["dm"][c, a] = delay[rows][0]
            read = rows & np.isfinite(test.energy_mj)
            cells["e"][c, a] = np.median(test.energy_mj[read]) if read.any() else np.nan
            cells["em"][c, a] = energy[rows][0]
    return HeldOut(
        names,
        cells["d"],
        cells["dm"],
        cells["e"],
        cells["em"],
        float(np.mean(np.concatenate(errors))),
    )


def mape(measured: Floats, modelled: Floats) -> float:
    """Mean of |modelled / measured - 1|, where measured; NaN if nowhere."""
    known = np.isfinite(measured)
    return float(np.mean(np.abs(modelled[known] / measured[known] - 1))) if known.any() else np.nan


def r_squared(measured: Floats, modelled: Floats) -> float:
    """1 - residual / total sum of squares, where measured; NaN if nowhere."""
    known = np.isfinite(measured)
    if not known.any():
        return float("nan")
    y, model = measured[known], modelled[known]
    return float(1 - np.sum((y - model) ** 2) / np.sum((y - y.mean()) ** 2))


def bootstrap(
    samples: Samples, slowdown: float, payload_bytes: Floats, *, n: int, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % intervals of every coefficient.

    Whole blocks (condition and round) are drawn with replacement, since what disturbs one
    frame disturbs its neighbours too; with fewer than five blocks, single frames are.
    """
    rng = np.random.default_rng(seed)
    names = np.array([f"{c}/{r}" for c, r in zip(samples.condition, samples.round, strict=True)])
    blocks = [np.flatnonzero(names == name) for name in np.unique(names)]
    if len(blocks) < 5:
        blocks = list(np.arange(len(samples))[:, None])
    drawn: list[Fit] = []
    for _ in range(n):
        picks: NDArray[np.int64] = rng.integers(0, len(blocks), len(blocks))
        rows = np.concatenate([blocks[k] for k in picks])
        if len(np.unique(samples.action[rows])) == N_ACTIONS:
            drawn.append(fit_samples(samples.take(rows), slowdown, payload_bytes))
    table = [fit.coefficients() for fit in drawn]
    out: dict[str, tuple[float, float]] = {}
    for name in table[0] if table else ():
        low, high = np.percentile([row[name] for row in table], INTERVAL)
        out[name] = (float(low), float(high))
    return out
