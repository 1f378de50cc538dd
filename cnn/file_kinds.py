"""What the commands of ``sliproad cnn`` write, and how each file proves to be theirs."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from cnn.bundle import SEGMENTS
from cnn.common.folders import FolderKind
from cnn.common.outputs import FileKind, check_folder, json_kind, npz_kind, picture_kind
from cnn.common.outside import MAX_JSON_BYTES, file_bytes, json_object


def _is_checkpoint(path: Path) -> bool:
    """torch.save writes a zip whose ``data.pkl`` names the network's settings."""
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        return bool(pickles) and b"latent_channels" in archive.read(pickles[0])


def _bundle_files(folder: Path) -> Collection[str]:
    """Files of a model bundle, damaged or not, with its signature; none without its manifest."""
    try:
        manifest = json_object(file_bytes(folder / "manifest.json", MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return ()
    ours = {"format", "config", "segments", "temperatures"}
    if not ours <= manifest.keys():
        return ()
    return {"manifest.json", "manifest.json.sig", *(f"segments/{n}.onnx" for n in SEGMENTS)}


BUNDLE: Final = FolderKind("a model bundle", "sliproad cnn export", _bundle_files)
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


def check_run(out: Path, resume: bool, room: int) -> None:
    """Raise `DataError` unless `out` can hold a training run, in place of one at most.

    Of a run to resume, files may be damaged, if one proves that it is a run: what is read has
    checksums, the rest is written anew.
    """
    is_run = any(kind.holds(out / name) for name, kind in RUN.items())
    kinds = {name: replace(kind, proves=lambda path: True) for name, kind in RUN.items()}
    check_folder(out, kinds if resume and is_run else RUN, room)
