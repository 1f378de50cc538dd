"""``sliproad testbed campaign`` and ``fit``: measure every action, then model what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cnn.console import JsonFlag, SeedOption, emit_json, stderr_console


def campaign(
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
    rounds: Annotated[int, typer.Option(min=1, help="Blocks for each condition.")] = 3,
    repetitions: Annotated[
        int, typer.Option(min=1, help="Frames for each action in a block.")
    ] = 10,
    warm_up: Annotated[
        int, typer.Option(min=0, help="Frames at the start of a block that do not count.")
    ] = 10,
    repeats: Annotated[
        int,
        typer.Option(min=0, help="Times that blocks on a disturbed machine are measured again."),
    ] = 0,
    pause_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds of rest before every frame.")
    ] = 50.0,
    timeout_ms: Annotated[
        float, typer.Option(help="Milliseconds after which an answer is given up.")
    ] = 5000.0,
    slowdown: Annotated[
        float, typer.Option(help="Emulate a device slower by this factor, at least 1.")
    ] = 1.0,
    device_quota: Annotated[
        float | None,
        typer.Option(help="CPU quota of the device, share of one core in (0, 1] (root)."),
    ] = None,
    meter: Annotated[
        str, typer.Option(help="Energy meter: model, rapl, jetson, battery or nvml.")
    ] = "model",
    power: Annotated[
        str, typer.Option(help="Power profile of the model meter, DEVICE+MODEM.")
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
    server_threads: Annotated[int, typer.Option(min=1, help="Threads of the server.")] = 1,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Measure every action under several link conditions, in random order.

    Starts its own server and links. Interrupted, it keeps the finished blocks and goes on
    with the others when it is started again with the same settings.
    """
    from rich.progress import Progress

    from cnn.bundle import load_bundle
    from testbed.costs.campaign import (
        DEFAULT_CONDITIONS,
        CampaignConfig,
        Condition,
        run_campaign,
    )
    from testbed.device.frames import open_frames

    config = CampaignConfig(
        conditions=tuple(map(Condition.parse, condition)) if condition else DEFAULT_CONDITIONS,
        rounds=rounds,
        repetitions=repetitions,
        warm_up=warm_up,
        pause_ms=pause_ms,
        repeats=repeats,
        timeout_ms=timeout_ms,
        slowdown=slowdown,
        power=power,
        meter=meter,
        device_threads=threads,
        server_threads=server_threads,
        device_quota=device_quota,
        seed=seed,
    )
    model = load_bundle(bundle)
    stream = open_frames(frames, model.config.input_size, seed=seed, data=data)
    with Progress(console=stderr_console()) as bar:
        task = bar.add_task("frames", total=config.n_frames)
        rows = run_campaign(
            config,
            model,
            stream,
            out,
            progress=lambda n: bar.advance(task, n),
        )
    typer.echo(f"{rows} frames in {out}")
    if json:
        emit_json({"records": str(out), "frames": rows, "bundle_hash": model.hash})


def fit(
    records: Annotated[Path, typer.Option(help="Parquet file of a campaign.")] = Path(
        "runs/campaign.parquet"
    ),
    out: Annotated[Path | None, typer.Option(help="Cost model to write, JSON.")] = None,
    name: Annotated[str, typer.Option(help="Name of the cost model.")] = "measured",
    report: Annotated[
        Path | None, typer.Option(help="Folder for fit.md and pictures; none if left out.")
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Bootstrap fits for the intervals; 0: no intervals.")
    ] = 200,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Fit the models of delay (ms) and device energy (mJ) to a campaign.

    Errors are those on held-out conditions: each condition is predicted by a fit to the
    others. The model written to --out uses all conditions.
    """
    import hashlib

    from testbed.costs import fit_check
    from testbed.costs.fit import cost_model, fit_samples
    from testbed.costs.fit_report import write_report
    from testbed.costs.measured_power import powers_of
    from testbed.costs.samples import payloads_of, samples_of
    from testbed.records.parquet import read_records

    measured = read_records(records)
    samples = samples_of(measured)
    slowdown = float(measured.source["slowdown"])
    payloads = payloads_of(measured)
    powers = powers_of(measured, samples)
    fitted = fit_samples(samples, slowdown, payloads)
    held_out = fit_check.hold_out(samples, slowdown, payloads, powers)
    model = cost_model(
        fitted,
        payloads,
        powers,
        name=name,
        source=_source(measured.source, hashlib.sha256(records.read_bytes()).hexdigest()),
        bundle_hash=measured.source["bundle_hash"],
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
    if json:
        emit_json(result)


def _source(source: dict[str, Any], digest: str) -> str:
    return (
        f"measured: campaign {digest[:16]} of {source['created']} on {source['cpu']}, "
        f"{source['emulation']}"
    )


def _print(result: dict[str, Any]) -> None:
    typer.echo(f"{result['frames']} frames, conditions {', '.join(result['conditions'])}")
    typer.echo("held-out conditions, median frame of each action:")
    for what in ("delay", "energy"):
        error, r2 = result[f"{what}_mape"], result[f"r2_{what}"]
        typer.echo(f"  {what}: mean error {error:.2%}, R2 {r2:.4f}")
    worst = max(result["by_action"].items(), key=lambda item: item[1]["delay_mape"])
    typer.echo(f"  worst action for delay: {worst[0]}, {worst[1]['delay_mape']:.2%}")
    typer.echo("coefficients (ms):")
    for name, value in result["coefficients"].items():
        low, high = result["intervals"].get(name, (None, None))
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        typer.echo(f"  {name:24s} {value:8.4f}{interval}")
