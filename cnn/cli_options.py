"""Options that several of ``sliproad cnn``'s commands share, and the data folder they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cnn.errors import DataError

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
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")]


def data_folder(given: Path | None) -> Path:
    """The GTSRB folder meant by ``--data`` or ``SLIPROAD_DATA``; `DataError` if none is."""
    if given is not None:
        if not given.is_dir():
            raise DataError(
                f"data folder {given} does not exist",
                expected="a folder with GTSRB",
                mend="give another path with --data",
            )
        return given
    root = os.environ.get("SLIPROAD_DATA")
    if not root:
        raise DataError(
            "no data folder given",
            expected="--data DIR or the environment variable SLIPROAD_DATA",
            mend="`sliproad cnn download --help` says where GTSRB comes from",
        )
    return data_folder(Path(root) / "gtsrb")
