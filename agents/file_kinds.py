"""What ``sliproad agent`` and ``sliproad demo`` write, and how each file proves to be theirs."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from cnn.common.folders import FolderKind
from cnn.common.outputs import (
    FileKind,
    check_folder,
    check_whole_folder,
    json_kind,
    picture_kind,
    text_kind,
)
from testbed.common.output_kinds import COST_MODEL, POLICY, RECORDS


def _table_with(*columns: str) -> Callable[[Path], bool]:
    """A Parquet file with our mark or, from before there was one, with all of `columns`."""

    def proves(path: Path) -> bool:
        import pyarrow.parquet as pq

        schema = pq.read_schema(path)
        marked = b"sliproad.table" in (schema.metadata or {})
        return marked or set(columns) <= set(schema.names)

    return proves


def _is_model(path: Path) -> bool:
    """The members that stable-baselines3's zip files have."""
    with zipfile.ZipFile(path) as archive:
        return {"data", "policy.pth", "_stable_baselines3_version"} <= set(archive.namelist())


def _checkpoint_files(folder: Path) -> Collection[str]:
    """Of a checkpoint; it is one if its model is there, or a run's settings stand beside it."""
    ours = (
        _MODEL.holds(folder / "model.zip")
        or _CHECKSUMS.holds(folder / "manifest.json")
        or _SETTINGS.holds(folder.parent / "config.json")
    )
    return ("manifest.json", "model.zip", "replay.pkl", "state.pkl") if ours else ()


_TRAIN: Final = "sliproad agent train"
_EVALUATE: Final = "sliproad agent evaluate"
_SWEEP: Final = "sliproad agent sweep"
_MODEL: Final = FileKind("a model", _TRAIN, _is_model)
_SETTINGS: Final = json_kind("training settings", _TRAIN, "scenario", "algo", "steps")
_CHECKSUMS: Final = json_kind("a checkpoint's checksums", _TRAIN, "step", "sha256")
CHECKPOINT: Final = FolderKind("a checkpoint", _TRAIN, _checkpoint_files)
RUN: Final = {
    "config.json": _SETTINGS,
    "best.zip": _MODEL,
    "best.json": json_kind("validation figures", _TRAIN, "step", "cost", "accuracy"),
    "learning.parquet": FileKind(
        "a learning curve", _TRAIN, _table_with("step", "multiplier", "validation_cost")
    ),
    "agent.policy": POLICY,
}
EVALUATION: Final = {
    "evaluation.json": json_kind("an evaluation", _EVALUATE, "scenario", "policies", "bound_cost"),
    "frames.parquet": FileKind(
        "an evaluation's frames", _EVALUATE, _table_with("policy", "drive", "frame", "cost")
    ),
    "report.html": text_kind(
        "a report",
        _EVALUATE,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>sliproad: ',
    ),
}
SWEEP: Final = {
    "conditioned.policy": POLICY,
    "sweep.json": json_kind("a sweep", _SWEEP, "scenario", "conditioned_over_specialist"),
    "sweep.parquet": FileKind(
        "a sweep's points", _SWEEP, _table_with("policy", "floor", "owed", "delay_share")
    ),
    "sweep.png": picture_kind("a sweep's picture", _SWEEP),
}
DEMO: Final = {
    **EVALUATION,
    **dict.fromkeys(("live-agent.parquet", "live-full-local.parquet"), RECORDS),
    **dict.fromkeys(("live-agent.device.json", "live-full-local.device.json"), COST_MODEL),
    **dict.fromkeys(("first.png", "drive.png"), picture_kind("a picture", "sliproad demo")),
}


def named(path: Path) -> Path:
    """`path`, with the ending ``.policy`` if it has none and names nothing that is there."""
    return path if path.suffix or path.exists() else path.with_suffix(".policy")


def check_run(out: Path, resume: bool = False) -> None:
    """Raise `DataError` unless `out` can hold a training run, in place of one at most.

    Of a run to resume, files may be damaged: what it reads has checksums, the rest it writes anew.
    """
    kinds = {name: replace(kind, proves=_anything) for name, kind in RUN.items()}
    check_folder(out, kinds if resume and _SETTINGS.holds(out / "config.json") else RUN)
    check_folder(out / "tensorboard", room=0)
    for name in ("checkpoint", "checkpoint.previous"):
        check_whole_folder(out / name, CHECKPOINT)


def _anything(path: Path) -> bool:
    return True
