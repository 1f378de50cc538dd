"""``sliproad testbed device``: the device as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from cnn.common.console import JsonFlag, SeedOption, emit_json, given_options, warn
from cnn.common.errors import ConfigError
from cnn.common.outputs import check_file
from testbed.common.output_kinds import RECORDS
from testbed.deploy.log import quiet_libraries

CONNECT_TIMEOUT_S = 5.0
_ROW_BYTES: Final = 400
"""Of one frame in a record file, with what an explorer adds (measured: 373 of random figures)."""
MAX_FRAMES = 100_000_000
"""Four months at ten a second; what runs longer is unattended and has a --config."""


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
    server: Annotated[
        str | None, typer.Option(help="MEC server (or the link before it), HOST:PORT.")
    ] = None,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Run without a server; offloads fall back.")
    ] = False,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file written by `sliproad agent export`.")
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="One action for every frame instead, such as e3s1.")
    ] = None,
    explore: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of frames, 0..1, whose action is drawn at random; records then hold "
            "every decision's propensity and observation.",
        ),
    ] = 0.0,
    frames: Annotated[
        str, typer.Option(help="Frame source: gtsrb:PART, folder:PATH, render, or camera:0.")
    ] = "render",
    frame_encoding: Annotated[
        str, typer.Option(help="How split 0 sends the frame: raw, webp or jpeg[:QUALITY].")
    ] = "raw",
    data: Annotated[
        Path | None, typer.Option(help="GTSRB folder; gtsrb in SLIPROAD_DATA if left out.")
    ] = None,
    n_frames: Annotated[int, typer.Option(min=1, max=MAX_FRAMES, help="Frames to process.")] = 300,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=10_000,
            help="Camera frames per second, 0: next when free; the policy's (10) if left out.",
        ),
    ] = None,
    pace: Annotated[
        str | None,
        typer.Option(
            help="Emulate a slower device: a cost model's file, or shipped. Scaled to the full "
            "local time that the policy is told. The machine as it is if left out."
        ),
    ] = None,
    timeout_ms: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=600_000,
            help="Milliseconds after which an answer is given up; the policy's (250) if left out.",
        ),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=600_000,
            help="Milliseconds of delay beyond which a frame counts as missed; "
            "the policy's (100) if left out.",
        ),
    ] = None,
    max_queue_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=3_600_000,
            help="Milliseconds of queueing beyond which a frame is skipped; "
            "the policy's (200) if left out.",
        ),
    ] = None,
    breaker: Annotated[
        int,
        typer.Option(min=0, help="Failures in a row that stop offloading until a probe; 0: off."),
    ] = 0,
    probe_budget: Annotated[
        float, typer.Option(min=0, help="Most probes of the link a minute while idle; 0: none.")
    ] = 0.0,
    probe_bytes: Annotated[
        int, typer.Option(min=0, help="Padding of a probe in bytes; 0 measures the round trip.")
    ] = 0,
    probe_stale_s: Annotated[
        float, typer.Option(min=0, help="Seconds after which the last transfer is too old.")
    ] = 2.0,
    meter: Annotated[
        str, typer.Option(help="Energy meter: model, rapl, jetson, battery, nvml or none.")
    ] = "model",
    power: Annotated[
        str | None,
        typer.Option(
            help="Power profile of the model meter, DEVICE+MODEM; "
            "the policy's (jetson-nano+5g-nsa-lowband) if left out."
        ),
    ] = None,
    accuracy_floor: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Accuracy constraint that the policy is told, 0..1; its own (0.95) if left out.",
        ),
    ] = None,
    delay_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Weight of delay against energy that the policy is told, 0..1; "
            "its own (0.5) if left out.",
        ),
    ] = None,
    full_local: Annotated[
        float | None,
        typer.Option(
            "--full-local-ms",
            min=0.01,
            max=100_000,
            help="Milliseconds of full local processing that the policy is told; its own if left "
            "out, or measured in a tight loop if it has none.",
        ),
    ] = None,
    tech: Annotated[
        str | None,
        typer.Option(help="Radio technology, 5G or LTE; the policy's (5G) if left out."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Model bundle folder; the shipped one if left out.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, max=256, help="Threads of the device's runtime.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Parquet file for one row a frame; none if left out.")
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM authority of the server, or `system` for the public ones. Any --tls option "
            "means TLS; without this one, `system` is meant."
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate of this device.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of this device.")] = None,
    tls_name: Annotated[
        str | None,
        typer.Option(
            help="Name in the server's certificate, where it differs from --server's host."
        ),
    ] = None,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Run a device: every frame is decided on, computed, sent if so decided, and measured.

    A policy file brings its task: what it is told, the pace of the frames, the patience with the
    server. An option that contradicts it is used, and said so. In brackets: without a policy file.

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
    from cnn.bundle import load_bundle
    from cnn.runtime import SplitRuntime
    from testbed.cli.device_run import (
        chosen_policy,
        chosen_task,
        explorer_of,
        report,
        run_device,
    )
    from testbed.device.device_loop import Device, DeviceConfig
    from testbed.device.frame_sources import open_frames, prepared
    from testbed.device.processor import Pace, full_local_ms, speed_note
    from testbed.meters.available import open_meter
    from testbed.policy.observer import Observer
    from testbed.records.run_summary import summarise
    from testbed.wire.address import parse_address, parse_host
    from testbed.wire.client import MecClient
    from testbed.wire.tls import client_tls

    if (server is None) == (not local_only):
        raise ConfigError(
            f"--server {server} and --local-only"
            if local_only
            else "neither --server nor --local-only",
            expected="exactly one of the two",
            hint="give the server's HOST:PORT, or --local-only",
        )
    if server is not None:
        parse_address(server, "--server")
    tls = client_tls(
        tls_ca, tls_cert, tls_key, None if tls_name is None else parse_host(tls_name, "--tls-name")
    )
    if tls is not None and server is None:
        raise ConfigError(
            "TLS options with --local-only",
            expected="TLS options with --server",
            hint="leave them out, or give the server",
        )
    if out is not None:
        check_file(out, RECORDS, room=_ROW_BYTES * n_frames)
    model = load_bundle(bundle)
    chosen, own = chosen_policy(policy, action, model.hash)
    given = {
        "tech": tech,
        "accuracy_floor": accuracy_floor,
        "delay_share": delay_share,
        "full_local_ms": full_local,
        "period_ms": 1e3 / fps if fps else fps,
        "timeout_ms": timeout_ms,
        "deadline_ms": deadline_ms,
        "max_queue_ms": max_queue_ms,
        "power": power,
    }
    task = chosen_task(policy, own, given)
    config = DeviceConfig(
        period_ms=task.period_ms,
        timeout_ms=task.timeout_ms,
        deadline_ms=task.deadline_ms,
        max_queue_ms=task.max_queue_ms,
        pace=Pace.load(pace, task.full_local_ms) if pace is not None else None,
        breaker_failures=breaker,
        seed=seed,
        frame_encoding=frame_encoding,
        probe_budget_per_min=probe_budget,
        probe_bytes=probe_bytes,
        probe_stale_s=probe_stale_s,
    )
    explorer = explorer_of(chosen, explore, seed) if explore else None
    acting = explorer or chosen
    runtime = SplitRuntime(model, threads)
    runtime.warm()
    own_speed_ms = None
    if config.pace is not None:
        own_speed_ms = config.pace.full_local_ms
    elif full_local is None:
        own_speed_ms = full_local_ms(runtime)
    if note := speed_note(own_speed_ms, task.full_local_ms):
        warn(note)
    settings = task.settings(own_speed_ms)
    stream = open_frames(frames, model.config.input_size, seed=seed, data=data, n=n_frames)
    if not frames.startswith("camera:"):
        stream = prepared(stream)
    for complaint in tls.complaints() if tls is not None else ():
        warn(complaint)
    client = MecClient(server, model.hash, tls) if server is not None else None
    source = {
        "kind": "device",
        "bundle_hash": model.hash,
        "policy": acting.name,
        "frames": frames,
        "seed": seed,
        "server": server,
        "emulation": config.describe(),
        "period_ms": config.period_ms,
        "timeout_ms": config.timeout_ms,
        "max_queue_ms": config.max_queue_ms,
        "task": {**task.to_json(), "full_local_ms": settings.full_local_ms},
        "frame_encoding": frame_encoding,
        "probe_budget_per_min": probe_budget,
        "probe_bytes": probe_bytes,
        "probe_stale_s": probe_stale_s,
    }
    try:
        if client is not None:
            client.connect(CONNECT_TIMEOUT_S)
        with open_meter(meter, task.power) as reader:
            unit = Device(runtime, client, acting, Observer(settings), reader, config)
            rows = run_device(unit, stream, n_frames, out, source, explorer)
    finally:
        if client is not None:
            client.close()
    result = {"policy": acting.name, **summarise(rows, config.deadline_ms)}
    result["probes"] = sum(row.probes for row in rows)
    result["probe_bytes"] = sum(row.probe_bytes for row in rows)
    result["pace"] = None if unit.pace_kept is None else unit.pace_kept.to_json()
    result["records"] = str(out) if out is not None and rows else None
    report(result)
    if unit.pace_kept is not None:
        typer.echo(unit.pace_kept.describe())
    if json:
        emit_json(result)


def _from_file(context: typer.Context, path: Path, check: bool, json: bool) -> None:
    """Run, or check, the device that a configuration file describes."""
    from testbed.deploy.device_file import load_device_file
    from testbed.deploy.log import logged

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
        from testbed.deploy.preflight import preflight

        for line in preflight(file):
            typer.echo(line)
        typer.echo(f"{path} is fit to run")
        return
    with logged(file.log.format, file.log.level):  # before libraries that write are loaded
        from testbed.deploy.device_service import DeviceService

        result = DeviceService(file).run()
    if json:
        emit_json(result)
