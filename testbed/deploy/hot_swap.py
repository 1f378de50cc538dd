"""Hot swap: changing network and policy of a running device between two frames, with roll-back.

`Watcher` checks the files in a thread of low priority, loads and tests changed ones, and
asks the server whether it has the new bundle; a deployment that passes waits in `ready`.
`Swapper` installs it between two frames and keeps the old one until the first frames
went well. No frame waits for any of this.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import RemoteError
from cnn.common.outside import said
from cnn.runtime import Features, SplitRuntime
from testbed.deploy.deployment import Deployment, Sources, Stamp, load
from testbed.deploy.guarded_policy import GuardedPolicy
from testbed.deploy.log import event
from testbed.records.measurement import Measurement

ASK_SERVER_S: Final = 2.0
_NAP_S: Final = 0.1
_NICE: Final = 10
_REJECTED_SHARE: Final = 0.5

_log = logging.getLogger(__name__)


class BundleServer(Protocol):
    """The part of `testbed.wire.client.MecClient` that a swap needs."""

    def connect(self, timeout_s: float, bundle_hash: str | None = None) -> None:
        """Raise `RemoteError` unless the server has that bundle."""
        ...

    def use_bundle(self, bundle_hash: str) -> None:
        """Use that bundle in requests from now on."""
        ...


class LiveRuntime(SplitRuntime):
    """A runtime whose network can be exchanged between two frames.

    If a network fails in the middle of a frame while there is an earlier one, the frame is computed
    again with the earlier one from its first block.
    """

    def __init__(self, first: SplitRuntime) -> None:
        super().__init__(first.bundle, first.threads, first.providers)
        self.roll_back: Callable[[str], bool] = lambda reason: False
        self.use(first)

    def use(self, runtime: SplitRuntime) -> None:
        """Use this runtime's network from the next frame on."""
        self.bundle, self._sessions = runtime.bundle, runtime._sessions
        self._frame: Features | None = None
        self._restart = False

    def start(self, frame: NDArray[np.uint8]) -> Features:
        """As `SplitRuntime.start`."""
        self._frame, self._restart = super().start(frame), False
        return self._frame

    def forward(self, x: Features, first: int, last: int) -> Features:
        """As `SplitRuntime.forward`."""
        out: Features = self._safely(super().forward, x, first - 1, first, last)
        return out

    def payload(self, x: Features, split: int) -> NDArray[np.uint8]:
        """As `SplitRuntime.payload`."""
        out: NDArray[np.uint8] = self._safely(super().payload, x, split, split)
        return out

    def answer(self, x: Features, exit: int, split: int) -> tuple[int, float]:
        """As `SplitRuntime.answer`."""
        out: tuple[int, float] = self._safely(super().answer, x, exit, exit, split)
        if out[1] > 0 or self._frame is None or not self.roll_back("an answer that is no number"):
            return out
        self._restart = True
        return super().answer(self._again(exit), exit, split)

    def _safely(self, section: Callable[..., Any], x: Features, points: int, *args: int) -> Any:
        """Run a section on `x`, the output of block `points`; once more if rolled back."""
        try:
            return section(self._again(points) if self._restart else x, *args)
        except Exception as error:
            frame = self._frame
            if not self.roll_back(f"{type(error).__name__}: {said(error)}") or frame is None:
                raise
            self._frame, self._restart = frame, True
            return section(self._again(points), *args)

    def _again(self, points: int) -> Features:
        """Output of block `points` for the current frame, by the network in use now."""
        assert self._frame is not None
        out: Features = super().forward(self._frame, 1, points)
        return out


class Swapper:
    """Installs deployments, watches their first frames, and rolls them back.

    Args:
        first: the deployment at the start.
        guarded: the guarded policy.
        runtime: the runtime.
        client: connection to the server, or None.
        probation_frames: first frames of a deployment, in which a failure rolls it back.
        on_change: called with the deployment after every change, roll-backs included.

    Attributes:
        deployment: the one in use.
        swaps, rollbacks: their numbers.
    """

    def __init__(
        self,
        first: Deployment,
        guarded: GuardedPolicy,
        runtime: LiveRuntime,
        client: BundleServer | None,
        probation_frames: int,
        on_change: Callable[[Deployment], None] = lambda deployment: None,
    ) -> None:
        self.deployment = first
        self.swaps = self.rollbacks = 0
        self._before: Deployment | None = None
        self._guarded, self._runtime, self._client = guarded, runtime, client
        self._probation_frames, self._on_change = probation_frames, on_change
        self._first = self._frames = self._rejected = self._sent = 0
        guarded.roll_back = runtime.roll_back = self.roll_back

    @property
    def on_probation(self) -> bool:
        """Whether the deployment in use may still be rolled back."""
        return self._before is not None

    def install(self, deployment: Deployment, frame_id: int) -> bool:
        """Change to a tested deployment; call it before the frame `frame_id`.

        Returns:
            Whether it is in use: if any step fails, the previous deployment stays in use.
        """
        self._before, self._first = self.deployment, frame_id
        self._frames = self._rejected = self._sent = 0
        self.swaps += 1
        try:
            for step in self._steps(deployment):
                step()
            event(_log, logging.INFO, "swapped", **_names(deployment))
        except Exception as error:
            self.roll_back(f"{type(error).__name__}: {said(error)}", deployment)
            return False
        return True

    def observe(self, row: Measurement) -> None:
        """Count a measured frame (frames before the change do not count for the new deployment)."""
        if self._before is None or row.frame_id < self._first:
            return
        self._frames += 1
        self._sent += row.uplink_bytes > 0
        self._rejected += row.reason in ("rejected", "bad answer")
        if self._frames >= self._probation_frames:
            if self._rejected > _REJECTED_SHARE * max(1, self._sent):
                self.roll_back(f"the server rejected {self._rejected} of {self._sent} frames")
                return
            self._before = None  # frees the old network
            event(_log, logging.INFO, "kept", **_names(self.deployment))

    def roll_back(self, reason: str, failed: Deployment | None = None) -> bool:
        """Roll a deployment back if it is on probation; returns whether it was.

        Args:
            reason: what went wrong.
            failed: the deployment to roll back; None is the current one.
        """
        before, self._before = self._before, None
        if before is None:
            return False
        self.rollbacks += 1
        names = _names(self.deployment if failed is None else failed)
        for step in self._steps(before):
            try:
                step()
            except Exception as error:  # the other steps still run
                event(_log, logging.ERROR, "taking back", error=said(error))
        event(_log, logging.ERROR, "rolled back", reason=reason, failed=names, **_names(before))
        return True

    def _steps(self, deployment: Deployment) -> Iterator[Callable[[], object]]:
        """The steps that install a deployment; each can be repeated."""
        yield lambda: self._runtime.use(deployment.runtime)
        yield lambda: self._guarded.use(
            deployment.policy, deployment.policy_hash, deployment.model.hash[:12], deployment.shadow
        )
        if self._client is not None:
            client = self._client
            yield lambda: client.use_bundle(deployment.model.hash)
        yield lambda: setattr(self, "deployment", deployment)
        yield lambda: self._on_change(deployment)


class Watcher:
    """Prepares a new deployment when its files change or on request.

    Args:
        sources: files to watch.
        running: gives the deployment in use.
        observations: gives recent observations, for the self-test.
        frame: gives a recent frame, or None.
        server: asked whether it has a new model bundle; None skips this.
        every_s: interval of the checks; 0 checks only on request.
        also: called at each check, in the same thread.

    Attributes:
        asked: set it to check now (safe in a signal handler).
        failures: deployments that failed their test, or that the server does not have.
    """

    def __init__(
        self,
        sources: Sources,
        running: Callable[[], Deployment],
        observations: Callable[[], NDArray[np.float32]],
        frame: Callable[[], NDArray[np.uint8] | None],
        server: BundleServer | None,
        every_s: float,
        also: Callable[[], object] = lambda: None,
    ) -> None:
        self.asked = False
        self._also = also
        self.failures = 0
        self._sources, self._running, self._server = sources, running, server
        self._observations, self._frame, self._every_s = observations, frame, every_s
        self._ready: Deployment | None = None
        self._tried: Stamp = running().stamp
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="bundles", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._thread.join(ASK_SERVER_S + 60)

    def take(self) -> Deployment | None:
        """A ready deployment, returned once."""
        ready, self._ready = self._ready, None
        return ready

    def check(self, asked: bool = False) -> None:
        """Check once: prepare a deployment that changed since the last check.

        Args:
            asked: also retry what failed before.
        """
        try:
            stamp = self._sources.stamp()
            if stamp == self._running().stamp or (stamp == self._tried and not asked):
                self._tried = stamp
                return
            self._tried = stamp
            self._ready = self._prepare()
        except Exception as error:  # onnxruntime raises classes of its own
            if isinstance(error, RemoteError):
                self._tried = ()  # the server may have it at the next check
            self.failures += 1
            event(_log, logging.ERROR, "new bundles not used", error=said(error))

    def _prepare(self) -> Deployment:
        running = self._running()
        deployment = load(self._sources, self._observations(), self._frame(), running)
        if self._server is not None and deployment.model.hash != running.model.hash:
            self._server.connect(ASK_SERVER_S, deployment.model.hash)
        return deployment

    def _watch(self) -> None:
        with contextlib.suppress(OSError):  # Linux: each thread has its own priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        checked_s = time.monotonic()
        while not self._stopping:
            time.sleep(_NAP_S)
            due = self._every_s > 0 and time.monotonic() - checked_s >= self._every_s
            if self.asked or due:
                asked, self.asked = self.asked, False
                self.check(asked)
                self._also()
                checked_s = time.monotonic()


def _names(deployment: Deployment) -> dict[str, str]:
    return {"bundle": deployment.model.hash[:12], "policy": deployment.policy_hash}
