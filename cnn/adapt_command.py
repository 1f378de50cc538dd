"""``sliproad cnn adapt``: a network of the user's own becomes a model bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cnn.bundle import BUNDLE, load_bundle
from cnn.common.console import JsonFlag, SeedOption, emit_json, stderr_console, warn
from cnn.common.errors import ConfigError, DataError, require, shown
from cnn.common.outputs import Claim, check_file, check_whole_folder
from cnn.network_command_options import (
    CARD,
    CARD_KIND,
    FRAME_TABLE,
    DataOption,
    DeviceOption,
    MixedPrecisionOption,
    TorchThreadsOption,
    check_run,
    checked_precision,
    data_folder,
    resumable,
)

if TYPE_CHECKING:
    from cnn.bundle import Bundle

_TABLES: Final = ("policy-train", "policy-test")


def adapt(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Run folder: checkpoints, bundle/, card.md, frame tables.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="FILE.py:NAME, a function that returns a torch module in blocks."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Instead of --model: a network as ONNX alone.")
    ] = None,
    cuts: Annotated[
        str,
        typer.Option(
            help="NAME,NAME,...: tensors of the ONNX graph that end a block; "
            "without it, some are proposed."
        ),
    ] = "",
    mean: Annotated[
        str, typer.Option(help="Of --onnx's images in [0, 1], by channel: 0.485,0.456,0.406.")
    ] = "",
    std: Annotated[str, typer.Option(help="Likewise the spread: 0.229,0.224,0.225.")] = "",
    data: DataOption = None,
    input_size: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=1024,
            help="Side of the network's square input, pixels; "
            "without it, what the module states as input_size.",
        ),
    ] = None,
    train: Annotated[
        bool,
        typer.Option("--train", help="Fit all layers; without it, only exits and bottlenecks."),
    ] = False,
    epochs: Annotated[
        int, typer.Option(min=1, max=10_000, help="Epochs of the exits, or of all layers.")
    ] = 12,
    bottleneck_epochs: Annotated[
        int, typer.Option(min=1, max=10_000, help="Epochs of the bottlenecks.")
    ] = 8,
    batch_size: Annotated[int, typer.Option(min=16, max=4096, help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(min=1e-7, max=1.0, help="Peak learning rate.")] = 3e-3,
    payload: Annotated[
        float,
        typer.Option(
            min=1e-4,
            max=1.0,
            help="Bytes at a split, as a share of the numbers that "
            "the block gives; never much more than half of the frame's bytes.",
        ),
    ] = 0.125,
    augment: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="Strength of the augmentation.")
    ] = 0.5,
    shift: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.5,
            help="Largest shift of an image by whole pixels, as a share of its side "
            "(small photos: 0.125, with --augment 0, which else blurs them).",
        ),
    ] = 0.0,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Mirror images, too (photos; not signs or writing).")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=16, help="Use so many images only (smoke runs).")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="float32; int8 (half the size, often faster); or auto: int8 if it is faster here "
            "and no action loses more than half a point."
        ),
    ] = "float32",
    device: DeviceOption = "auto",
    mixed_precision: MixedPrecisionOption = "auto",
    resume: Annotated[
        bool, typer.Option(help="Resume after the last epoch that the run folder holds.")
    ] = False,
    threads: TorchThreadsOption = 0,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Give your own network exits and bottlenecks; calibrate, check, and write a bundle.

    Then its answers to the images that it has not met are written as the frame tables
    policy-train.npz and policy-test.npz. The file FILE.py is run.
    """
    checked_precision(precision, "auto")
    one = (model is None) != (onnx is None)
    require(one, "both or none of --model and --onnx", "one of them", "name the network's file")
    only = onnx is not None or not (cuts or mean or std)
    require(only, "--cuts, --mean or --std with --model", "these with --onnx", "leave them out")
    check_run(out, resume)
    check_whole_folder(out / "bundle", BUNDLE)
    check_file(out / CARD, CARD_KIND)
    for part in _TABLES:
        check_file(out / f"{part}.npz", FRAME_TABLE)
    from cnn.data.load_images import load_parts
    from cnn.network.adapt import AdaptConfig
    from cnn.network.adapt import adapt as run
    from cnn.network.torch_device import parse_choice
    from cnn.network.user_network import Definition, input_size_of

    where, arithmetic = parse_choice(device, mixed_precision)
    if onnx is None:
        definition = Definition.read(model or "")
    else:
        from cnn.network.onnx_network import onnx_definition

        definition = onnx_definition(
            onnx,
            [name for name in cuts.split(",") if name],
            input_size=input_size,
            mean=_numbers("--mean", mean),
            std=_numbers("--std", std),
        )
    size = input_size_of(definition.make()) if input_size is None else input_size
    folder = data_folder(data)
    images = load_parts(folder, size, ("cnn-fit", "cnn-val"), seed=seed, limit=limit)
    config = AdaptConfig(
        train=train,
        epochs=epochs,
        bottleneck_epochs=bottleneck_epochs,
        batch_size=batch_size,
        lr=lr,
        payload=payload,
        strength=augment,
        shift=shift,
        mirror=mirror,
        precision=precision,
        device=where,
        mixed=arithmetic,
        threads=threads,
        seed=seed,
    )
    console = stderr_console()
    with resumable(context), Claim(out, folder=True):
        card = run(
            definition,
            images.parts["cnn-fit"],
            images.parts["cnn-val"],
            config,
            out,
            data=f"{images.source}, cnn-fit and cnn-val in {folder.name}",
            split=images.split,
            resume=resume,
            report=lambda line: console.print(line, highlight=False, markup=False),
        )
        del images  # those of the tables need the memory
        tables = _write_tables(load_bundle(out / "bundle"), folder, out, limit)
    if as_json:
        emit_json({**card, "card": str(out / CARD), "tables": tables})
        return
    for name in ("bundle", "hash", "main_accuracy", "worst_split_gap", "onnx_max_error"):
        typer.echo(f"{name}: {card[name]}")
    typer.echo(f"card: {out / CARD}")
    for path in tables:
        typer.echo(f"frame table: {path}")


def _write_tables(bundle: Bundle, data: Path, out: Path, limit: int | None) -> list[str]:
    """Frame tables of the parts that the network has not met; a part without images has none."""
    from tqdm import tqdm

    from cnn.data.load_images import images_for
    from cnn.make_frame_table import make_table
    from cnn.runtime import SplitRuntime

    written = []
    for part in _TABLES:
        path = out / f"{part}.npz"
        try:
            images, source = images_for(bundle, data, part, limit)
        except DataError as error:
            warn(f"no frame table {path}: {error.given}")
            continue
        with tqdm(total=len(images), desc=part, unit="frame") as bar:
            made = make_table(SplitRuntime(bundle, 2), images, source, progress=bar.update)
        made.save(path)
        written.append(str(path))
    return written


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise ConfigError(
            f"{option} {shown(text)}", expected="numbers, such as 0.5,0.5,0.5", hint="correct it"
        ) from error
