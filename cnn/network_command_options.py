"""Common parts of ``sliproad cnn``'s commands: options, the data folder, the output files."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import typer

from cnn.common.console import command_line
from cnn.common.errors import DataError, require
from cnn.common.outputs import (
    ROOM,
    FileKind,
    check_folder,
    json_kind,
    npz_kind,
    picture_kind,
    text_kind,
)

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Images: GTSRB, a folder with one subfolder a class, Parquet, or a CSV of paths "
        "and labels. Without it: the folder gtsrb in the environment variable SLIPROAD_DATA.",
        show_default=False,
    ),
]
PartOption = Annotated[
    str,
    typer.Option(
        "--part",
        help="test (what the network has not met), policy-train, policy-test, cnn-val or cnn-fit; "
        "all for a set that it was not trained with.",
    ),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", help="Model bundle folder; the shipped one if not given."),
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="int8 (faster, half the size) or float32.")
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=1, max=256, help="Threads of the runtime.")
]
ProvidersOption = Annotated[
    str,
    typer.Option(
        "--providers",
        help="ONNX Runtime's execution providers, NAME[,NAME]; `sliproad testbed doctor` lists "
        "those that are here.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", help="Where to train: auto (a CUDA GPU if there is one), cpu or cuda."
    ),
]
MixedPrecisionOption = Annotated[
    str,
    typer.Option(
        "--mixed-precision", help="Arithmetic of training: auto, fp32, bf16 or fp16 (CUDA only)."
    ),
]
TorchThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, max=256, help="torch threads; 0: its own choice.")
]
PRECISIONS: Final = ("int8", "float32")
MAX_DRIVES: Final = 100
"""More drives of a frame table; each is as large as the part itself."""


def checked_precision(given: str, *more: str) -> None:
    """Raise `ConfigError` unless it is a bundle's precision or one of `more`; before any work."""
    known = (*PRECISIONS, *more)
    require(given in known, f"--precision {given}", " or ".join(known), "use int8")


@contextmanager
def resumable(context: typer.Context) -> Iterator[None]:
    """At SIGINT or SIGTERM the block ends, and the line that resumes the command is printed."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    except KeyboardInterrupt:
        line = command_line(context)
        typer.echo("\nevery finished epoch is kept; resume with", err=True)
        typer.echo(line if "--resume" in line.split() else f"{line} --resume", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def data_folder(given: Path | None) -> Path:
    """The images meant by ``--data`` or ``SLIPROAD_DATA``; `DataError` if there are none."""
    if given is not None:
        if not given.exists():
            raise DataError(
                f"data folder {given} does not exist",
                expected="a folder or file with images (docs/your-data.md)",
                hint="give another path with --data",
            )
        return given
    root = os.environ.get("SLIPROAD_DATA")
    if not root:
        raise DataError(
            "no data folder given",
            expected="--data DIR or the environment variable SLIPROAD_DATA",
            hint="`sliproad cnn download --help` says where GTSRB comes from",
        )
    return data_folder(Path(root) / "gtsrb")


def _is_checkpoint(path: Path) -> bool:
    """torch.save writes a zip whose ``data.pkl`` names the network's settings."""
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        return bool(pickles) and b"n_classes" in archive.read(pickles[0])


FRAME_TABLE: Final = npz_kind(
    "a frame table", "sliproad cnn table", "meta", "bundle_hash", "source", "format"
)
DIAGRAM: Final = picture_kind("a reliability diagram", "sliproad cnn evaluate")
_CHECKPOINT: Final = FileKind("a checkpoint", "sliproad cnn train", _is_checkpoint)
_RESUMED: Final = ("last.pt", "last.previous.pt", "bottlenecks.pt", "bottlenecks.previous.pt")
_RECORD: Final = json_kind("a training record", "sliproad cnn train", "config", "history")
RUN: Final = {
    **dict.fromkeys((*_RESUMED, "backbone.pt", "network.pt"), _CHECKPOINT),
    "train.json": _RECORD,
}
"""A training run, beside ``bundle/`` and TensorBoard's own files, whose names are unique."""


CARD: Final = "card.md"
CARD_TITLE: Final = "# Network card"
CARD_KIND: Final = text_kind("a network's card", "sliproad cnn adapt", CARD_TITLE)


def check_run(out: Path, resume: bool, room: int = ROOM) -> None:
    """Raise `DataError` unless `out` can hold a training run, in place of one at most.

    A run to resume may have damaged files, if one file proves that it is a run: files that are read
    have checksums, the rest are rewritten.
    """
    is_run = any(kind.holds(out / name) for name, kind in RUN.items())
    kinds = {name: replace(kind, proves=lambda path: True) for name, kind in RUN.items()}
    check_folder(out, kinds if resume and is_run else RUN, room)
