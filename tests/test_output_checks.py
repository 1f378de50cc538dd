"""Every option that names an output: nothing of the user's is touched, and it is said at once.

Inputs are left to their defaults or do not exist: what is refused here is refused before any
of them is looked at, and long before any work.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from agents.cli import app
from cnn.bundle import embedded_bundle_path
from cnn.common.console import run_app
from cnn.common.outputs import check_file
from testbed.common.output_kinds import RECORDS
from testbed.records.record_file import read_records

ROOT = Path(__file__).parents[1]

FILES = {
    "cnn table": ["cnn", "table", "--out"],
    "device": ["testbed", "device", "--local-only", "--action", "e1s1", "--out"],
    "campaign": ["testbed", "campaign", "--out"],
    "fit": ["testbed", "fit", "--records", "none", "--out"],
    "align": ["testbed", "align", "--records", "none", "--log", "none", "--out"],
    "keygen": ["testbed", "keygen", "--out"],
    "serve": ["testbed", "serve", "--port", "0", "--port-file"],
    "link": ["testbed", "link", "--server", "x:1", "--rate-mbps", "9", "--port-file"],
    "link record": ["testbed", "link", "--server", "x:1", "--rate-mbps", "9", "--record"],
    "import": ["testbed", "traces", "import", "none", "--out"],
    "fit traces": ["testbed", "traces", "fit", "none", "--out"],
    "new scenario": ["agent", "new-scenario"],
    "agent export": ["agent", "export", "--run", "none", "--out"],
    "certify": ["agent", "certify", "--policy", "none", "--out"],
    "control": ["agent", "control", "--policy", "none", "--out"],
}
"""Command lines that end with the option of a file, or with a command whose argument is one."""

FOLDERS = {
    "cnn train": (["cnn", "train", "--out"], "network.pt"),
    "cnn train record": (["cnn", "train", "--out"], "train.json"),
    "cnn train bundle": (["cnn", "train", "--out"], "bundle/thesis.tex"),
    "cnn adapt": (["cnn", "adapt", "--model", "none.py:net", "--out"], "backbone.pt"),
    "cnn adapt card": (["cnn", "adapt", "--model", "none.py:net", "--out"], "card.md"),
    "cnn adapt bundle": (["cnn", "adapt", "--model", "none.py:net", "--out"], "bundle/thesis.tex"),
    "cnn evaluate": (["cnn", "evaluate", "--plots"], "reliability.png"),
    "fit": (["testbed", "fit", "--records", "none", "--report"], "delay.png"),
    "fit text": (["testbed", "fit", "--records", "none", "--report"], "fit.md"),
    "agent train": (["agent", "train", "--out"], "best.zip"),
    "agent train settings": (["agent", "train", "--out"], "config.json"),
    "agent train checkpoint": (["agent", "train", "--out"], "checkpoint/thesis.tex"),
    "agent evaluate": (["agent", "evaluate", "--out"], "frames.parquet"),
    "agent evaluate report": (["agent", "evaluate", "--out"], "report.html"),
    "sweep": (["agent", "sweep", "--out"], "sweep.png"),
    "sweep policy": (["agent", "sweep", "--out"], "conditioned.policy"),
    "tune": (["agent", "tune", "none.toml", "--out"], "study.json"),
    "tune settings": (["agent", "tune", "none.toml", "--out"], "spec.json"),
    "demo": (["demo", "--out"], "evaluation.json"),
    "demo records": (["demo", "--out"], "live-agent.parquet"),
    "demo picture": (["demo", "--out"], "drive.png"),
    "demo policy": (["demo", "--out"], "train/agent.policy"),
    "cnn export": (["cnn", "export", "--checkpoint", "none", "--out"], "thesis.tex"),
}
"""Command lines that end with the option of a folder, and a file in it that they would write."""

DOWNLOAD = ["cnn", "download", "--out"]


def listing(folder: Path) -> dict[str, str]:
    """Everything below a folder, with its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else str(path.stat().st_mode)
        for path in folder.rglob("*")
    }


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Run a command that must fail with one line and exit code 2, and leave all as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLIPROAD_DATA", raising=False)

    def run(arguments: list[str]) -> str:
        before = listing(tmp_path)
        with pytest.raises(SystemExit) as ended:
            run_app(app, prog_name="sliproad", args=arguments)
        printed = capsys.readouterr()
        assert ended.value.code == 2, printed.err
        assert listing(tmp_path) == before
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        assert "PosixPath" not in line
        return line

    return run


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_of_the_users_is_never_replaced(name: str, tmp_path: Path, refuse) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "thesis.tex").write_text("\\documentclass{article}")
    assert "thesis.tex" in refuse([*FILES[name], "thesis.tex"])


@pytest.mark.slow(4)
@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("place", ["folder", "thesis.tex/out", "/dev/full", "/dev/full/out"])
def test_a_place_that_takes_no_file_is_refused(
    name: str,
    place: str,
    tmp_path: Path,
    refuse,  # type: ignore[no-untyped-def]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert place.split("/")[-1] in refuse([*FILES[name], place])


@pytest.mark.slow(2)
@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_file_of_the_users_in_a_folder_is_never_replaced(
    name: str,
    tmp_path: Path,
    refuse,  # type: ignore[no-untyped-def]
) -> None:
    arguments, written = FOLDERS[name]
    path = tmp_path / "out" / written
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert path.name in refuse([*arguments, "out"])


@pytest.mark.slow(7)
@pytest.mark.parametrize(
    "arguments", [a for a, _ in FOLDERS.values()] + [DOWNLOAD], ids=[*FOLDERS, "download"]
)
@pytest.mark.parametrize("place", ["thesis.tex", "thesis.tex/out", "/dev/full/out"])
def test_a_place_that_takes_no_folder_is_refused(
    arguments: list[str],
    place: str,
    tmp_path: Path,
    refuse,  # type: ignore[no-untyped-def]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "thesis.tex" in place or "/dev/full" in place
    refuse([*arguments, place])


def test_an_export_beside_folders_named_old_and_part_is_no_reason_to_touch_them(
    tmp_path: Path,
    refuse,  # type: ignore[no-untyped-def]
) -> None:
    for name in ("out", "out.old", "out.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("mine")
    line = refuse(["cnn", "export", "--checkpoint", "none", "--out", "out"])
    assert "out holds thesis.tex, which `sliproad cnn export` did not write" in line


def test_a_bundle_with_one_more_file_in_it_is_refused_and_one_without_is_not(
    tmp_path: Path,
    refuse,  # type: ignore[no-untyped-def]
) -> None:
    shutil.copytree(embedded_bundle_path(), tmp_path / "out")
    export = ["cnn", "export", "--checkpoint", "none.pt", "--out", "out"]
    assert "no data folder given" in refuse(export)  # the output is fine
    (tmp_path / "out" / "segments" / "notes.txt").write_text("mine")
    assert "segments/notes.txt" in refuse(export)


def test_a_signature_is_not_written_over_a_file_of_another_kind(
    tmp_path: Path,
    refuse,  # type: ignore[no-untyped-def]
) -> None:
    pytest.importorskip("cryptography")
    from testbed.deploy.signing import make_key_pair

    make_key_pair(tmp_path / "key", tmp_path / "key.pub")
    (tmp_path / "a.policy").write_text("")
    (tmp_path / "a.policy.sig").write_text("-----BEGIN PGP SIGNATURE-----")
    assert "a.policy.sig" in refuse(["testbed", "sign", "a.policy", "--key", "key"])


def test_a_public_key_that_cannot_be_written_leaves_no_private_one(
    tmp_path: Path,
    refuse,  # type: ignore[no-untyped-def]
) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "key.pub").write_text("mine")
    assert "key.pub" in refuse(["testbed", "keygen", "--out", "key"])


def test_records_are_not_aligned_into_themselves(tmp_path: Path, refuse) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.parquet").write_bytes(b"")
    line = refuse(
        ["testbed", "align", "--records", "a.parquet", "--log", "b.csv", "--out", "a.parquet"]
    )
    assert "is also what is read" in line


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "testbed", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow(5)
def test_two_devices_with_one_output_do_not_mix(tmp_path: Path) -> None:
    """Two real processes: one measures, the other is told which one does."""
    common = ["device", "--local-only", "--action", "e1s1", "--json"]
    out = tmp_path / "run.parquet"
    first = start(*common, "--n-frames", 300, "--fps", 2, "--out", out, cwd=tmp_path)
    try:
        while not list(tmp_path.glob(".run.*.part.parquet")):
            assert first.poll() is None
        second = start(*common, "--n-frames", 3, "--out", out, cwd=tmp_path)
        said = second.communicate(timeout=120)[1]
        assert second.returncode == 2
        assert f"error: {out} is in use by process {first.pid}" in said
        first.terminate()
        frames = json.loads(first.communicate(timeout=60)[0].splitlines()[-1])["frames"]
        assert len(read_records(out)) == frames
        assert list(tmp_path.iterdir()) == [out]
        check_file(out, RECORDS)  # ours, and free: another run may replace it
    finally:
        first.kill()
        first.communicate()


def options_that_name_an_output(command: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for name, sub in getattr(command, "commands", {}).items():
        found |= options_that_name_an_output(sub, (*path, name))
    for parameter in command.params:
        if parameter.name in {"out", "plots", "report", "record", "port_file"}:
            # An argument stands behind the command itself.
            is_option = parameter.param_type_name == "option"
            found.add((*path, parameter.opts[0] if is_option else path[-1]))
    return found


def test_no_option_that_names_an_output_is_forgotten_here() -> None:
    tried = [*FILES.values(), *(words for words, _ in FOLDERS.values()), DOWNLOAD]
    root = typer.main.get_command(app)
    assert options_that_name_an_output(root) == {(*path_of(root, w), w[-1]) for w in tried}


def path_of(command: Any, words: list[str]) -> tuple[str, ...]:
    """The names of the groups and the command with which a command line begins."""
    sub = getattr(command, "commands", {}).get(words[0]) if words else None
    return () if sub is None else (words[0], *path_of(sub, words[1:]))
