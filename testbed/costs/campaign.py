"""A measurement campaign: every action under several link conditions, in random order.

The campaign is divided into blocks, one condition and round each. Blocks run in random order, and
so do the actions within a block, so that a machine that warms up or slows down does not look like
an effect of an action or a condition. Each finished block is a separate file; an interrupted
campaign resumes with the missing blocks. The server runs here, or on another machine
(`testbed.costs.campaign_server`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnn.bundle import Bundle
from cnn.common.errors import DataError
from cnn.common.outputs import Claim
from cnn.runtime import SplitRuntime
from cnn.topology import Topology
from testbed.costs.campaign_config import DISTURBED, Block, CampaignConfig
from testbed.costs.campaign_server import Say, ServerLostError, Upstream, server_of
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame
from testbed.link.link_process import LinkProcess
from testbed.meters.available import open_meter
from testbed.meters.power import power_profile
from testbed.policy.decision_points import START, decision_points
from testbed.policy.network_policy import NetworkPolicy
from testbed.policy.observer import Observer
from testbed.policy.task_settings import Settings
from testbed.records.record_file import RecordWriter, parquet_files, provenance, read_records
from testbed.traces.trace import constant_trace
from testbed.wire.client import MecClient
from testbed.wire.tls import TlsFiles

_log = logging.getLogger(__name__)

EXTRA_COLUMNS: Final = {
    "condition": pa.string(),
    "round": pa.int64(),
    "warm_up": pa.bool_(),
}
"""Columns of a campaign beyond those of `Measurement`."""
POLICY_WIDTHS: Final = (64, 64)
"""Hidden layers of the policies that `sliproad agent train` makes by default."""


def run_campaign(
    config: CampaignConfig,
    bundle: Bundle,
    frames: Iterator[CameraFrame],
    out: Path,
    *,
    progress: Callable[[int], object] | None = None,
    tls: TlsFiles | None = None,
    say: Say = _log.warning,
) -> int:
    """Measure the missing blocks and write all blocks to `out`.

    Args:
        config: settings.
        bundle: model bundle of device and server.
        frames: images to use, endless.
        out: Parquet file; blocks are kept in ``<out>.blocks`` until it is complete.
        progress: called with the number of frames just done.
        tls: certificate files for ``config.server``; None connects without TLS.
        say: called with a line when that server is lost, and when it is back.

    Returns:
        Number of rows, warm-up included.

    Raises:
        DataError: if ``<out>.blocks`` holds blocks of another campaign, or another process
            measures into it.
        RemoteError: if the server does not answer at the start, or has another network.
    """
    folder = out.with_name(out.name + ".blocks")
    with Claim(folder, folder=True):
        return _run(config, bundle, frames, out, folder, progress, tls, say)


def _run(
    config: CampaignConfig,
    bundle: Bundle,
    frames: Iterator[CameraFrame],
    out: Path,
    folder: Path,
    progress: Callable[[int], object] | None,
    tls: TlsFiles | None,
    say: Say,
) -> int:
    """`run_campaign`, with its folder of blocks held."""
    fingerprint = config.fingerprint(bundle.hash)
    blocks = config.blocks()
    missing = [b for b in blocks if not _is_done(folder / f"{b.name}.parquet", fingerprint)]
    if 0 < len(missing) < len(blocks):
        merged = _merged_rows(out, folder, fingerprint)
        if merged is not None:  # a kill left some blocks after the last step
            _clear(blocks, folder)
            return merged
    per_block = config.n_frames(bundle.topology) // len(blocks)
    if progress is not None:
        progress(per_block * (len(blocks) - len(missing)))
    if missing:
        runtime = SplitRuntime(bundle, config.device_threads, config.providers)
        runtime.warm()
        with server_of(config, bundle, tls, say) as server:
            for repeat in range(1 + config.repeats):
                for block in disturbed(blocks, folder) if repeat else missing:
                    server.measure(
                        block.name,
                        partial(_measure, config, block, runtime, frames, folder, fingerprint),
                    )
                    if progress is not None and not repeat:
                        progress(per_block)
    rows = _merge(config, blocks, folder, out, bundle, fingerprint)
    _clear(blocks, folder)
    return rows


def _clear(blocks: Sequence[Block], folder: Path) -> None:
    """Remove the blocks that are already in `out`."""
    for block in blocks:
        (folder / f"{block.name}.parquet").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _merged_rows(out: Path, folder: Path, fingerprint: str) -> int | None:
    """Rows of `out` if it is the whole campaign of the blocks in `folder`; None otherwise."""
    if not out.is_file():
        return None
    try:
        whole = read_records(out)
        created = {(b["name"], b["created"]) for b in whole.source["blocks"]}
        left = {(p.stem, read_records(p).source["created"]) for p in parquet_files(folder)}
    except (DataError, KeyError, TypeError):
        return None
    return len(whole) if whole.source["fingerprint"] == fingerprint and left <= created else None


def _measure(
    config: CampaignConfig,
    block: Block,
    runtime: SplitRuntime,
    frames: Iterator[CameraFrame],
    folder: Path,
    fingerprint: str,
    server: Upstream,
) -> None:
    """Measure one block into its own file; raises `ServerLostError` at a frame that shows it."""
    condition = block.condition
    number = config.conditions.index(condition)
    rng = np.random.default_rng([config.seed, 2, number, block.round])
    topology = runtime.topology
    actions = rng.permutation(np.repeat(np.arange(topology.n_actions), config.repetitions))
    warm_up = rng.integers(0, topology.n_actions, config.warm_up)
    schedule = ActionList([*warm_up.tolist(), *actions.tolist()], topology)
    trace = constant_trace(condition.uplink_mbps, condition.rtt_ms)
    path = folder / f"{block.name}.parquet"
    rtt_ms = condition.rtt_ms + server.rtt_ms
    source = provenance(
        topology, kind="campaign block", fingerprint=fingerprint, path_rtt_ms=server.rtt_ms
    )
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(LinkProcess(trace, (server.host, server.port)))
        client = stack.enter_context(
            MecClient(f"127.0.0.1:{link.port}", runtime.bundle.hash, server.tls)
        )
        client.connect(30.0)
        meter = stack.enter_context(open_meter(config.meter, config.power))
        unit = Device(
            runtime,
            client,
            schedule,
            # It observes, but decides nothing here.
            Observer(Settings(True, 0.9, 0.5, 10.0), topology),
            meter,
            DeviceConfig(
                period_ms=0,
                pause_ms=config.pause_ms,
                timeout_ms=config.timeout_ms,
            ),
            link_truth=lambda sent_s, done_s: (condition.uplink_mbps, rtt_ms),
        )
        writer = stack.enter_context(_whole_or_nothing(path, source))
        wanted = config.warm_up + len(actions)
        for i, row in enumerate(unit.run(islice(frames, wanted))):
            if server.lost(row):
                raise ServerLostError(
                    f"no answer to frame {i} ({row.reason})",
                    expected="a server that answers",
                    hint="check the server and the network",
                )
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
        local = records.numbers("action") == records.topology.main
        typical_ms[block] = float(np.median(records.numbers("head_ms")[local]))
    limit_ms = DISTURBED * min(typical_ms.values())
    return [block for block in blocks if typical_ms[block] > limit_ms]


@contextlib.contextmanager
def _whole_or_nothing(path: Path, source: dict[str, Any]) -> Iterator[RecordWriter]:
    """Discard an incomplete block, and never replace a whole campaign by half a one."""
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
    try:
        found = read_records(path).source.get("fingerprint")
    except DataError as error:  # for example after a power cut: it is measured again
        _log.warning("block left out: %s", error.given)
        return False
    if found != fingerprint:
        raise DataError(
            f"{path} belongs to another campaign ({found})",
            expected=f"blocks of this one ({fingerprint})",
            hint=f"delete the folder {path.parent}, or give another --out",
        )
    return True


def _merge(
    config: CampaignConfig,
    blocks: Sequence[Block],
    folder: Path,
    out: Path,
    bundle: Bundle,
    fingerprint: str,
) -> int:
    read = [read_records(folder / f"{block.name}.parquet") for block in blocks]
    path_ms = float(np.median([r.source.get("path_rtt_ms", 0.0) for r in read]))
    remote = {} if config.server is None else {"server": config.server, "path_rtt_ms": path_ms}
    source = provenance(
        bundle.topology,
        kind="campaign",
        fingerprint=fingerprint,
        bundle_hash=bundle.hash,
        config=asdict(config),
        conditions={c.name: asdict(c) | {"rtt_ms": c.rtt_ms + path_ms} for c in config.conditions},
        providers=list(config.providers),
        emulation=DeviceConfig().describe(),
        **power_profile(config.power).to_json(),
        **remote,
        actions=[action.name for action in bundle.topology.actions],
        blocks=[
            {"name": b.name, **{k: r.source[k] for k in ("created", "load_average")}}
            for b, r in zip(blocks, read, strict=True)
        ],
    )
    with _whole_or_nothing(out, source) as writer:
        for records in read:
            extra = [records.table[name].to_pylist() for name in EXTRA_COLUMNS]
            for row, *values in zip(records.rows(), *extra, strict=True):
                of_row = dict(zip(EXTRA_COLUMNS, values, strict=True))
                writer.write(replace(row, frame_id=writer.rows), **of_row)
        return writer.rows


class ActionList:
    """A policy that plays a list of actions, with the compute time of a real policy.

    A network of the usual size computes a decision that is ignored: the cost of a decision is part
    of the cost of a frame. For the same observation it repeats its action.
    """

    name = "campaign"
    memoryless: Final = True

    def __init__(self, actions: Sequence[int], topology: Topology) -> None:
        self.space = decision_points(topology).frame
        self._actions = list(actions)
        sizes = (self.space.obs_dim, *POLICY_WIDTHS, self.space.n_actions)
        weights = [np.zeros((n, m), np.float32) for m, n in pairwise(sizes)]
        biases = [np.zeros(n, np.float32) for n in sizes[1:]]
        self._network = NetworkPolicy(weights, biases, space=self.space)
        self.reset()

    def reset(self) -> None:
        """Restart with the first action."""
        self._at = -1
        self._seen: NDArray[np.float32] | None = None

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """The next action."""
        self._network.decide(observation)
        if observation is not self._seen:
            self._at, self._seen = self._at + 1, observation
        return self._actions[self._at]

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The next action, for every row."""
        return np.full(len(observations), self.decide(observations[0]), np.int64)
