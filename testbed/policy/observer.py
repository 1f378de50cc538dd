"""The device's knowledge at a decision, as a fixed, documented float32 vector.

`testbed.policy.observation_fields.Schema` is the specification. `Observer` keeps the estimators on
the device; the simulator applies the very same update functions (`testbed.policy.estimators`) to
arrays, so that training and the device cannot drift apart. The label, the future and the true
current rate are not available here: a network quantity is as old as the last exchange, and its
age is part of the vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.topology import SHIPPED, Topology
from testbed.policy.estimators import PRIOR_RTT_MS, early_timeout_ms, fit_link, forget, smooth
from testbed.policy.observation_fields import (
    MIN_MS_PER_KB,
    NEVER_S,
    RECENT,
    scale,
    schema_of,
    stopping_blocks,
)
from testbed.policy.task_settings import Settings


class Observer:
    """The device's memory of its own exchanges and answers, as an observation.

    Times are seconds on one monotonic clock. Call `reset` at the start of a drive,
    `new_track` when a new sign comes into view, the ``record_*`` methods as things
    happen, and `observe` when a decision is due.

    Args:
        settings: of the task.
        topology: of the network; there is a confidence for each of its exits.
    """

    def __init__(self, settings: Settings, topology: Topology = SHIPPED) -> None:
        schema = schema_of(topology)
        at = schema.features_at
        self.topology = topology
        self._scaling = schema.transforms[:at]
        self._feature_scaling = schema.transforms[at : schema.constants_at]
        self._spent_scaling = schema.transforms[-1]
        self._full_local_scaling = schema.transforms[schema.obs_dim - 1]
        self._n_exits = topology.n_exits
        self._place: list[int] = topology.exit_place.tolist()
        self._n_stops, self._stop = len(stopping_blocks(topology)), schema.stop_place
        self.adopt(settings)
        self.reset(0.0)

    def adopt(self, settings: Settings) -> None:
        """Use another task from now on; the estimates stay."""
        self.settings = settings
        self._constants = settings.scaled()

    def record_full_local(self, full_local_ms: float) -> None:
        """Full local processing takes this long now, because the processor is hot or cool."""
        now = scale(self._full_local_scaling, full_local_ms)
        self._constants = (*self._constants[:3], now)

    def reset(self, now_s: float) -> None:
        """Forget everything; the drive starts at `now_s`."""
        self._constants = self.settings.scaled()
        self._s0 = self._sx = self._sxx = self._sy = self._sxy = 0.0
        self.rtt_ms, self.ms_per_kb = fit_link(0.0, 0.0, 0.0, 0.0, 0.0)
        self.transfer_mean_ms = PRIOR_RTT_MS
        self.transfer_spread_ms = 0.0
        self.residual_ms = 0.0
        self._transfer_s = now_s - NEVER_S
        self._failure_s = now_s - NEVER_S
        self._server_s = now_s - NEVER_S
        self.failures = 0
        self.server_wait_ms = 0.0
        self._confidence_sum = 0.0
        self._frames = 0
        self._energy_mj = 0.0
        self.new_track()

    @property
    def uplink_mbps(self) -> float:
        """Estimated uplink rate, Mbit/s."""
        return 8.0 / max(float(self.ms_per_kb), MIN_MS_PER_KB)

    def new_track(self) -> None:
        """Another sign comes into view: the answers on the last one no longer apply."""
        self.confidences = [0.0] * self._n_exits
        self.last_confidence = 0.0
        self.last_exit = 0
        self.last_prediction = -1
        self.agreement = 0.0
        self.answers = 0
        self._recent: list[int] = []

    def record_transfer(self, now_s: float, sent_bytes: float, transfer_ms: float) -> None:
        """An exchange was answered: `transfer_ms` without the server's wait and compute."""
        x = sent_bytes * 1e-3
        self.residual_ms = transfer_ms - (self.rtt_ms + self.ms_per_kb * x)
        keep = forget(now_s - self._transfer_s)
        self._s0 = keep * self._s0 + 1.0
        self._sx = keep * self._sx + x
        self._sxx = keep * self._sxx + x * x
        self._sy = keep * self._sy + transfer_ms
        self._sxy = keep * self._sxy + x * transfer_ms
        self.rtt_ms, self.ms_per_kb = fit_link(self._s0, self._sx, self._sxx, self._sy, self._sxy)
        self.transfer_mean_ms, self.transfer_spread_ms = smooth(
            self.transfer_mean_ms, self.transfer_spread_ms, transfer_ms
        )
        self._transfer_s = now_s
        self.failures = 0

    def expected_transfer_ms(self, sent_bytes: float) -> float:
        """Expected time of a transfer of `sent_bytes` by the newest estimates, ms."""
        return float(self.rtt_ms + self.ms_per_kb * sent_bytes * 1e-3)

    @property
    def newest_transfer_s(self) -> float:
        """When the last exchange was answered; long ago if none was."""
        return self._transfer_s

    def record_server(self, now_s: float, server_wait_ms: float) -> None:
        """The server reported how long the request waited there."""
        self.server_wait_ms = server_wait_ms
        self._server_s = now_s

    def record_failure(self, now_s: float) -> None:
        """An exchange timed out, was refused, or the connection broke."""
        self.failures += 1
        self._failure_s = now_s

    def record_exit(self, exit: int, confidence: float) -> None:
        """An exit was evaluated, whether or not it became the answer."""
        self.confidences[self._place[exit]] = confidence

    def record_answer(self, exit: int, prediction: int, confidence: float) -> None:
        """A frame was answered by `exit` with class `prediction`."""
        self.confidences[self._place[exit]] = confidence
        self.last_confidence = confidence
        self.last_exit = exit
        self.last_prediction = prediction
        self.answers += 1
        recent = self._recent
        recent.append(prediction)
        if len(recent) > RECENT:
            del recent[0]
        self.agreement = recent.count(prediction) / len(recent)
        self._confidence_sum += confidence
        self._frames += 1

    def record_skipped(self) -> None:
        """A frame was skipped, without an answer: it counts against the accuracy credit."""
        self._frames += 1

    def record_energy(self, energy_mj: float) -> None:
        """Energy the device spent on a frame; only needed with an energy budget."""
        self._energy_mj += energy_mj

    @property
    def accuracy_credit(self) -> float:
        """Mean calibrated confidence of this drive less the floor; 0 before any frame."""
        if not self._frames:
            return 0.0
        return self._confidence_sum / self._frames - self.settings.accuracy_floor

    @property
    def energy_left(self) -> float:
        """Share of the energy budget left; 1 without a budget."""
        budget = self.settings.energy_budget_mj
        return 1.0 if not budget else 1.0 - self._energy_mj / budget

    def raw(
        self, now_s: float, features: Sequence[float], queue_ms: float, tail_left_ms: float
    ) -> list[float]:
        """The observation before scaling, in the order of `Schema.fields`, for people."""
        s = self.settings
        return [
            *self._dynamic(now_s, queue_ms, tail_left_ms),
            *(float(f) for f in features),
            float(s.radio_5g),
            s.accuracy_floor,
            s.delay_share,
            s.full_local_ms,
        ]

    def observe(
        self, now_s: float, features: ArrayLike, queue_ms: float, tail_left_ms: float
    ) -> NDArray[np.float32]:
        """The observation at `now_s`.

        Args:
            now_s: decision time, the observer's clock.
            features: (6,), columns of `cnn.frame_table.FEATURES`, raw.
            queue_ms: time that the frame has waited for the device.
            tail_left_ms: time until the modem's tail ends.

        Returns:
            float32 (obs_dim,), scaled.
        """
        values = map(float, np.asarray(features).tolist())
        scaled = list(map(scale, self._feature_scaling, values))
        return np.array(self.scaled(now_s, scaled, queue_ms, tail_left_ms), np.float32)

    def scaled(
        self, now_s: float, features: Sequence[float], queue_ms: float, tail_left_ms: float
    ) -> list[float]:
        """Like `observe`, with features already scaled and as a plain list (fast path)."""
        out = list(map(scale, self._scaling, self._dynamic(now_s, queue_ms, tail_left_ms)))
        out += features
        out += self._constants
        return out

    def _dynamic(self, now_s: float, queue_ms: float, tail_left_ms: float) -> list[float]:
        slope = self.ms_per_kb
        return [
            8.0 / (slope if slope > MIN_MS_PER_KB else MIN_MS_PER_KB),
            self.rtt_ms,
            self.transfer_mean_ms,
            self.transfer_spread_ms,
            now_s - self._transfer_s,
            now_s - self._failure_s,
            self.server_wait_ms,
            now_s - self._server_s,
            tail_left_ms,
            self.residual_ms,
            self.failures,
            queue_ms,
            *self.confidences,
            self.last_confidence,
            self.last_exit,
            self.agreement,
            self.answers,
            self.accuracy_credit,
            self.energy_left,
        ]

    def early_timeout_ms(self) -> float:
        """The early time-out, ms; the time-out applies if it is shorter."""
        return float(
            early_timeout_ms(self.transfer_mean_ms, self.transfer_spread_ms, self.server_wait_ms)
        )

    def observe_stage(
        self,
        base: NDArray[np.float32],
        exits: Sequence[tuple[int, int, float]],
        block: int,
        spent_ms: float,
        timed_out: bool = False,
    ) -> NDArray[np.float32]:
        """The staged observation within a frame.

        Args:
            base: float32 (obs_dim,), the observation at the start of this frame.
            exits: (exit, prediction, confidence) of the exits evaluated on this frame so far.
            block: that ran last.
            spent_ms: time spent on computing and waiting for this frame so far.
            timed_out: whether an exchange of this frame has timed out.

        Returns:
            float32 (staged_obs_dim,), scaled.
        """
        stage = self.scaled_stage(exits, block, spent_ms, timed_out)
        return np.concatenate([base, np.array(stage, np.float32)])

    def scaled_stage(
        self,
        exits: Sequence[tuple[int, int, float]],
        block: int,
        spent_ms: float,
        timed_out: bool = False,
    ) -> list[float]:
        """The stage elements of the staged observation, scaled, as a plain list."""
        stage = [-1.0] * self._n_stops
        stage[self._stop[block]] = 1.0
        confidence, track, frame = -1.0, 0.0, 0.0
        if exits:
            _, prediction, c = exits[-1]
            confidence = 2.0 * c - 1.0
            if self.last_prediction >= 0:
                track = 1.0 if prediction == self.last_prediction else -1.0
            if len(exits) > 1:
                frame = 1.0 if prediction == exits[-2][1] else -1.0
        up = 1.0 if timed_out else -1.0
        return [*stage, confidence, track, frame, up, scale(self._spent_scaling, spent_ms)]
