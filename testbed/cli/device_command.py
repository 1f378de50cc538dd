"""``sliproad testbed device``: the device as a process; its flags fill the device's file."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_type_hints

import typer

from cnn.common.console import JsonFlag, emit_json, given_options, stderr_console, warn
from cnn.common.errors import MAX_SEED, ConfigError
from testbed.deploy.device_file import PATHS, DeviceFile, load_device_file
from testbed.deploy.log import logged, quiet_libraries

if TYPE_CHECKING:
    from testbed.records.measurement import Measurement

MAX_FPS: Final = 10_000
MAX_FRAMES: Final = 100_000_000
"""Four months at ten a second; a longer run is unattended and uses --config."""
ATTENDED: Final[dict[str, Any]] = {
    "frames.count": 300,
    "frames.breaker_failures": 0,
    "log.level": "warning",
    "log.every_s": 0.0,
}
"""Defaults of an attended run that differ from the file's: it ends, offloads like the simulator,
and reports only problems."""


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of the command line that sets a key of the device's file.

    Attributes:
        name: of the option.
        key: ``section.key``; it gives the option's type, default and range.
        help: help text.
        most: highest value on the command line, if the file's is not useful there.
    """

    name: str
    key: str
    help: str
    most: int | None = None

    @property
    def parameter(self) -> str:
        """Its name in Python."""
        return self.name.removeprefix("--").replace("-", "_")

    def option(self) -> inspect.Parameter:
        """The parameter of the command; the default None leaves the value to the policy."""
        section, _, name = self.key.partition(".")
        kind = get_type_hints(DeviceFile)[section]
        (key,) = (each for each in fields(kind) if each.name == name)
        of_file = get_type_hints(kind)[name]
        (base,) = (k for k in get_args(of_file) or (of_file,) if k is not type(None))
        base = Path if name in PATHS.get(section, ()) else base
        low, high = (0, MAX_FPS) if name == "period_ms" else key.metadata.get("range", (None, None))
        option = typer.Option(self.name, help=self.help, min=low, max=self.most or high)
        return inspect.Parameter(
            self.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=ATTENDED.get(self.key, key.default),
            annotation=Annotated[base | None, option],
        )


FLAGS: Final = (
    Flag("--server", "server.address", "MEC server (or the link before it), HOST:PORT."),
    Flag(
        "--policy",
        "bundles.policy",
        "Policy file written by `sliproad agent export`, or a plug-in's name.",
    ),
    Flag("--action", "bundles.action", "One action for every frame instead, such as e3s1."),
    Flag(
        "--explore",
        "bundles.explore",
        "Share of frames, 0..1, whose action is drawn at random; records then hold every "
        "decision's propensity and observation.",
    ),
    Flag(
        "--frames",
        "frames.source",
        "Frame source: gtsrb:PART, folder:PATH, render, camera:0, or a plug-in's NAME[:SETTING].",
    ),
    Flag(
        "--frame-encoding",
        "server.frame_encoding",
        "How split 0 sends the frame: raw, webp or jpeg[:QUALITY].",
    ),
    Flag("--data", "frames.data", "GTSRB folder; gtsrb in SLIPROAD_DATA if left out."),
    Flag("--n-frames", "frames.count", "Frames to process; 0 runs until stopped.", MAX_FRAMES),
    Flag(
        "--fps",
        "frames.period_ms",
        "Camera frames per second, 0: next when free; the policy's (10) if left out.",
    ),
    Flag(
        "--pace",
        "frames.pace",
        "Emulate a slower device: a device profile's file, or shipped. Scaled to the full local "
        "time that the policy is told. The machine as it is if left out.",
    ),
    Flag(
        "--timeout-ms",
        "frames.timeout_ms",
        "Milliseconds after which an answer is given up; the policy's (250) if left out.",
    ),
    Flag(
        "--deadline-ms",
        "frames.deadline_ms",
        "Milliseconds of delay beyond which a frame counts as missed; the policy's (100) if left "
        "out.",
    ),
    Flag(
        "--max-queue-ms",
        "frames.max_queue_ms",
        "Milliseconds of queueing beyond which a frame is skipped; the policy's (200) if left out.",
    ),
    Flag(
        "--breaker",
        "frames.breaker_failures",
        "Failures in a row that stop offloading until a probe; 0: off.",
    ),
    Flag(
        "--probe-budget",
        "server.probe_budget_per_min",
        "Most probes of the link a minute while idle; 0: none.",
    ),
    Flag(
        "--probe-bytes",
        "server.probe_bytes",
        "Padding of a probe in bytes; 0 measures the round trip.",
    ),
    Flag(
        "--probe-stale-s",
        "server.probe_stale_s",
        "Seconds after which the last transfer is too old.",
    ),
    Flag(
        "--meter",
        "meter.name",
        "Energy meter that `sliproad testbed doctor` lists, none, or a plug-in's NAME[:SETTING].",
    ),
    Flag(
        "--power",
        "meter.power",
        "Power profile of the model meter, DEVICE+MODEM, each a shipped name or a file; the "
        "policy's (jetson-nano+5g-nsa-lowband) if left out.",
    ),
    Flag(
        "--accuracy-floor",
        "drive.accuracy_floor",
        "Accuracy constraint that the policy is told, 0..1; its own (0.95) if left out.",
    ),
    Flag(
        "--delay-share",
        "drive.delay_share",
        "Weight of delay against energy that the policy is told, 0..1; its own (0.5) if left out.",
    ),
    Flag(
        "--full-local-ms",
        "drive.full_local_ms",
        "Milliseconds of full local processing that the policy is told; its own if left out, or "
        "measured in a tight loop if it has none.",
    ),
    Flag("--tech", "drive.tech", "Radio technology, 5G or LTE; the policy's (5G) if left out."),
    Flag("--bundle", "bundles.model", "Model bundle folder; the shipped one if left out."),
    Flag("--threads", "bundles.threads", "Threads of the device's runtime."),
    Flag(
        "--providers",
        "bundles.providers",
        "ONNX Runtime's execution providers, NAME[,NAME]; `sliproad testbed doctor` lists those "
        "that are here.",
    ),
    Flag("--out", "records.file", "Parquet file for one row a frame; none if left out."),
    Flag(
        "--tls-ca",
        "server.tls_ca",
        "PEM authority of the server, or `system` for the public ones. Any --tls option means "
        "TLS; without this one, `system` is meant.",
    ),
    Flag("--tls-cert", "server.tls_cert", "PEM certificate of this device."),
    Flag("--tls-key", "server.tls_key", "PEM private key of this device."),
    Flag(
        "--tls-name",
        "server.tls_name",
        "Name in the server's certificate, where it differs from --server's host.",
    ),
    Flag("--seed", "frames.seed", "Seed of everything random, from 0.", MAX_SEED),
)


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add `FLAGS` as options to `command`, which takes them as keyword arguments."""
    own = inspect.signature(command, eval_str=True)
    named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in named]
    parameters += [flag.option() for flag in FLAGS]
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


@with_flags
def device(
    context: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Configuration file (TOML) of an unattended device, instead of other options.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="With --config: try all that a run needs (bundles, meter, first frame, "
            "folders, ports), and end.",
        ),
    ] = False,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Run without a server; offloads fall back.")
    ] = False,
    json: JsonFlag = False,
    **flags: Any,
) -> None:
    """Run a device: every frame is decided on, computed, sent if so decided, and measured.

    A policy file brings its task: the settings in its observation, the pace of the frames, the
    time-out. An option that contradicts it is used, and said so. In brackets: without a policy
    file.

    Ends after the given number of frames, or cleanly at SIGTERM or Ctrl-C, with what was
    measured written.
    """
    quiet_libraries()
    if config_file is not None:
        _from_file(context, config_file, check, json)
        return
    if check:
        raise ConfigError(
            "--check without --config",
            expected="the configuration file to check",
            hint="give it with --config",
        )
    file = file_of_flags({flag.name: flags[flag.parameter] for flag in FLAGS}, local_only)
    from rich.progress import track

    from testbed.deploy.device_service import Attended, DeviceService

    def progress(rows: Iterable[Measurement]) -> Iterable[Measurement]:
        n = file.frames.count or None
        return track(rows, "frames", total=n, console=stderr_console())

    attended = Attended(warn, {flag.key: flag.name for flag in FLAGS}, progress)
    service = DeviceService(file, attended)
    # Frames continue if standard error is not read; a terminal shows the bar itself.
    terminal = sys.stderr.isatty()
    with contextlib.nullcontext() if terminal else logged(file.log.format, file.log.level):
        result = service.run()
    report(result)
    if json:
        emit_json(result)


def file_of_flags(given: dict[str, Any], local_only: bool) -> DeviceFile:
    """The device's file made from the options, checked.

    Args:
        given: values by name of the flag; None means not given.
        local_only: whether the device is to have no server.

    Raises:
        ConfigError: naming the flag, if a value is impossible or flags contradict each other.
    """
    given = {name: value for name, value in given.items() if value is not None}
    server = given.get("--server")
    if (server is None) == (not local_only):
        both = f"--server {server} and --local-only"
        raise ConfigError(
            both if local_only else "neither --server nor --local-only",
            expected="exactly one of the two",
            hint="give the server's HOST:PORT, or --local-only",
        )
    if server is None and any(name.startswith("--tls-") for name in given):
        raise ConfigError(
            "TLS options with --local-only",
            expected="TLS options with --server",
            hint="leave them out, or give the server",
        )
    policy, action = given.get("--policy"), given.get("--action")
    if (policy is None) == (action is None):
        raise ConfigError(
            f"--policy {policy} and --action" if policy else "neither --policy nor --action",
            expected="exactly one of the two",
            hint="give a policy file, or an action such as e3s1",
        )
    if fps := given.get("--fps"):
        given = {**given, "--fps": 1e3 / fps}
    values: dict[str, dict[str, Any]] = {}
    keys = {flag.name: flag.key for flag in FLAGS}
    for key, value in (ATTENDED | {keys[name]: v for name, v in given.items()}).items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = str(value) if isinstance(value, Path) else value
    sections, kinds = {}, get_type_hints(DeviceFile)
    for section, of_section in values.items():
        try:
            sections[section] = kinds[section](**of_section)
        except ConfigError as error:
            name, _, rest = error.given.partition(" ")
            flags = {key: flag for flag, key in keys.items()}
            raise ConfigError(
                f"{flags.get(f'{section}.{name}', name)} {rest}",
                expected=error.expected,
                hint="correct the option",
            ) from None
    return DeviceFile(**sections)


def _from_file(context: typer.Context, path: Path, check: bool, json: bool) -> None:
    """Run, or check, the device that a configuration file describes."""
    alone = {"config_file", "check", "json"}
    beside = sorted(name.replace("_", "-") for name in given_options(context) - alone)
    if beside:
        raise ConfigError(
            f"--config together with --{', --'.join(beside)}",
            expected="--config alone (or with --check or --json)",
            hint="put the setting into the file",
        )
    file = load_device_file(path)
    if check:
        from testbed.deploy.assembly import preflight

        for line in preflight(file):
            typer.echo(line)
        typer.echo(f"{path} is fit to run")
        return
    with logged(file.log.format, file.log.level):  # before libraries that write there are loaded
        from testbed.deploy.device_service import DeviceService

        result = DeviceService(file).run()
    if json:
        emit_json(result)


def report(result: dict[str, Any]) -> None:
    """Print the figures of a run (`testbed.records.run_summary`, and how its pace was kept)."""

    def figure(name: str, unit: str = "", digits: int = 2) -> str:
        value = result[name]
        return "not measured" if value is None else f"{value:.{digits}f}{unit}"

    energy = figure("energy_mj", " mJ a frame")
    measured, frames = result["energy_frames"], result["frames"]
    if 0 < measured < frames:
        energy += f", measured in {measured} of {frames} frames"
    typer.echo(f"{frames} frames, policy {result['policy']}")
    typer.echo(f"delay {figure('delay_ms')} ms mean, {figure('delay_p95_ms')} ms p95")
    typer.echo(f"energy {energy} ({result['energy_source'] or 'no meter'})")
    typer.echo(f"accuracy {figure('accuracy', digits=4)}, misses {figure('miss_rate', digits=4)}")
    typer.echo(f"status {result['status']} {result['reasons'] or ''}".rstrip())
    if pace := result.get("pace"):
        from testbed.device.processor import PaceKept

        late = round(pace["late_share"] * pace["sections"])
        typer.echo(PaceKept(pace["sections"], late).describe())
