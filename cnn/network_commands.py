"""``sliproad cnn``: train, evaluate, tabulate, export and show the split network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from cnn.adapt_command import adapt
from cnn.bundle import BUNDLE, load_bundle
from cnn.common.console import JsonFlag, SeedOption, emit_json, stderr_console
from cnn.common.errors import ConfigError, require
from cnn.common.outputs import ROOM, Claim, check_file, check_folder, check_whole_folder
from cnn.model_config import PRESETS, ModelConfig
from cnn.network_command_options import (
    DIAGRAM,
    FRAME_TABLE,
    MAX_DRIVES,
    BundleOption,
    DataOption,
    DeviceOption,
    MixedPrecisionOption,
    PrecisionOption,
    ThreadsOption,
    TorchThreadsOption,
    check_run,
    checked_precision,
    data_folder,
    resumable,
)

if TYPE_CHECKING:
    from cnn.data.image_set import ImageSet

_RUN_BYTES: Final = {"embedded": 350_000_000, "paper": 1_350_000_000}
"""A run's checkpoints: ten times the network's parameters, with optimiser and averages."""
_BUNDLE_BYTES: Final = 10_000_000
_TABLE_BYTES: Final = 1_000_000
"""A table of 10,000 frames, compressed."""

app = typer.Typer(no_args_is_help=True, help="The split, multi-exit road-sign CNN.")
app.command()(adapt)


def _known_part(part: str, parts: Sequence[str]) -> None:
    """Refuse an unknown part before anything is read."""
    require(part in parts, f"--part {part}", " or ".join(parts), "name one of these")


def _part(folder: Path, part: str, size: int, limit: int | None) -> ImageSet:
    from cnn.data.gtsrb import load_gtsrb, load_tracks, split_part
    from cnn.data.image_set import PARTS

    if part == "test":
        return load_gtsrb(folder, "test", size, limit=limit)
    named = next(p for p in PARTS if p == part)  # checked by _known_part
    data = split_part(load_tracks(folder, size), named)
    if limit is None:
        return data
    import numpy as np

    return data.take(np.arange(min(limit, len(data))))


@app.command()
def train(
    context: typer.Context,
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints, TensorBoard, bundle.")] = Path(
        "runs/cnn"
    ),
    preset: Annotated[str, typer.Option(help="embedded (48 px, width 0.5) or paper.")] = "embedded",
    epochs: Annotated[
        int, typer.Option(min=1, max=10_000, help="Epochs of the backbone and exits.")
    ] = 18,
    bottleneck_epochs: Annotated[
        int, typer.Option(min=1, max=10_000, help="Epochs of the bottlenecks.")
    ] = 8,
    limit: Annotated[
        int | None, typer.Option(min=128, help="Fit on so many images only (smoke runs).")
    ] = None,
    precision: PrecisionOption = "int8",
    device: DeviceOption = "auto",
    mixed_precision: MixedPrecisionOption = "auto",
    resume: Annotated[
        bool, typer.Option(help="Resume after the last epoch that the run folder holds.")
    ] = False,
    threads: TorchThreadsOption = 0,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Fit backbone, exits and bottlenecks on the fit tracks; calibrate; write a bundle."""
    if preset not in PRESETS:
        raise ConfigError(
            f"preset {preset!r}", expected=" or ".join(PRESETS), hint="name one of these"
        )
    checked_precision(precision)
    check_run(out, resume, room=_RUN_BYTES.get(preset, ROOM))
    check_whole_folder(out / "bundle", BUNDLE)
    folder = data_folder(data)
    from cnn.network.pipeline import train_all
    from cnn.network.torch_device import parse_choice

    where, arithmetic = parse_choice(device, mixed_precision)
    with resumable(context), Claim(out, folder=True):
        result = train_all(
            folder,
            out,
            PRESETS[preset],
            epochs=epochs,
            bottleneck_epochs=bottleneck_epochs,
            limit=limit,
            precision=precision,
            resume=resume,
            threads=threads,
            seed=seed,
            device=where,
            mixed=arithmetic,
        )
    _say(result, as_json)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option(help="network.pt of a training run.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    data: DataOption = None,
    precision: PrecisionOption = "int8",
    note: Annotated[str, typer.Option(help="Kept in the manifest's provenance.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Write a checkpoint as a bundle, calibrated on the validation tracks."""
    checked_precision(precision)
    check_whole_folder(out, BUNDLE, room=_BUNDLE_BYTES)
    from cnn.network.pipeline import export_calibrated

    folder = data_folder(data)
    _say(export_calibrated(checkpoint, folder, out, precision=precision, note=note), as_json)


@app.command()
def evaluate(
    data: DataOption = None,
    part: Annotated[str, typer.Option(help="test, cnn-val, policy-train or policy-test.")] = "test",
    bundle: BundleOption = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for the reliability diagram (PNG).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many images.")] = None,
    threads: ThreadsOption = 2,
    as_json: JsonFlag = False,
) -> None:
    """Accuracy and calibration (ECE) of every exit and action; payload in bytes."""
    if plots is not None:
        check_folder(plots, {"reliability.png": DIAGRAM})
    from rich.progress import Progress

    from cnn.data.image_set import PARTS
    from cnn.network.accuracy import evaluate as run
    from cnn.runtime import SplitRuntime

    _known_part(part, ("test", *PARTS))
    loaded = load_bundle(bundle)
    images = _part(data_folder(data), part, loaded.config.input_size, limit)
    with Progress(console=stderr_console()) as bar:
        task = bar.add_task(f"images of {part}", total=len(images))
        runtime = SplitRuntime(loaded, threads)
        result = run(runtime, images, plots, lambda done: bar.advance(task, done))
    if as_json:
        emit_json(result)
        return
    from rich.table import Table

    table = Table(title=f"{result['frames']} images of {part}, bundle {loaded.hash[:12]}")
    for column in ("action", "accuracy %", "ECE", "ECE uncalibrated", "payload B"):
        table.add_column(column, justify="right")

    for a in loaded.topology.actions:
        r = result["actions"][a.name]
        payload = str(loaded.topology.payload_bytes[a.index])
        cells = (f"{100 * r['accuracy']:.2f}", f"{r['ece']:.4f}", f"{r['ece_uncalibrated']:.4f}")
        table.add_row(a.name, *cells, payload)
    Console().print(table)


@app.command()
def table(
    out: Annotated[Path, typer.Option(help="Frame table to write (.npz).")],
    data: DataOption = None,
    part: Annotated[str, typer.Option(help="cnn-val, policy-train or policy-test.")] = (
        "policy-test"
    ),
    bundle: BundleOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many frames.")] = None,
    drives: Annotated[
        int,
        typer.Option(min=0, max=MAX_DRIVES, help="More drives past the same signs on other days."),
    ] = 0,
    strength: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="How bad those days' light and optics get.")
    ] = 1.1,
    seed: SeedOption = 0,
    threads: ThreadsOption = 2,
    as_json: JsonFlag = False,
) -> None:
    """Run every frame of a part through all actions of the exported network."""
    check_file(out, FRAME_TABLE, room=_TABLE_BYTES * (1 + drives))
    from tqdm import tqdm

    from cnn.data.image_set import PARTS
    from cnn.make_frame_table import make_varied_table
    from cnn.runtime import SplitRuntime

    _known_part(part, PARTS)
    loaded = load_bundle(bundle)
    images = _part(data_folder(data), part, loaded.config.input_size, limit)
    with tqdm(total=len(images) * (1 + drives), desc=part, unit="frame") as bar:
        made = make_varied_table(
            SplitRuntime(loaded, threads),
            images,
            f"GTSRB {part}",
            drives=drives,
            strength=strength,
            seed=seed,
            progress=bar.update,
        )
    made.save(out)
    result = {
        "table": str(out),
        "frames": len(made),
        "tracks": made.n_tracks,
        "bundle": made.bundle_hash,
        "accuracy": [float(a) for a in made.correct.mean(0)],
    }
    _say(result, as_json)


@app.command()
def download(
    out: Annotated[Path, typer.Option(help="Folder that gets the data set (about 0.6 GB).")],
    keep_archives: Annotated[bool, typer.Option(help="Leave the zip files there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fetch, check and unpack the official GTSRB archives; resumes where it stopped."""
    check_folder(out)
    from cnn.data.download import download as fetch

    _say({"data": str(fetch(out, keep_archives=keep_archives))}, as_json)


@app.command()
def info(bundle: BundleOption = None, as_json: JsonFlag = False) -> None:
    """Shapes, operations (MACs), payloads (bytes) and the actions of a bundle."""
    loaded = load_bundle(bundle)
    config, topology = loaded.config, loaded.topology
    blocks = {}
    if isinstance(config, ModelConfig):  # of other networks only the topology is known
        blocks = {
            str(b): {
                "channels": config.channels(b),
                "size_px": config.size(b),
                "macs": config.block_macs(b),
                "exit_macs": config.head_macs(b),
                "exit_share": config.head_macs(b) / config.block_macs(b),
            }
            for b in range(1, topology.n_blocks + 1)
        }
    actions = {
        a.name: {"index": a.index, "payload_bytes": int(topology.payload_bytes[a.index])}
        for a in topology.actions
    }
    if as_json:
        emit_json(
            {
                "bundle": loaded.hash,
                "path": str(loaded.path),
                "blocks": blocks,
                "actions": actions,
                "manifest": loaded.manifest,
            }
        )
        return
    from rich.table import Table

    console = Console()
    shapes = Table(title=f"bundle {loaded.hash[:12]} in {loaded.path}")
    for column in ("block", "channels", "size px", "MACs (1e6)", "exit MACs (1e6)", "exit / block"):
        shapes.add_column(column, justify="right")
    for b, r in blocks.items():
        shapes.add_row(
            b,
            str(r["channels"]),
            str(r["size_px"]),
            f"{r['macs'] / 1e6:.1f}",
            f"{r['exit_macs'] / 1e6:.2f}",
            f"{100 * r['exit_share']:.1f} %",
        )
    if blocks:
        console.print(shapes)
    listing = Table(title="actions: leave at exit E, blocks 1..S on the device")
    for column in ("number", "name", "exit", "split", "uplink bytes"):
        listing.add_column(column, justify="right")
    for a in topology.actions:
        payload = str(topology.payload_bytes[a.index])
        listing.add_row(str(a.index), a.name, str(a.exit), str(a.split), payload)
    console.print(listing)


def _say(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(result)
    else:
        for key, value in result.items():
            Console().print(f"{key}: {value}", highlight=False)
