"""How far a cost model from records can be trusted: errors on frames that the fit never saw.

The link's true state is not in the records, so a frame's delay is predicted given how long its
transfer took and how long it waited at the server: what is tested are the times of computation on
both sides, and the energy that follows from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cnn.common.errors import DataError
from cnn.topology import ACTIONS, N_ACTIONS
from testbed.costs.cost_model import CostModel
from testbed.costs.fit_check import mape
from testbed.costs.identified import MIN_FRAMES
from testbed.costs.measured_power import Powers
from testbed.costs.record_fit import RecordFit, fit_records
from testbed.costs.record_samples import RecordSamples
from testbed.costs.terms import IS_LOCAL, Floats
from testbed.wire.protocol import WIRE_OVERHEAD_BYTES

BLOCKS: Final = 5
"""Stretches of time, each predicted by a fit to the other four."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Medians of groups of frames of one action, and what was predicted for them.

    Attributes:
        action: canonical number of each group.
        delay_ms, delay_model_ms, energy_mj, energy_model_mj: one figure a group; an energy is
            NaN where none was read.
    """

    action: list[int]
    delay_ms: list[float]
    delay_model_ms: list[float]
    energy_mj: list[float]
    energy_model_mj: list[float]

    @classmethod
    def none(cls) -> Cells:
        """No group yet."""
        return cls([], [], [], [], [])

    def add(self, test: RecordSamples, fit: RecordFit, slowdown: float, powers: Powers) -> None:
        """The groups of frames that `fit` has not seen, one for each action with enough."""
        delay, energy = predict(test, fit, slowdown, powers)
        for a in range(N_ACTIONS):
            rows = test.action == a
            if rows.sum() >= MIN_FRAMES:
                self.action.append(a)
                self.delay_ms.append(float(np.median(test.delay_ms[rows])))
                self.delay_model_ms.append(float(np.median(delay[rows])))
                read = rows & np.isfinite(test.energy_mj) & np.isfinite(energy)
                self.energy_mj.append(_median(test.energy_mj[read]))
                self.energy_model_mj.append(_median(energy[read]))

    def errors(self) -> dict[str, Any]:
        """Mean absolute relative errors, over all groups and by action; NaN where there is none."""
        every: dict[str, Any] = self._errors(np.ones(len(self.action), bool))
        by = {
            ACTIONS[a].name: self._errors(np.array(self.action) == a)
            for a in sorted({*self.action})
        }
        return {**every, "groups": len(self.action), "by_action": by}

    def _errors(self, keep: Any) -> dict[str, float]:
        delay = np.array(self.delay_ms)[keep], np.array(self.delay_model_ms)[keep]
        energy = np.array(self.energy_mj)[keep], np.array(self.energy_model_mj)[keep]
        return {"delay_mape": mape(*delay), "energy_mape": mape(*energy)}


def hold_out_times(
    samples: RecordSamples, slowdown: float, base: CostModel | None, powers: Powers
) -> Cells:
    """Predict each of `BLOCKS` stretches of time by a fit to the others.

    A stretch without which not everything is identified (and no base fills it) is left out.
    """
    cells = Cells.none()
    block = np.arange(len(samples)) * BLOCKS // max(1, len(samples))
    for k in range(BLOCKS):
        try:
            fit = fit_records(samples.take(block != k), slowdown, base)
        except DataError:
            continue
        cells.add(samples.take(block == k), fit, slowdown, powers)
    return cells


def hold_out_actions(
    samples: RecordSamples, slowdown: float, base: CostModel, powers: Powers
) -> Cells:
    """Predict each action from the others and the base: the error to expect of what is filled."""
    cells = Cells.none()
    taken = np.flatnonzero(np.bincount(samples.action, minlength=N_ACTIONS) >= MIN_FRAMES)
    for a in taken if len(taken) > 1 else ():
        mine = samples.action == a
        fit = fit_records(samples.take(~mine), slowdown, base)
        cells.add(samples.take(mine), fit, slowdown, powers)
    return cells


def predict(
    samples: RecordSamples, fit: RecordFit, slowdown: float, powers: Powers
) -> tuple[Floats, Floats]:
    """Modelled delay (ms) and energy (mJ) of every frame, given its transfer and its wait."""
    sent = ~IS_LOCAL[samples.action]
    compute = slowdown * fit.device.of_frames(samples)
    away = samples.transfer_ms + samples.server_queue_ms + sent * fit.server_ms[samples.action]
    if powers.fitted:  # a hardware meter reads whole windows, and no modem
        resting = np.maximum(samples.window_ms - compute, 0.0)
        return compute + away, (powers.busy_mw * compute + powers.idle_mw * resting) / 1e3
    sent_bytes = sent * (samples.uplink_bytes + WIRE_OVERHEAD_BYTES)
    energy = (powers.busy_mw * compute + (powers.idle_mw + powers.radio.active_mw) * away) / 1e3
    energy += powers.radio.mj_per_byte * sent_bytes
    return compute + away, energy


def _median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else float("nan")
