"""``sliproad testbed campaign``: measure every action under several link conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnn.common.console import JsonFlag, SeedOption, emit_json, stderr_console
from cnn.common.outputs import check_file, check_folder
from testbed.common.output_kinds import CAMPAIGN


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

    Starts its own server and links. Interrupted, it keeps the finished blocks and resumes
    with the others when it is started again with the same settings.
    """
    check_file(out, CAMPAIGN)
    check_folder(out.with_name(f"{out.name}.blocks"))
    from rich.progress import Progress

    from cnn.bundle import load_bundle
    from testbed.costs.campaign import run_campaign
    from testbed.costs.campaign_config import DEFAULT_CONDITIONS, CampaignConfig, Condition
    from testbed.device.frame_sources import open_frames

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
