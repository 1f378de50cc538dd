"""``sliproad cnn``: train, evaluate, tabulate, export and show the split network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from cnn.adapt_command import adapt
from cnn.bundle import BUNDLE, load_bundle
from cnn.common.console import JsonFlag, SeedOption, emit_json, given_options, stderr_console
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
    PartOption,
    PrecisionOption,
    ProvidersOption,
    ThreadsOption,
    TorchThreadsOption,
    check_run,
    checked_precision,
    data_folder,
    resumable,
)

if TYPE_CHECKING:
    from cnn.data.image_split import AnyPart

_RUN_BYTES: Final = {"embedded": 350_000_000, "paper": 1_350_000_000}
"""A run's checkpoints: ten times the network's parameters, with optimiser and averages."""
_BUNDLE_BYTES: Final = 10_000_000
_TABLE_BYTES: Final = 1_000_000
"""A table of 10,000 frames, compressed."""

app = typer.Typer(no_args_is_help=True, help="The split, multi-exit road-sign CNN.")
app.command()(adapt)


def _known_part(part: str) -> AnyPart:
    """Refuse an unknown part before anything is read."""
    from cnn.data.image_split import ANY_PARTS

    require(part in ANY_PARTS, f"--part {part}", " or ".join(ANY_PARTS), "name one of these")
    return next(known for known in ANY_PARTS if known == part)


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
    part: PartOption = "test",
    bundle: BundleOption = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for the reliability diagram (PNG).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many images.")] = None,
    threads: ThreadsOption = 2,
    providers: ProvidersOption = "CPUExecutionProvider",
    as_json: JsonFlag = False,
) -> None:
    """Accuracy and calibration (ECE) of every exit and action; payload in bytes."""
    if plots is not None:
        check_folder(plots, {"reliability.png": DIAGRAM})
    from rich.progress import Progress

    from cnn.data.load_images import images_for
    from cnn.network.accuracy import evaluate as run
    from cnn.runtime import SplitRuntime

    known = _known_part(part)
    loaded = load_bundle(bundle)
    runtime = SplitRuntime(loaded, threads, providers.split(","))
    images, _ = images_for(loaded, data_folder(data), known, limit)
    with Progress(console=stderr_console()) as bar:
        task = bar.add_task(f"images of {part}", total=len(images))
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
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Frame table to write (.npz).")],
    imported: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="Parquet of frames and actions measured elsewhere, instead of running a network.",
        ),
    ] = None,
    data: DataOption = None,
    part: PartOption = "policy-test",
    bundle: BundleOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many frames.")] = None,
    drives: Annotated[
        int,
        typer.Option(min=0, max=MAX_DRIVES, help="More drives past the same signs on other days."),
    ] = 0,
    strength: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="How bad those days' light and optics get.")
    ] = 1.1,
    blur: Annotated[
        float,
        typer.Option(min=0.0, max=20.0, help="Blur all frames, standard deviation in pixels."),
    ] = 0.0,
    fog: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Put fog on all frames, share of light lost.")
    ] = 0.0,
    dusk: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Darken all frames, share of light lost; sensor noise stays."
        ),
    ] = 0.0,
    seed: SeedOption = 0,
    threads: ThreadsOption = 2,
    providers: ProvidersOption = "CPUExecutionProvider",
    as_json: JsonFlag = False,
) -> None:
    """Run every frame of a part through all actions of the exported network.

    --blur, --fog and --dusk show what the network was not trained for (sliproad agent certify
    --shifted).
    """
    check_file(out, FRAME_TABLE, room=_TABLE_BYTES * (1 + drives))
    if imported is not None:
        _import_table(imported, out, given_options(context), as_json)
        return
    from tqdm import tqdm

    from cnn.data.load_images import images_for
    from cnn.make_frame_table import Condition, dark, make_varied_table, under
    from cnn.runtime import SplitRuntime

    known = _known_part(part)
    loaded = load_bundle(bundle)
    runtime = SplitRuntime(loaded, threads, providers.split(","))
    images, source = images_for(loaded, data_folder(data), known, limit)
    if blur or fog:
        images = under(images, Condition(blur_px=blur, fog=fog))
        source += f", blur {blur:g} px, fog {fog:g}"
    if dusk:
        images = under(images, dark(dusk))
        source += f", dusk {dusk:g}"
    with tqdm(total=len(images) * (1 + drives), desc=part, unit="frame") as bar:
        made = make_varied_table(
            runtime,
            images,
            _source_of(source, runtime.providers),
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


def _import_table(path: Path, out: Path, given: set[str], as_json: bool) -> None:
    """``sliproad cnn table --import``."""
    others = sorted(given - {"imported", "out", "as_json"})
    require(
        not others,
        f"--import with {', '.join(f'--{name}' for name in others)}",
        "--import and --out alone: no network runs",
        "leave the other options out",
    )
    from cnn.imported_table import import_table

    made = import_table(path)
    made.table.save(out)
    result = {
        "table": str(out),
        "frames": len(made.table),
        "tracks": made.table.n_tracks,
        "actions": [action.name for action in made.table.topology.actions],
        "quality": [round(float(q), 4) for q in made.table.correct.mean(0)],
        "neutral": list(made.neutral),
        "topology": made.table.topology.to_json(),
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
                "class_names": list(loaded.class_names),
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
    if loaded.class_names:
        names = ", ".join(loaded.class_names)
        console.print(f"{len(loaded.class_names)} classes: {names}", highlight=False, markup=False)


def _source_of(images: str, providers: tuple[str, ...]) -> str:
    """What a frame table says of itself; the CPU's answers need no word."""
    return images + (f", {', '.join(providers)}" if len(providers) > 1 else "")


def _say(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(result)
    else:
        for key, value in result.items():
            Console().print(f"{key}: {value}", highlight=False)
