"""The staged decision in many episodes at once: `batch_simulator` with frames that stay open."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_ACTIONS
from offload_env.batch_simulator import LOCAL_ARRAY, OFFLOADS, BatchSimulator, Bools, Floats
from offload_env.lanes import Indices, Lanes
from offload_env.outcome import BatchOutcome, Exchange
from testbed.policy.decision_points import POINT
from testbed.policy.estimators import early_timeout_ms

SPLIT: Final = np.array([a.split for a in ACTIONS])


class StagedBatchSimulator(BatchSimulator):
    """As `BatchSimulator`, and a frame may be decided about several times.

    `step` still settles the frames of all lanes at once.
    """

    def evaluate_some(self, lanes: Indices, exits: NDArray[np.int64]) -> None:
        """In `lanes`, run on to `exits` (1..5) and look at their answers."""
        s, w = self.lanes, self.world
        local = LOCAL_ARRAY[exits - 1]
        timed_out, block = s.timed_out[lanes] > 0, s.position[lanes]
        extra = w.device_ms[local] - np.where(timed_out, w.resumed_ms[block], w.standing_ms[block])
        spent = np.maximum(extra, 0.0) * s.jitter[lanes]
        s.compute[lanes] = s.compute[lanes] + np.where(timed_out, 0.0, spent)
        s.rest[lanes] = s.rest[lanes] + np.where(timed_out, spent, 0.0)
        at = s.row[lanes] * N_ACTIONS + local
        seen = self._confidence.take(at).astype(np.float64)
        prediction = (self._answers.take(at) >> 1).astype(np.int64)
        before, last = s.stage_prediction[lanes], s.last_prediction[lanes]
        s.stage_frame[lanes] = np.where(before < 0, 0.0, np.where(before == prediction, 1.0, -1.0))
        s.stage_track[lanes] = np.where(last < 0, 0.0, np.where(last == prediction, 1.0, -1.0))
        s.stage_confidence[lanes] = seen
        s.stage_prediction[lanes] = prediction
        s.position[lanes] = exits
        s.evaluated[lanes] = exits
        s.confidences[exits - 1, lanes] = seen

    def finish_some(
        self, lanes: Indices, actions: NDArray[np.int64], answer: Bools, early: Bools
    ) -> tuple[Bools, BatchOutcome]:
        """In `lanes`, answer with the exit evaluated last, or send.

        A frame whose answer does not come in time stays open: the device has given up waiting and
        may look at exits from where it sent.

        Args:
            lanes: intp (K,), ascending.
            actions: int64 (K,), canonical actions; where `answer`, ignored.
            answer: bool (K,), answer with the last exit; elsewhere send.
            early: bool (K,), give up sending before the time-out.

        Returns:
            (ended, outcome): bool (K,), whose frame ended, and what it cost; elsewhere the
            outcome's figures mean nothing.
        """
        whole = len(lanes) == self.n
        s, w = self.lanes if whole else self.lanes.take(lanes), self.world
        actions = np.where(answer, LOCAL_ARRAY[np.maximum(s.evaluated, 1) - 1], actions)
        extra = np.maximum(w.device_ms[actions] - w.standing_ms[s.position], 0.0)
        compute = np.where(answer, s.compute, s.compute + extra * s.jitter)
        skip = s.queue > w.scenario.timing.max_queue_ms
        exchanges = self._exchanges(s, actions, s.start + compute)
        patience = self._patience(s, early)
        times_out = OFFLOADS.take(actions) & ~skip & (exchanges.total_ms > patience)
        late = np.flatnonzero(times_out)
        kept = s.take(late)
        waiting = Exchange(*(part[late] for part in exchanges))
        self._give_up(kept, actions[late], compute[late], patience[late], waiting)
        outcome = self._finish(s, actions, compute, skip, exchanges)
        if not whole:
            self.lanes.put(lanes, s)
        self.lanes.put(lanes[late], kept)
        return ~times_out, outcome

    def _patience(self, s: Lanes, early: Bools) -> Floats:
        """How long each lane would wait for an answer."""
        timeout = self.world.scenario.timing.timeout_ms
        short = early_timeout_ms(s.mean_ms, s.spread_ms, s.server_wait_ms)
        patience: Floats = np.where(early, np.minimum(short, timeout), timeout)
        return patience

    def _give_up(
        self,
        s: Lanes,
        action: NDArray[np.int64],
        compute: Floats,
        patience: Floats,
        exchanges: Exchange[Floats],
    ) -> None:
        """Send, wait for `patience` in vain; the frame stays open."""
        s.radio_free = exchanges.left_ms
        s.compute, s.waited = compute, patience
        s.wasted_mj = self._mj_per_byte * exchanges.size
        s.sent_action, s.position = action, SPLIT.take(action)
        s.timed_out[:] = 1
        s.failure_s = ((s.start + compute) + patience) * 1e-3
        s.failures = s.failures + 1.0

    @property
    def point(self) -> NDArray[np.int64]:
        """Where each lane's device stands, int64 (B,), see `testbed.policy.decision_points`."""
        s = self.lanes
        points: NDArray[np.int64] = POINT[s.timed_out, s.position, s.evaluated]
        return points

    def observe_staged(self) -> NDArray[np.float32]:
        """Staged observations now, float32 (B, `STAGED_OBS_DIM`), a new array."""
        return self._observer.observe_staged(self.lanes)
