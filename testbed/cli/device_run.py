"""One run of a device from the command line: its policy, its rows, its figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from cnn.common.console import stderr_console, warn
from cnn.common.errors import ConfigError

if TYPE_CHECKING:
    from testbed.device.device_loop import Device
    from testbed.policy.exploration import ExploringPolicy
    from testbed.policy.policies import Policy
    from testbed.policy.task_settings import Task
    from testbed.records.measurement import Measurement


TASK_FLAGS: Final = {
    "tech": "--tech",
    "accuracy_floor": "--accuracy-floor",
    "delay_share": "--delay-share",
    "full_local_ms": "--full-local-ms",
    "period_ms": "--fps",
    "timeout_ms": "--timeout-ms",
    "deadline_ms": "--deadline-ms",
    "max_queue_ms": "--max-queue-ms",
    "power": "--power",
}
"""The flag of each field of a task that the command line may set."""


def chosen_policy(
    path: Path | None, action: str | None, bundle_hash: str
) -> tuple[Policy, Task | None]:
    """The policy of a file and its task, or one action for every frame.

    Raises:
        ConfigError: unless exactly one of the two is given.
        BundleError: if the file cannot be used.
    """
    from cnn.topology import Action
    from testbed.policy.network_policy import policy_from_bundle
    from testbed.policy.policies import StaticPolicy
    from testbed.policy.policy_file import PolicyBundle

    if (path is None) == (action is None):
        raise ConfigError(
            "neither --policy nor --action" if path is None else f"--policy {path} and --action",
            expected="exactly one of the two",
            hint="give a policy file, or an action such as e3s1",
        )
    if path is None:
        return StaticPolicy(Action.parse(action or "")), None
    bundle = PolicyBundle.load(path)
    bundle.check_fit(bundle_hash)
    return policy_from_bundle(bundle), bundle.task


def chosen_task(policy: Path | None, task: Task | None, given: dict[str, Any]) -> Task:
    """The task that the device runs; what contradicts the policy's, or is assumed, is said.

    Args:
        policy: the policy file, if there is one.
        task: what it says.
        given: flags by field of the task; None is not given.
    """
    from testbed.policy.task_settings import assumptions_note, contradictions, effective_task

    found = effective_task(task, given)
    if policy is not None and task is None:
        warn(assumptions_note(policy, given))
    for line in contradictions(task, given, TASK_FLAGS):
        warn(line)
    return found


def explorer_of(policy: Policy, epsilon: float, seed: int) -> ExploringPolicy:
    """The policy, exploring; raises `ConfigError` for a staged one."""
    from testbed.policy.decision_points import FRAME
    from testbed.policy.exploration import ExploringPolicy

    if policy.space is not FRAME:
        raise ConfigError(
            f"--explore {epsilon:g} with a staged policy",
            expected="a policy that decides once a frame",
            hint="leave --explore out, or give another policy",
        )
    return ExploringPolicy(policy, epsilon, seed)


def run_device(
    unit: Device,
    stream: Any,
    n: int,
    out: Path | None,
    source: dict[str, Any],
    explorer: ExploringPolicy | None = None,
) -> list[Measurement]:
    """Run to the end or a signal; rows go to `out` as they come."""
    import contextlib
    import signal
    import sys

    from rich.progress import track

    from testbed.deploy.log import logged
    from testbed.device.processor import keep_collector_short
    from testbed.records.record_file import RecordWriter, provenance

    def on_signal(number: int, frame: object) -> None:
        unit.stop()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.default_int_handler)  # a second one ends at once

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    keep_collector_short()
    rows: list[Measurement] = []
    started = provenance(**source)
    extra = explorer.column_types() if explorer is not None else None
    writer = RecordWriter(out, started, extra) if out is not None else None
    try:
        # Frames go on if nobody reads standard error; a terminal shows the bar itself.
        log = contextlib.nullcontext() if sys.stderr.isatty() else logged("text", "warning")
        with log, writer or contextlib.nullcontext():
            measured = unit.run(explorer.following(stream) if explorer is not None else stream)
            for row in track(measured, "frames", total=n, console=stderr_console()):
                rows.append(row)
                if writer is not None:
                    more = explorer.columns(row.frame_id) if explorer is not None else {}
                    writer.write(row, **more)
            if writer is not None and unit.origin_s is not None:
                since_s = unit.origin_s - started["started_monotonic_s"]
                kept = {} if unit.pace_kept is None else unit.pace_kept.to_source()
                writer.close(first_capture_unix_s=started["started_unix_s"] + since_s, **kept)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return rows


def report(result: dict[str, Any]) -> None:
    """Print the figures of a run."""

    def figure(name: str, unit: str = "", digits: int = 2) -> str:
        value = result[name]
        return "not measured" if value is None else f"{value:.{digits}f}{unit}"

    typer.echo(f"{result['frames']} frames, policy {result['policy']}")
    typer.echo(f"delay {figure('delay_ms')} ms mean, {figure('delay_p95_ms')} ms p95")
    typer.echo(f"energy {_energy(result)} ({result['energy_source'] or 'no meter'})")
    typer.echo(f"accuracy {figure('accuracy', digits=4)}, misses {figure('miss_rate', digits=4)}")
    typer.echo(f"status {result['status']} {result['reasons'] or ''}".rstrip())


def _energy(result: dict[str, Any]) -> str:
    """Mean energy, and of how many frames it is the mean if not of all."""
    if result["energy_mj"] is None:
        return "not measured"
    measured, frames = result["energy_frames"], result["frames"]
    share = "" if measured == frames else f", measured in {measured} of {frames} frames"
    return f"{result['energy_mj']:.2f} mJ a frame{share}"
