"""A measurement campaign: every action under several link conditions, in random order.

The campaign is cut into blocks, one condition and round each. Blocks come in random order,
and the actions within a block as well, so that a machine that warms up or slows down does
not look like an effect of an action or a condition. Each finished block is a file of its
own; a campaign that was interrupted goes on with the blocks that are missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_ACTIONS
from cnn.bundle import Bundle
from cnn.errors import ConfigError, DataError
from cnn.runtime import SplitRuntime
from testbed.costs.cost_model import RadioPower
from testbed.costs.power import power_profile
from testbed.decide.observation import OBS_DIM, Observer, Settings
from testbed.decide.policy import NetworkPolicy
from testbed.device.device import Device, DeviceConfig
from testbed.device.frames import CameraFrame
from testbed.device.quota import CpuQuota
from testbed.link.process import LinkProcess
from testbed.meters.available import open_meter
from testbed.records.measurement import Measurement
from testbed.records.parquet import RecordWriter, provenance, read_records
from testbed.server.process import ServerProcess
from testbed.traces.files import constant_trace
from testbed.wire.client import MecClient

EXTRA_COLUMNS: Final = {
    "condition": pa.string(),
    "round": pa.int64(),
    "warm_up": pa.bool_(),
}
"""Columns of a campaign beyond those of `Measurement`."""
DISTURBED: Final = 1.15
"""A neighbour on the same core takes a third and more; the spread of quiet blocks is 5 %."""
POLICY_WIDTHS: Final = (64, 64)
"""Hidden layers of the policies that `sliproad agent train` makes unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A constant link.

    Attributes:
        uplink_mbps: capacity, Mbit/s.
        rtt_ms: base round trip, milliseconds.
    """

    uplink_mbps: float
    rtt_ms: float

    def __post_init__(self) -> None:
        if not (0.05 <= self.uplink_mbps <= 1000 and 0 <= self.rtt_ms <= 2000):
            raise ConfigError(
                f"condition {self.name}",
                expected="0.05..1000 Mbit/s and 0..2000 ms",
                mend="correct the condition",
            )

    @property
    def name(self) -> str:
        """Such as ``8mbps-80ms``."""
        return f"{self.uplink_mbps:g}mbps-{self.rtt_ms:g}ms"

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``RATE/RTT``, such as ``8/80``; raises `ConfigError`."""
        rate, _, rtt = text.partition("/")
        try:
            return cls(float(rate), float(rtt))
        except ValueError as error:
            raise ConfigError(
                f"condition {text!r}", expected="MBPS/RTT_MS, such as 8/80", mend="correct it"
            ) from error


DEFAULT_CONDITIONS: Final = (
    Condition(1.5, 45),
    Condition(4, 80),
    Condition(10, 20),
    Condition(30, 55),
    Condition(90, 10),
)
"""From poor coverage to good 5G. Round trips do not simply fall as rates rise, so that the
two effects can be told apart. The range is that of measured drives: rates with a median of
34 Mbit/s and a 95th percentile of 105 (sa24), round trips of 10 to 100 ms (cicv5g, memu22,
sa24)."""


@dataclass(frozen=True, slots=True)
class CampaignConfig:
    """What a campaign measures.

    Attributes:
        conditions: links, at least one, all different.
        rounds: blocks for each condition.
        repetitions: frames for each action in a block.
        warm_up: frames at the start of a block that are recorded as warm-up.
        pause_ms: idle time before every frame. A device that waits for its camera computes
            with colder caches than one that never rests, and takes markedly longer.
        timeout_ms: of the device; generous, since a fallback is no measurement.
        slowdown: of the device.
        power: power profile of the model meter.
        meter: energy meter.
        device_threads: threads of the device's runtime.
        server_threads: threads of the server for one batch.
        device_quota: CPU quota of the device, share of one core; None for no quota.
        repeats: how often blocks are measured again in which the machine was disturbed:
            the median of full local processing `DISTURBED` times that of the fastest block.
        seed: of all orders.
    """

    conditions: tuple[Condition, ...] = DEFAULT_CONDITIONS
    rounds: int = 3
    repetitions: int = 10
    warm_up: int = 10
    pause_ms: float = 50.0
    timeout_ms: float = 5000.0
    slowdown: float = 1.0
    power: str = "jetson-nano+5g-nsa-lowband"
    meter: str = "model"
    device_threads: int = 1
    server_threads: int = 1
    device_quota: float | None = None
    repeats: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        names = [condition.name for condition in self.conditions]
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f"conditions {names}", expected="at least one, all different", mend="correct them"
            )
        if min(self.rounds, self.repetitions) < 1 or min(self.warm_up, self.pause_ms) < 0:
            raise ConfigError(
                f"{self.rounds} rounds, {self.repetitions} repetitions, {self.warm_up} warm-up, "
                f"{self.pause_ms} ms pause",
                expected="at least 1, 1, 0 and 0",
                mend="correct them",
            )

    def describe(self) -> str:
        """How the device was emulated, for the records."""
        slower = DeviceConfig(slowdown=self.slowdown).describe()
        if self.device_quota is None:
            return slower
        quota = f"CPU quota {self.device_quota:g} of a core"
        return quota if self.slowdown == 1 else f"{slower}, {quota}"

    @property
    def n_frames(self) -> int:
        """Frames in all, warm-up included."""
        return len(self.blocks()) * (self.warm_up + self.repetitions * N_ACTIONS)

    def blocks(self) -> list[Block]:
        """Every condition `rounds` times, in random order."""
        every = [Block(c, r) for r in range(self.rounds) for c in self.conditions]
        order = np.random.default_rng([self.seed, 1]).permutation(len(every))
        return [every[i] for i in order]

    def fingerprint(self, bundle_hash: str) -> str:
        """Changes when anything that was measured would have been measured otherwise."""
        text = json.dumps([asdict(self), bundle_hash], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Block:
    """One condition in one round."""

    condition: Condition
    round: int

    @property
    def name(self) -> str:
        """Name of the block's file, without suffix."""
        return f"{self.condition.name}-round{self.round}"


class Schedule:
    """A policy that plays a list of actions, and takes as long as one that thinks.

    A network of the usual size decides beside it, and nobody listens: what a decision costs
    belongs to what a frame costs. Asked again with the same observation, it repeats itself.
    """

    name = "campaign"
    memoryless: Final = True

    def __init__(self, actions: Sequence[int]) -> None:
        self._actions = list(actions)
        sizes = (OBS_DIM, *POLICY_WIDTHS, N_ACTIONS)
        weights = [np.zeros((n, m), np.float32) for m, n in pairwise(sizes)]
        self._network = NetworkPolicy(weights, [np.zeros(n, np.float32) for n in sizes[1:]])
        self.reset()

    def reset(self) -> None:
        """Begin with the first action again."""
        self._at = -1
        self._seen: NDArray[np.float32] | None = None

    def decide(self, observation: NDArray[np.float32]) -> int:
        """The next action."""
        self._network.decide(observation)
        if observation is not self._seen:
            self._at, self._seen = self._at + 1, observation
        return self._actions[self._at]

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """The next action, for every row."""
        return np.full(len(observations), self.decide(observations[0]), np.int64)


def run_campaign(
    config: CampaignConfig,
    bundle: Bundle,
    frames: Iterator[CameraFrame],
    out: Path,
    *,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Measure what is missing and write all of it to `out`.

    Args:
        config: what to measure.
        bundle: model bundle of device and server.
        frames: images to use, endless.
        out: Parquet file; blocks are kept in ``<out>.blocks`` until it is complete.
        progress: called with the number of frames just done.

    Returns:
        Number of rows, warm-up included.

    Raises:
        DataError: if ``<out>.blocks`` holds blocks of another campaign.
    """
    folder = out.with_name(out.name + ".blocks")
    fingerprint = config.fingerprint(bundle.hash)
    blocks = config.blocks()
    missing = [b for b in blocks if not _is_done(folder / f"{b.name}.parquet", fingerprint)]
    per_block = config.n_frames // len(blocks)
    if progress is not None:
        progress(per_block * (len(blocks) - len(missing)))
    if missing:
        runtime = SplitRuntime(bundle, config.device_threads)
        runtime.warm()
        threads = ("--threads", str(config.server_threads))
        with ServerProcess(bundle.path, options=threads) as server:
            for block in missing:
                _measure(config, block, runtime, server, frames, folder, fingerprint)
                if progress is not None:
                    progress(per_block)
            for _ in range(config.repeats):
                for block in disturbed(blocks, folder):
                    _measure(config, block, runtime, server, frames, folder, fingerprint)
    rows = _merge(config, blocks, folder, out, bundle.hash, fingerprint)
    for block in blocks:
        (folder / f"{block.name}.parquet").unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return rows


def _measure(
    config: CampaignConfig,
    block: Block,
    runtime: SplitRuntime,
    server: ServerProcess,
    frames: Iterator[CameraFrame],
    folder: Path,
    fingerprint: str,
) -> None:
    """One block, written to its own file."""
    condition = block.condition
    number = config.conditions.index(condition)
    rng = np.random.default_rng([config.seed, 2, number, block.round])
    actions = rng.permutation(np.repeat(np.arange(N_ACTIONS), config.repetitions))
    warm_up = rng.integers(0, N_ACTIONS, config.warm_up)
    schedule = Schedule([*warm_up.tolist(), *actions.tolist()])
    trace = constant_trace(condition.uplink_mbps, condition.rtt_ms)
    path = folder / f"{block.name}.parquet"
    source = provenance(kind="campaign block", fingerprint=fingerprint)
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(LinkProcess(trace, ("127.0.0.1", server.port)))
        client = stack.enter_context(MecClient(f"127.0.0.1:{link.port}", runtime.bundle.hash))
        client.connect(30.0)
        meter = stack.enter_context(open_meter(config.meter, config.power))
        unit = Device(
            runtime,
            client,
            schedule,
            Observer(Settings(True, 0.9, 0.5, 10.0)),  # observed, but decides nothing here
            meter,
            DeviceConfig(
                period_ms=0,
                pause_ms=config.pause_ms,
                timeout_ms=config.timeout_ms,
                slowdown=config.slowdown,
            ),
            link_truth=lambda sent_s, done_s: (condition.uplink_mbps, condition.rtt_ms),
        )
        if config.device_quota is not None:  # after the link, which must not inherit it
            stack.enter_context(CpuQuota(config.device_quota))
        writer = stack.enter_context(_whole_or_nothing(path, source))
        wanted = config.warm_up + len(actions)
        for i, row in enumerate(unit.run(islice(frames, wanted))):
            writer.write(
                row,
                condition=condition.name,
                round=block.round,
                warm_up=i < config.warm_up,
            )


def disturbed(blocks: Sequence[Block], folder: Path) -> list[Block]:
    """Blocks in which full local processing took markedly longer than in the fastest."""
    typical_ms: dict[Block, float] = {}
    for block in blocks:
        records = read_records(folder / f"{block.name}.parquet")
        local = records.numbers("action") == N_ACTIONS - 1
        typical_ms[block] = float(np.median(records.numbers("head_ms")[local]))
    limit_ms = DISTURBED * min(typical_ms.values())
    return [block for block in blocks if typical_ms[block] > limit_ms]


@contextlib.contextmanager
def _whole_or_nothing(path: Path, source: dict[str, Any]) -> Iterator[RecordWriter]:
    """A block that was cut short is no block."""
    writer = RecordWriter(path, source, EXTRA_COLUMNS)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise
    writer.close()


def _is_done(path: Path, fingerprint: str) -> bool:
    if not path.exists():
        return False
    found = read_records(path).source.get("fingerprint")
    if found != fingerprint:
        raise DataError(
            f"{path} belongs to another campaign ({found})",
            expected=f"blocks of this one ({fingerprint})",
            mend=f"delete the folder {path.parent}, or give another --out",
        )
    return True


def _merge(
    config: CampaignConfig,
    blocks: Sequence[Block],
    folder: Path,
    out: Path,
    bundle_hash: str,
    fingerprint: str,
) -> int:
    read = [read_records(folder / f"{block.name}.parquet") for block in blocks]
    radio: RadioPower = power_profile(config.power).radio
    device = power_profile(config.power).device
    source = provenance(
        kind="campaign",
        fingerprint=fingerprint,
        bundle_hash=bundle_hash,
        config=asdict(config),
        conditions={c.name: asdict(c) for c in config.conditions},
        slowdown=config.slowdown,
        emulation=config.describe(),
        device_power=asdict(device),
        radio_power=asdict(radio),
        actions=[action.name for action in ACTIONS],
        blocks=[
            {"name": b.name, **{k: r.source[k] for k in ("created", "load_average")}}
            for b, r in zip(blocks, read, strict=True)
        ],
    )
    with RecordWriter(out, source, EXTRA_COLUMNS) as writer:
        for records in read:
            extra = [records.table[name].to_pylist() for name in EXTRA_COLUMNS]
            for row, *values in zip(records.rows(), *extra, strict=True):
                writer.write(
                    _renumbered(row, writer.rows),
                    **dict(zip(EXTRA_COLUMNS, values, strict=True)),
                )
        return writer.rows


def _renumbered(row: Measurement, frame_id: int) -> Measurement:
    return replace(row, frame_id=frame_id)
