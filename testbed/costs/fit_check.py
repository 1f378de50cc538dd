"""The quality of a fit: errors on held-out frames, and bootstrap intervals.

For a campaign, each condition is predicted by a fit to the others; for a device's records, each
stretch of time or each action. The link's true state is not in the records, so a frame's delay is
then predicted from its measured transfer time and server wait: this tests the times of
computation on both sides, and the energy that follows from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.topology import Topology
from testbed.costs.cost_fit import Fit, fit_samples, predict
from testbed.costs.record_fit import RecordFit, fit_records
from testbed.costs.record_samples import RecordSamples
from testbed.costs.samples import Powers, Samples, Stages
from testbed.costs.terms import MIN_FRAMES
from testbed.meters.cost_model import CostModel, Floats
from testbed.wire.protocol import WIRE_OVERHEAD_BYTES

INTERVAL: Final = (2.5, 97.5)
"""Percentiles of a bootstrap interval."""
STRETCHES: Final = 5
"""Stretches of time, each predicted by a fit to the other four."""

Predicted = tuple[str, Stages, Floats, Floats]
"""Name of the held-out part, its frames, their modelled delay (ms) and energy (mJ)."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Medians of G groups of frames of one action, and their predictions.

    Attributes:
        condition: names of all held-out parts: conditions, stretches of time, or actions.
        of: int64 (G,), each group's position in `condition`.
        action: int64 (G,), canonical number.
        delay_ms, delay_model_ms: float64 (G,), measured and modelled.
        energy_mj, energy_model_mj: float64 (G,); NaN without a reading.
        frame_delay_mape: mean absolute relative error of delay frame by frame.
        topology: of the network.
    """

    condition: list[str]
    of: NDArray[np.int64]
    action: NDArray[np.int64]
    delay_ms: Floats
    delay_model_ms: Floats
    energy_mj: Floats
    energy_model_mj: Floats
    frame_delay_mape: float
    topology: Topology

    @classmethod
    def gather(cls, topology: Topology, predicted: Iterable[Predicted], least: int = 1) -> HeldOut:
        """Group predictions by action; groups of fewer than `least` frames are left out."""
        names: list[str] = []
        rows: list[tuple[float, ...]] = []
        errors = [np.zeros(0)]
        for name, test, delay, energy in predicted:
            positive = test.delay_ms > 0
            errors.append(np.abs(delay[positive] / test.delay_ms[positive] - 1))
            for a in range(topology.n_actions):
                mine = test.action == a
                if mine.sum() >= least:
                    read = mine & np.isfinite(test.energy_mj) & np.isfinite(energy)
                    delays = _median(test.delay_ms[mine]), _median(delay[mine])
                    energies = _median(test.energy_mj[read]), _median(energy[read])
                    rows.append((len(names), a, *delays, *energies))
            names.append(name)
        table, every = np.array(rows, np.float64).reshape(-1, 6), np.concatenate(errors)
        of, action = table[:, :2].T.astype(np.int64)
        frame_mape = float(np.mean(every)) if len(every) else np.nan
        delay, delay_model, energy, energy_model = table[:, 2:].T
        return cls(
            names, of, action, delay, delay_model, energy, energy_model, frame_mape, topology
        )

    @property
    def delay_mape(self) -> float:
        """Mean absolute relative error of delay over all groups; NaN without any."""
        return mape(self.delay_ms, self.delay_model_ms)

    @property
    def energy_mape(self) -> float:
        """Mean absolute relative error of energy over all groups; NaN without any."""
        return mape(self.energy_mj, self.energy_model_mj)

    def by_action(self) -> dict[str, dict[str, float]]:
        """Both errors of each action with a group."""
        errors = {}
        for a in np.unique(self.action):
            mine = self.action == a
            errors[self.topology.actions[a].name] = {
                "delay_mape": mape(self.delay_ms[mine], self.delay_model_ms[mine]),
                "energy_mape": mape(self.energy_mj[mine], self.energy_model_mj[mine]),
            }
        return errors

    def errors(self) -> dict[str, Any]:
        """All errors, JSON-able."""
        return {
            "delay_mape": self.delay_mape,
            "energy_mape": self.energy_mape,
            "groups": len(self.action),
            "by_action": self.by_action(),
        }


def hold_out(samples: Samples, slowdown: float, payload_bytes: Floats, powers: Powers) -> HeldOut:
    """Leave each condition of a campaign out once.

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

    def predicted() -> Iterator[Predicted]:
        for name in names:
            unseen = samples.condition == name
            fit = fit_samples(samples.take(~unseen), slowdown, payload_bytes)
            test = samples.take(unseen)
            yield name, test, *predict(test, fit, slowdown, payload_bytes, powers)

    return HeldOut.gather(samples.topology, predicted())


def hold_out_times(
    samples: RecordSamples, slowdown: float, base: CostModel | None, powers: Powers
) -> HeldOut:
    """Predict each of `STRETCHES` of time by a fit to the others.

    A stretch is skipped if the rest does not identify everything and there is no base.
    """
    stretch = np.arange(len(samples)) * STRETCHES // max(1, len(samples))

    def predicted() -> Iterator[Predicted]:
        for k in range(STRETCHES):
            try:
                fit = fit_records(samples.take(stretch != k), slowdown, base)
            except DataError:
                continue
            test = samples.take(stretch == k)
            yield f"stretch {k}", test, *predict_record(test, fit, slowdown, powers)

    return HeldOut.gather(samples.topology, predicted(), MIN_FRAMES)


def hold_out_actions(
    samples: RecordSamples, slowdown: float, base: CostModel, powers: Powers
) -> HeldOut:
    """Predict each action from the others and the base: the expected error of filled figures."""
    taken = np.flatnonzero(np.bincount(samples.action) >= MIN_FRAMES)

    def predicted() -> Iterator[Predicted]:
        for a in taken if len(taken) > 1 else ():
            mine, name = samples.action == a, samples.topology.actions[a].name
            fit = fit_records(samples.take(~mine), slowdown, base)
            test = samples.take(mine)
            yield name, test, *predict_record(test, fit, slowdown, powers)

    return HeldOut.gather(samples.topology, predicted(), MIN_FRAMES)


def predict_record(
    samples: RecordSamples, fit: RecordFit, slowdown: float, powers: Powers
) -> tuple[Floats, Floats]:
    """Modelled delay (ms) and energy (mJ) of every frame, given its transfer and its wait."""
    sent = ~samples.topology.is_local[samples.action]
    compute = slowdown * fit.device.of_frames(samples)
    away = samples.transfer_ms + samples.server_queue_ms + sent * fit.server_ms[samples.action]
    if powers.fitted:  # a hardware meter reads whole windows, and no modem
        resting = np.maximum(samples.window_ms - compute, 0.0)
        return compute + away, (powers.busy_mw * compute + powers.idle_mw * resting) / 1e3
    sent_bytes = sent * (samples.uplink_bytes + WIRE_OVERHEAD_BYTES)
    return compute + away, powers.energy_mj(compute, away, sent_bytes)


def _median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else np.nan


def mape(measured: Floats, modelled: Floats) -> float:
    """Mean of |modelled / measured - 1|, over measured values; NaN without any."""
    known = np.isfinite(measured)
    return float(np.mean(np.abs(modelled[known] / measured[known] - 1))) if known.any() else np.nan


def r_squared(measured: Floats, modelled: Floats) -> float:
    """1 - residual / total sum of squares, over measured values; NaN without any."""
    known = np.isfinite(measured)
    if not known.any():
        return float("nan")
    y, model = measured[known], modelled[known]
    return float(1 - np.sum((y - model) ** 2) / np.sum((y - y.mean()) ** 2))


def bootstrap(
    samples: Samples, slowdown: float, payload_bytes: Floats, *, n: int, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % intervals of every coefficient.

    Whole blocks (condition and round) are drawn with replacement, because a disturbance of one
    frame also affects its neighbours; with fewer than five blocks, single frames are drawn.
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
        if len(np.unique(samples.action[rows])) == samples.topology.n_actions:
            drawn.append(fit_samples(samples.take(rows), slowdown, payload_bytes))
    table = [fit.coefficients() for fit in drawn]
    out: dict[str, tuple[float, float]] = {}
    for name in table[0] if table else ():
        low, high = np.percentile([row[name] for row in table], INTERVAL)
        out[name] = (float(low), float(high))
    return out
