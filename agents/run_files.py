"""Files that ``sliproad agent`` and ``sliproad demo`` write, and how each one is recognised.

A training run's folder also holds its scenario. That is kept whole, under its own name (the
name seeds its noise), with absolute paths: a run can be evaluated, exported and resumed from any
folder, also when the file that it was started with has moved or changed.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cnn
from cnn.common.errors import ConfigError, DataError, SliproadError
from cnn.common.files import replacing, write_text
from cnn.common.folders import FolderKind
from cnn.common.outputs import (
    FileKind,
    check_folder,
    check_whole_folder,
    json_kind,
    picture_kind,
    text_kind,
)
from testbed.common.output_kinds import COST_MODEL, RECORDS
from testbed.common.output_kinds import POLICY as POLICY_KIND

if TYPE_CHECKING:  # heavy: commands name these files before they import the code that writes them
    import pandas as pd

    from offload_env.scenario import Scenario

POLICY: Final = "agent.policy"
CONFIG: Final = "config.json"
SCENARIO: Final = "scenario"
STUDY_SPEC: Final = "spec.json"
STUDY_RESULT: Final = "study.json"
_TABLE_MARK: Final = b"sliproad.table"
_CHECKSUM: Final = "# sha256 "
"""Start of a kept scenario's first line: the SHA-256 of the lines after it."""


def _table_with(*columns: str) -> Callable[[Path], bool]:
    """A Parquet file with our mark or, from before there was one, with all of `columns`."""

    def proves(path: Path) -> bool:
        import pyarrow.parquet as pq

        schema = pq.read_schema(path)
        marked = _TABLE_MARK in (schema.metadata or {})
        return marked or set(columns) <= set(schema.names)

    return proves


def _is_model(path: Path) -> bool:
    """The members that stable-baselines3's zip files have."""
    with zipfile.ZipFile(path) as archive:
        return {"data", "policy.pth", "_stable_baselines3_version"} <= set(archive.namelist())


def _checkpoint_files(folder: Path) -> Collection[str]:
    """Files of a checkpoint; it is one if its model is there, or a run's settings are beside it."""
    ours = (
        _MODEL.holds(folder / "model.zip")
        or _CHECKSUMS.holds(folder / "manifest.json")
        or _SETTINGS.holds(folder.parent / CONFIG)
    )
    return ("manifest.json", "model.zip", "replay.pkl", "state.pkl") if ours else ()


_TRAIN: Final = "sliproad agent train"
_EVALUATE: Final = "sliproad agent evaluate"
_SWEEP: Final = "sliproad agent sweep"
_TUNE: Final = "sliproad agent tune"
_MODEL: Final = FileKind("a model", _TRAIN, _is_model)
_SETTINGS: Final = json_kind("training settings", _TRAIN, "scenario", "algo", "steps")
_CHECKSUMS: Final = json_kind("a checkpoint's checksums", _TRAIN, "step", "sha256")
CHECKPOINT: Final = FolderKind("a checkpoint", _TRAIN, _checkpoint_files)
RUN: Final = {
    CONFIG: _SETTINGS,
    "best.zip": _MODEL,
    "best.json": json_kind("validation figures", _TRAIN, "step", "cost", "accuracy"),
    "learning.parquet": FileKind(
        "a learning curve", _TRAIN, _table_with("step", "multiplier", "validation_cost")
    ),
    POLICY: POLICY_KIND,
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
    "conditioned.policy": POLICY_KIND,
    "sweep.json": json_kind("a sweep", _SWEEP, "scenario", "conditioned_over_specialist"),
    "sweep.parquet": FileKind(
        "a sweep's points", _SWEEP, _table_with("policy", "floor", "owed", "delay_share")
    ),
    "sweep.png": picture_kind("a sweep's picture", _SWEEP),
}
STUDY: Final = {
    STUDY_SPEC: json_kind("a study's settings", _TUNE, "scenarios", "algos", "grid", "seed"),
    STUDY_RESULT: json_kind("a study's result", _TUNE, "trials", "settings", "improvement"),
}
SCENARIO_MARK: Final = "# Made by `sliproad agent new-scenario`."
"""First line of a scenario that the command wrote."""
NEW_SCENARIO: Final = text_kind("a scenario", "sliproad agent new-scenario", SCENARIO_MARK)
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

    A run to resume may have damaged files: those it reads have checksums, the rest are rewritten.
    """
    kinds = {name: replace(kind, proves=lambda path: True) for name, kind in RUN.items()}
    check_folder(out, kinds if resume and _SETTINGS.holds(out / CONFIG) else RUN)
    check_folder(out / "tensorboard", room=0)
    for name in ("checkpoint", "checkpoint.previous"):
        check_whole_folder(out / name, CHECKPOINT)


def keep_scenario(scenario: Scenario, out: Path) -> Path:
    """Write ``out/scenario/NAME.toml``, in the place of an earlier run's."""
    from offload_env.scenario import anchored, scenario_toml

    path = out / SCENARIO / f"{scenario.name}.toml"
    text = scenario_toml(anchored(scenario))
    write_text(path, _CHECKSUM + hashlib.sha256(text.encode()).hexdigest() + "\n" + text)
    for other in set(path.parent.glob("*.toml")) - {path}:
        if _is_kept(other):  # of an earlier run
            other.unlink()
    return path


def _is_kept(path: Path) -> bool:
    """Whether a file is exactly what `keep_scenario` writes."""
    from offload_env.scenario import load_scenario, scenario_toml

    try:
        text = path.read_text()
        if text.startswith(_CHECKSUM):
            text = text.partition("\n")[2]
        return text == scenario_toml(load_scenario(path))
    except (OSError, ValueError, SliproadError):
        return False


def kept_scenario(out: Path) -> Scenario | None:
    """The scenario that a run's folder keeps; None if it keeps none (older runs).

    Raises:
        DataError: if there is more than one, or it is not as it was written.
    """
    files = sorted((out / SCENARIO).glob("*.toml"))
    if len(files) > 1:
        raise DataError(
            f"{out / SCENARIO} with {' and '.join(f.name for f in files)}",
            expected="one scenario",
            hint="remove those that are not the run's own",
        )
    return _whole(files[0]) if files else None


def _whole(path: Path) -> Scenario:
    """A kept scenario, if its checksum holds; older versions wrote none."""
    from offload_env.scenario import load_scenario

    try:
        text = path.read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        digest = hashlib.sha256(rest.encode()).hexdigest()
        if not text.strip() or (first.startswith(_CHECKSUM) and first != _CHECKSUM + digest):
            raise ValueError("it is damaged or was edited: its checksum differs")
        return load_scenario(path)
    except (OSError, ValueError, ConfigError) as error:
        raise DataError(
            f"{path}: {error.given if isinstance(error, ConfigError) else error}",
            expected="the scenario of the run, as `sliproad agent train` kept it",
            hint="put it back, or train again into another folder",
        ) from error


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write `frame`, without its index, whole or not at all; `DataError` if it cannot be.

    The schema's metadata has our mark.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    ours = {_TABLE_MARK: json.dumps({"sliproad": cnn.__version__}).encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **ours})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
