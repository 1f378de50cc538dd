"""Options that several of ``sliproad cnn``'s commands share, and the data folder they mean."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import typer

from cnn.common.console import command_line
from cnn.common.errors import DataError, require

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="GTSRB folder. Without it: the folder gtsrb in the environment variable "
        "SLIPROAD_DATA.",
        show_default=False,
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
PRECISIONS: Final = ("int8", "float32")
MAX_DRIVES: Final = 100
"""More drives of a frame table; each is as large as the part itself."""


def checked_precision(given: str) -> None:
    """Raise `ConfigError` unless a bundle can have that precision; before any work."""
    require(given in PRECISIONS, f"--precision {given}", " or ".join(PRECISIONS), "use int8")


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
    """The GTSRB folder meant by ``--data`` or ``SLIPROAD_DATA``; `DataError` if none is."""
    if given is not None:
        if not given.is_dir():
            raise DataError(
                f"data folder {given} does not exist",
                expected="a folder with GTSRB",
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
