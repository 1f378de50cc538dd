"""Learning from a deployed device's records: its link as traces, its speed, its decisions.

A device sees its link only through its own exchanges. An answered one of b bytes that took y
milliseconds (server excluded) says ``y = rtt + 8 b / rate``; a lost one says that its bytes did
not get through. Round trips are fitted over windows by the device's own estimator
(`testbed.policy.estimators.fit_link`); the rest of each exchange gives its rate, so that a replay
of the same payload at the same moment takes the measured time. Between two exchanges the nearer one
is used; after a long time without an exchange, the trace is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.off_policy import Log
from cnn.common.errors import DataError
from offload_env.scenario import Scenario, load_scenario
from offload_env.world import World, build_world, load_cost
from testbed.policy.estimators import fit_link
from testbed.policy.observation_fields import MAX_RATE_MBPS, schema_of
from testbed.records.record_file import Records, read_all
from testbed.traces.trace import Trace

Floats = NDArray[np.float64]

PERIOD_S: Final = 0.1
MAX_GAP_S: Final = 10.0
"""After a longer time than this without an exchange the link is unknown: the trace is cut."""
MIN_TRACE_S: Final = 10.0
WINDOW_S: Final = 5.0
"""Exchanges this far before and after one share its round trip."""
MIN_COMPUTED: Final = 10
"""Frames that must have computed something before the device's speed is taken from them."""
MIN_RATE_MBPS: Final = 0.05
MIN_RTT_MS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Exchanges of one run in order of time; arrays (N,).

    Attributes:
        sent_s: float64, when the payload was handed to the radio, since the run's start.
        ended_s: float64, when the answer came or the exchange timed out.
        sent_bytes: float64, payload and framing.
        transfer_ms: float64, without the server and the device's own network work; NaN if
            no answer came.
    """

    sent_s: Floats
    ended_s: Floats
    sent_bytes: Floats
    transfer_ms: Floats

    def __len__(self) -> int:
        return len(self.sent_s)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Exchanges:
        """Some of them."""
        return Exchanges(*(getattr(self, name)[rows] for name in self.__slots__))


def exchanges_of(records: Records, overhead_bytes: float, net_ms: float) -> Exchanges:
    """The exchanges in a device's records.

    Args:
        records: of one run.
        overhead_bytes: framing of a payload on the uplink.
        net_ms: part of an exchange that is neither link nor server, from the cost model.
    """
    zero_if_none = {n: np.nan_to_num(records.numbers(n)) for n in ("encode_ms", "fallback_ms")}
    captured_s, queue_ms = records.numbers("captured_s"), records.numbers("queue_ms")
    head_ms, delay_ms = records.numbers("head_ms"), records.numbers("delay_ms")
    before_ms = queue_ms + head_ms + zero_if_none["encode_ms"]
    transfer_ms = records.numbers("transfer_ms")
    sent_s = captured_s + before_ms / 1e3
    ended_s = captured_s + (delay_ms - zero_if_none["fallback_ms"]) / 1e3
    lost = (records.texts("status") == "fallback") & (records.texts("reason") == "timeout")
    used = np.isfinite(transfer_ms) | lost
    found = Exchanges(
        sent_s,
        ended_s,
        records.numbers("uplink_bytes") + overhead_bytes,
        np.where(lost, np.nan, np.maximum(transfer_ms - net_ms, MIN_RTT_MS)),
    ).take(used)
    return found.take(np.argsort(found.sent_s, kind="stable"))


def traces_of(found: Exchanges, name: str, tech: str) -> list[Trace]:
    """Traces of one run, cut where nothing was sent for `MAX_GAP_S`.

    Args:
        found: exchanges in order of time.
        name: of the run; traces are numbered.
        tech: ``5G`` or ``LTE``.
    """
    if not len(found):
        return []
    cuts = np.flatnonzero(np.diff(found.sent_s) > MAX_GAP_S) + 1
    ends = [0, *cuts.tolist(), len(found)]
    traces = []
    for k, (first, last) in enumerate(pairwise(ends)):
        piece = found.take(slice(first, last))
        long_enough = piece.ended_s[-1] - piece.sent_s[0] >= MIN_TRACE_S
        if long_enough and np.isfinite(piece.transfer_ms).any():
            traces.append(_trace(piece, f"{name}:{k}", tech))
    return traces


def _trace(piece: Exchanges, name: str, tech: str) -> Trace:
    """One trace; see the module's text."""
    answered = np.isfinite(piece.transfer_ms)
    heard = piece.take(answered)
    intercept = _round_trips(heard)
    bits = 8.0 * heard.sent_bytes
    # Leave each exchange time to send its bytes at the fastest plausible rate.
    most = heard.transfer_ms - bits / (1e3 * MAX_RATE_MBPS)
    rtt_ms = np.clip(intercept, MIN_RTT_MS, np.maximum(most, MIN_RTT_MS))
    sending_ms = np.maximum(heard.transfer_ms - rtt_ms, bits / (1e3 * MAX_RATE_MBPS))
    rate = np.zeros(len(piece))
    rate[answered] = np.maximum(bits / (1e3 * sending_ms), MIN_RATE_MBPS)
    start_s = piece.sent_s[0]
    times_s = start_s + PERIOD_S * np.arange(int((piece.ended_s[-1] - start_s) / PERIOD_S) + 1)
    nearest = _nearest(times_s, 0.5 * (piece.sent_s + piece.ended_s))
    heard_nearest = _nearest(times_s, 0.5 * (heard.sent_s + heard.ended_s))
    return Trace(
        rate[nearest], rtt_ms[heard_nearest], PERIOD_S, name, tech, "measured: device records"
    )


def _round_trips(heard: Exchanges) -> Floats:
    """Intercept of transfer time on bytes over the exchanges around each one."""
    x, y, at = heard.sent_bytes * 1e-3, heard.transfer_ms, heard.sent_s
    first = np.searchsorted(at, at - WINDOW_S, "left")
    last = np.searchsorted(at, at + WINDOW_S, "right")

    def sums(values: Floats) -> Floats:
        total = np.concatenate([[0.0], np.cumsum(values)])
        around: Floats = total[last] - total[first]
        return around

    ones = np.ones(len(x))
    intercept, _ = fit_link(sums(ones), sums(x), sums(x * x), sums(y), sums(x * y))
    out: Floats = intercept
    return out


def _nearest(times_s: Floats, middles_s: Floats) -> NDArray[np.intp]:
    """Index of the middle nearest to each time."""
    borders = 0.5 * (middles_s[1:] + middles_s[:-1])
    return np.searchsorted(borders, times_s).astype(np.intp)


def device_speed(runs: Sequence[Records], world: World) -> float | None:
    """Measured device time over the world's, from the frames that computed blocks.

    A frame that only encoded and sent is left out: its time is mostly overhead. The rest count:
    head and encoder of frames that ran at least one block before they answered or sent, and the
    local finish of frames whose exchange failed. The median is weighted by the world's time for the
    same work, so that long computations count most.

    Returns:
        The factor; None if fewer than `MIN_COMPUTED` frames computed.

    Raises:
        ConfigError: if the records are of another network than the world.
    """
    topology = world.topology
    took, expected = [], []
    for records in runs:
        _check_network(records, world)
        action = records.numbers("action").astype(np.int64)
        status = records.texts("status")
        own_exit = np.where(topology.is_local, 1 << (topology.exit_of - 1), 0)[action]
        looks = records.numbers("looks").astype(np.int64)
        # Exits that a staged policy evaluated on its way are in head_ms, and in no action's time.
        plain = looks & ~own_exit == 0
        head = records.numbers("head_ms") + np.nan_to_num(records.numbers("encode_ms"))
        computed = plain & (topology.split_of[action] > 0) & np.isin(status, ("ok", "fallback"))
        took.append(head[computed])
        expected.append(world.device_ms[action][computed])
        finish = records.numbers("fallback_ms")
        finished = plain & (status == "fallback") & np.isfinite(finish)
        took.append(finish[finished])
        expected.append(world.fallback_ms[action][finished])
    measured, modelled = np.concatenate(took), np.concatenate(expected)
    use = np.isfinite(measured) & (measured > 0) & (modelled > 0)
    if use.sum() < MIN_COMPUTED:
        return None
    return _weighted_median(measured[use] / modelled[use], modelled[use])


def _check_network(records: Records, world: World) -> None:
    frames = f"the frames of scenario {world.scenario.name}"
    world.topology.require_same(records.topology, "records", frames)


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, 0.5 * reached[-1])])


def recorded_traces(scenario: Scenario | str, path: Path) -> list[Trace]:
    """The link that a device recorded, as training traces of the scenario's technology.

    Args:
        scenario: its cost model gives the part of an exchange that is neither link nor server.
        path: record file or folder.

    Raises:
        DataError: if the records hold too few exchanges for a trace.
    """
    scenario = load_scenario(scenario)
    return _traces_of_runs(scenario, read_all(path), path)


def _traces_of_runs(scenario: Scenario, runs: Sequence[Records], path: Path) -> list[Trace]:
    """`recorded_traces` of runs that have been read from `path`."""
    cost = load_cost(scenario)
    tech = build_world(scenario, "train").pool.techs[0]
    traces: list[Trace] = []
    for k, records in enumerate(runs):
        found = exchanges_of(records, cost.wire_overhead_bytes, cost.net_ms)
        traces += traces_of(found, f"records:{path.stem}:{k}", tech)
    if not traces:
        raise DataError(
            f"records {path}: {sum(len(r) for r in runs)} frames without {MIN_TRACE_S:g} s of "
            "regular exchanges",
            expected=f"exchanges at most {MAX_GAP_S:g} s apart over {MIN_TRACE_S:g} s",
            hint="record a run that offloads, or explore with --explore 0.05",
        )
    return traces


def world_from_records(
    scenario: Scenario | str, path: Path, warn: Callable[[str], object] | None = None
) -> World:
    """The scenario's training world on the link and at the speed that a device recorded.

    Where too few frames computed anything, the device keeps the scenario's speed.

    Args:
        scenario: frames, power, server load, timing, prices and floor.
        path: record file or folder.
        warn: called with one line about files that were left out; None logs it.

    Raises:
        DataError: if the records hold too few exchanges for a trace.
    """
    scenario = load_scenario(scenario)
    plain = build_world(scenario, "train")
    runs = read_all(path) if warn is None else read_all(path, warn)
    traces = _traces_of_runs(scenario, runs, path)
    speed = device_speed(runs, plain)
    if speed is not None:
        local_ms = speed * plain.delay_ref_ms
        device = replace(scenario.device, slowdown=1.0, full_local_ms=local_ms)
        scenario = replace(scenario, device=device)
    return build_world(scenario, "train", traces=traces)


def log_of(runs: Sequence[Records], world: World) -> Log:
    """The decisions of an exploring device, with their outcomes.

    Frames without a decision (skipped) or without an energy reading are left out. Outcomes:
    ``delay_ms``, ``energy_mj``, ``miss``, ``cost`` (by the world's prices), ``confidence``,
    and ``correct`` if every frame has a label.

    Args:
        runs: records of one or more runs.
        world: prices and references.

    Raises:
        DataError: if a file has no propensities, or too few frames are left.
        ConfigError: if a file is of another network than the world.
    """
    obs_dim = schema_of(world.topology).obs_dim
    parts: dict[str, list[Floats]] = {}
    seen: list[NDArray[np.float32]] = []
    for records in runs:
        _check_network(records, world)
        missing = {"propensity", "observation"} - set(records.table.column_names)
        if missing:
            raise DataError(
                f"records without {' and '.join(sorted(missing))}",
                expected="records of a device that explored",
                hint="run it with --explore 0.05",
            )
        names = ("action", "propensity", "delay_ms", "energy_mj", "confidence", "correct")
        columns = {name: records.numbers(name) for name in names}
        needed = np.stack([columns[n] for n in names if n != "correct"])
        keep = np.isfinite(needed).all(0)
        for name, values in columns.items():
            parts.setdefault(name, []).append(values[keep])
        flat = records.table["observation"].combine_chunks().flatten().to_numpy()
        seen.append(flat.reshape(-1, obs_dim).astype(np.float32)[keep])
    figures = {name: np.concatenate(values) for name, values in parts.items()}
    delay, energy = figures["delay_ms"], figures["energy_mj"]
    miss = (delay > world.scenario.timing.deadline_ms).astype(np.float64)
    outcomes = {
        "delay_ms": delay,
        "energy_mj": energy,
        "miss": miss,
        "cost": world.frame_cost(delay, energy, miss),
        "confidence": figures["confidence"],
    }
    if np.isfinite(figures["correct"]).all():
        outcomes["correct"] = figures["correct"]
    return Log(
        np.concatenate(seen), figures["action"].astype(np.int64), figures["propensity"], outcomes
    )
