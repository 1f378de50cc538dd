"""``sliproad testbed campaign`` and ``fit``: measure, and fit the practical models to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnn.common.console import (
    JsonFlag,
    SeedOption,
    emit_json,
    given_options,
    stderr_console,
    warn,
)
from cnn.common.errors import ConfigError, DataError
from cnn.common.outputs import check_file, check_folder
from cnn.common.outside import refusing
from testbed.common.output_kinds import CAMPAIGN, COST_MODEL, FIT_REPORT

if TYPE_CHECKING:
    from testbed.records.record_file import Records


def campaign(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Parquet file of all measurements.")] = Path(
        "runs/campaign.parquet"
    ),
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="Constant link as MBPS/RTT_MS, such as 8/80; repeat for several. "
            "Five conditions from 1.5/45 to 90/10 if left out."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Blocks for each condition.")] = 3,
    repetitions: Annotated[
        int, typer.Option(min=1, max=10_000, help="Frames for each action in a block.")
    ] = 10,
    warm_up: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="Frames at the start of a block that do not count."),
    ] = 10,
    repeats: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="Times that blocks on a disturbed machine are measured again."
        ),
    ] = 0,
    pause_ms: Annotated[
        float,
        typer.Option(min=0, max=600_000, help="Milliseconds of rest before every frame."),
    ] = 50.0,
    timeout_ms: Annotated[
        float,
        typer.Option(min=1, max=600_000, help="Milliseconds after which an answer is given up."),
    ] = 5000.0,
    meter: Annotated[
        str, typer.Option(help="Energy meter, as `sliproad testbed doctor` lists them.")
    ] = "model",
    power: Annotated[
        str,
        typer.Option(
            help="Power profile of the model meter, DEVICE+MODEM, each a shipped name or a file."
        ),
    ] = "jetson-nano+5g-nsa-lowband",
    frames: Annotated[
        str, typer.Option(help="Frame source: gtsrb:PART, folder:PATH or render.")
    ] = "render",
    data: Annotated[
        Path | None, typer.Option(help="GTSRB folder; gtsrb in SLIPROAD_DATA if left out.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Model bundle folder; the shipped one if left out.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the device's runtime.")] = 1,
    providers: Annotated[
        str,
        typer.Option(
            help="ONNX Runtime's execution providers of the device, NAME[,NAME]; "
            "`sliproad testbed doctor` lists those that are here."
        ),
    ] = "CPUExecutionProvider",
    server: Annotated[
        str | None,
        typer.Option(
            help="A running MEC server, HOST:PORT, on another machine; one is started here if left "
            "out."
        ),
    ] = None,
    server_threads: Annotated[
        int, typer.Option(min=1, help="Threads of the server that is started here.")
    ] = 1,
    tls_ca: Annotated[
        str | None,
        typer.Option(
            help="PEM authority of --server, or `system` for the public ones. Any --tls option "
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
    """Measure every action under several link conditions, in random order.

    Device times are measured here, server times by the server: its own, which it starts, or
    --server's, which it waits for if the connection is lost. Interrupted, it keeps the finished
    blocks and resumes with the others when it is started again with the same settings.
    """
    check_file(out, CAMPAIGN)
    check_folder(out.with_name(f"{out.name}.blocks"))
    _check_server_options(context, server)
    from rich.progress import Progress

    from cnn.bundle import load_bundle
    from cnn.ort import checked_providers
    from testbed.costs.campaign import run_campaign
    from testbed.costs.campaign_config import DEFAULT_CONDITIONS, CampaignConfig, Condition
    from testbed.device.frame_sources import open_frames
    from testbed.meters.power import power_profile
    from testbed.wire.tls import client_tls

    config = CampaignConfig(
        conditions=tuple(map(Condition.parse, condition)) if condition else DEFAULT_CONDITIONS,
        rounds=rounds,
        repetitions=repetitions,
        warm_up=warm_up,
        pause_ms=pause_ms,
        repeats=repeats,
        timeout_ms=timeout_ms,
        power=power,
        meter=meter,
        device_threads=threads,
        server_threads=server_threads,
        providers=checked_providers(providers.split(",")),
        server=server,
        seed=seed,
    )
    power_profile(power)  # a bad one is refused before anything is measured
    tls = client_tls(tls_ca, tls_cert, tls_key, tls_name)
    model = load_bundle(bundle)
    size, names = model.config.input_size, model.class_names
    stream = open_frames(frames, size, seed=seed, data=data, class_names=names)
    with Progress(console=stderr_console()) as bar:
        task = bar.add_task("frames", total=config.n_frames(model.topology))
        rows = run_campaign(
            config,
            model,
            stream,
            out,
            progress=lambda n: bar.advance(task, n),
            tls=tls,
            say=lambda line: bar.console.print(line, highlight=False, markup=False, soft_wrap=True),
        )
    typer.echo(f"{rows} frames in {out}")
    if json:
        emit_json({"records": str(out), "frames": rows, "bundle_hash": model.hash})


def _check_server_options(context: typer.Context, server: str | None) -> None:
    """Raise `ConfigError` if options of one kind of server are given with the other."""
    given = given_options(context)
    if server is None:
        wrong = sorted(name for name in given if name.startswith("tls_"))
    else:
        wrong = sorted(given & {"server_threads"})
    if wrong:
        raise ConfigError(
            f"--{wrong[0].replace('_', '-')} with"
            + ("out --server" if server is None else f" --server {server}"),
            expected="--tls options with --server, --server-threads without",
            hint="leave it out; `sliproad testbed serve` has its own --threads",
        )


def fit(
    records: Annotated[
        Path,
        typer.Option(help="Parquet file of a campaign; or record file or folder of a device."),
    ] = Path("runs/campaign.parquet"),
    base: Annotated[
        str | None,
        typer.Option(
            help="With a device's records: cost model for what they do not show, a file or "
            "`shipped`."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Cost model to write, JSON.")] = None,
    name: Annotated[str, typer.Option(help="Name of the cost model.")] = "measured",
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for fit.md and pictures of a campaign; none if left out."),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(
            min=0, max=100_000, help="Bootstrap fits for a campaign's intervals; 0: no intervals."
        ),
    ] = 200,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Fit the models of delay (ms) and device energy (mJ) to a campaign or a device's records.

    Of a campaign, errors are those on held-out conditions: each condition is predicted by a fit
    to the others; the model written to --out uses all of them. Of a device's records, errors are
    those on held-out stretches of time, given each transfer; actions that were never taken come
    from --base, scaled by what was measured, and the model says which.
    """
    if out is not None:
        check_file(out, COST_MODEL, room=65_536, inputs=(records,))
    if report is not None:
        check_folder(report, FIT_REPORT)
    from testbed.costs.record_samples import COLUMNS, MAX_ROWS
    from testbed.records.measurement import check_header
    from testbed.records.record_file import read_all

    runs = read_all(records, warn, columns=COLUMNS, max_rows=MAX_ROWS)
    for run in runs:
        check_header(run.table, run.source, str(records))
    if [run.source.get("kind") for run in runs] == ["campaign"]:
        if base is not None:
            raise ConfigError(
                f"--base {base} with a campaign",
                expected="no --base: a campaign measures every action",
                hint="leave it out",
            )
        result = _of_campaign(records, runs[0], out, name, report, bootstrap, seed)
    else:
        if report is not None:
            raise ConfigError(
                f"--report {report} with a device's records",
                expected="a campaign, whose conditions the report shows",
                hint="leave it out",
            )
        result = _of_device(records, runs, base, out, name)
    if json:
        emit_json(result)


def _of_campaign(
    path: Path,
    measured: Records,
    out: Path | None,
    name: str,
    report: Path | None,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Fit a campaign, print the figures, and return them."""
    from cnn.common.outside import file_sha256
    from testbed.costs import fit_check
    from testbed.costs.cost_fit import cost_model, fit_samples
    from testbed.costs.fit_report import write_report
    from testbed.costs.samples import machine_of, payloads_of, powers_of, samples_of

    with refusing(
        DataError,
        f"records {path}",
        expected="a file written by `sliproad testbed campaign`",
        hint="measure again, or give another path",
    ):
        samples = samples_of(measured)
        slowdown = float(measured.source.get("slowdown", 1.0))  # from older campaigns
        payloads = payloads_of(measured)
        powers = powers_of(measured, samples)
        source = _source(measured.source, file_sha256(path))
        bundle_hash = str(measured.source["bundle_hash"])
    fitted = fit_samples(samples, slowdown, payloads)
    held_out = fit_check.hold_out(samples, slowdown, payloads, powers)
    model = cost_model(
        fitted,
        payloads,
        powers,
        name=name,
        source=source,
        bundle_hash=bundle_hash,
        machine=machine_of(measured.source),
    )
    result: dict[str, Any] = {
        "delay_mape": held_out.delay_mape,
        "energy_mape": held_out.energy_mape,
        "r2_delay": fit_check.r_squared(held_out.delay_ms, held_out.delay_model_ms),
        "r2_energy": fit_check.r_squared(held_out.energy_mj, held_out.energy_model_mj),
        "coefficients": fitted.coefficients(),
        "intervals": fit_check.bootstrap(samples, slowdown, payloads, n=bootstrap, seed=seed),
        "by_action": held_out.by_action(),
        "delay_mape_frames": held_out.frame_delay_mape,
        "energy_source": powers.source,
        "frames": len(samples),
        "conditions": held_out.condition,
    }
    if out is not None:
        model.save(out)
        result["cost_model"] = str(out)
    if report is not None:
        written = write_report(report, model, result, held_out, measured.source)
        result["report"] = [str(path) for path in written]
    _print(result)
    return result


def _source(source: dict[str, Any], digest: str) -> str:
    server = f", server {source['server']}" if source.get("server") else ""
    return (
        f"measured: campaign {digest[:16]} of {source['created']} on {source['cpu']}, "
        f"{source['emulation']}{server}"
    )


def _print(result: dict[str, Any]) -> None:
    typer.echo(f"{result['frames']} frames, conditions {', '.join(result['conditions'])}")
    typer.echo("held-out conditions, median frame of each action:")
    for what in ("delay", "energy"):
        error, r2 = result[f"{what}_mape"], result[f"r2_{what}"]
        known = f"mean error {error:.2%}, R2 {r2:.4f}" if math.isfinite(error) else "not measured"
        typer.echo(f"  {what}: {known}")
    worst = max(result["by_action"].items(), key=lambda item: item[1]["delay_mape"])
    typer.echo(f"  worst action for delay: {worst[0]}, {worst[1]['delay_mape']:.2%}")
    typer.echo("coefficients (ms):")
    for name, value in result["coefficients"].items():
        low, high = result["intervals"].get(name, (None, None))
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        typer.echo(f"  {name:24s} {value:8.4f}{interval}")


def _of_device(
    path: Path, runs: list[Records], base: str | None, out: Path | None, name: str
) -> dict[str, Any]:
    """Fit a device's records, print the figures, and return them."""
    from testbed.costs.record_model import model_of_records

    model, result = model_of_records(path, runs, base, name)
    if out is not None:
        model.save(out)
        result["cost_model"] = str(out)
    _print_device(result)
    return result


def _print_device(result: dict[str, Any]) -> None:
    taken = ", ".join(f"{name} {n}" for name, n in result["actions"].items())
    typer.echo(f"{result['frames']} frames: {taken}; left out: {result['left_out'] or 'none'}")
    errors = result["held_out_times"]
    typer.echo(
        f"held-out stretches, given each transfer: delay {_percent(errors['delay_mape'])}, "
        f"energy {_percent(errors['energy_mape'])} ({errors['groups']} groups)"
    )
    if result["held_out_actions"] is not None:
        errors = result["held_out_actions"]
        typer.echo(
            "held-out actions, from the others and the base: "
            f"delay {_percent(errors['delay_mape'])}, "
            f"energy {_percent(errors['energy_mape'])} ({errors['groups']} groups)"
        )
    typer.echo(f"measured: {', '.join(result['measured']) or 'no whole action'}")
    typer.echo(f"from the base, scaled: {', '.join(result['from_base']) or 'nothing'}")
    for side in ("device", "server"):
        scale = result[f"{side}_scale"]
        if scale is not None:
            typer.echo(f"{side}: {scale:.3f} times the base")


def _percent(error: float) -> str:
    return f"{error:.2%}" if math.isfinite(error) else "not measured"
