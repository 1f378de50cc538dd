"""Folders replaced as a whole: by what is ours alone, and whole after a kill at any step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cnn.common import folders
from cnn.common.errors import DataError
from cnn.common.folders import FolderKind, replacing_folder, settle

NAMES = ("manifest", "parts/a", "parts/b")
KIND = FolderKind(
    "a set", "some command", lambda folder: NAMES if (folder / "manifest").exists() else ()
)


def fill(folder: Path, what: str) -> None:
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / name).write_text(what)


def content(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if not p.is_dir())
    return {p.relative_to(folder).as_posix(): p.read_text() for p in files}


def whole(what: str) -> dict[str, str]:
    return dict.fromkeys(NAMES, what)


def replace(path: Path, what: str) -> None:
    with replacing_folder(path, KIND) as new:
        fill(new, what)


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on most file systems, and as on those that cannot exchange two names."""
    if request.param == "renamed twice":
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_a_folder_is_made_and_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "set"
    for what in ("one", "two", "three"):
        replace(path, what)
        assert content(path) == whole(what)
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("foreign", ["notes.txt", "parts/c", "sub/deep/x", ".hidden"])
def test_a_folder_with_anything_else_in_it_is_refused_and_stays(
    tmp_path: Path, foreign: str
) -> None:
    path = tmp_path / "set"
    fill(path, "ours")
    (path / foreign).parent.mkdir(parents=True, exist_ok=True)
    (path / foreign).write_text("mine")
    with pytest.raises(DataError, match=f"holds {foreign}, which `some command`"):
        replace(path, "new")
    assert content(path) == {**whole("ours"), foreign: "mine"}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_set_of_ours_is_refused_even_under_our_names(tmp_path: Path) -> None:
    path = tmp_path / "set"
    (path / "parts").mkdir(parents=True)
    (path / "parts" / "a").write_text("mine")
    with pytest.raises(DataError, match="parts/a"):
        replace(path, "new")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        replace(tmp_path / "file", "new")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "manifest").write_text("ours")
    (tmp_path / "linked" / "parts").symlink_to(outside)
    with pytest.raises(DataError, match="linked holds parts"):
        replace(tmp_path / "linked", "new")


def test_neighbours_with_names_like_ours_stay(tmp_path: Path) -> None:
    """The two names that an earlier version used to clear away are the user's."""
    fill(tmp_path / "set", "one")
    for name in ("set.old", "set.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    replace(tmp_path / "set", "two")
    for name in ("set.old", "set.part"):
        assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_a_file_that_comes_while_the_work_goes_on_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "set"
    fill(path, "one")

    def meanwhile() -> None:
        with replacing_folder(path, KIND) as new:
            fill(new, "two")
            (path / "late").write_text("mine")

    with pytest.raises(DataError, match="late"):
        meanwhile()
    assert content(path) == {**whole("one"), "late": "mine"}
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_folder_and_a_link_to_ours_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    replace(tmp_path / "empty", "new")
    assert content(tmp_path / "empty") == whole("new")
    (tmp_path / "link").symlink_to("empty")
    replace(tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "empty") == whole("newer")


def test_everything_is_on_disk_before_the_new_takes_the_olds_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "set", set()
    fill(path, "one")
    real_fsync, real_exchange = os.fsync, folders._exchange
    before: list[set[int]] = []

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real_fsync(descriptor)

    def exchange(new: Path, old: Path) -> bool:
        inodes = {p.stat().st_ino for p in [new, *new.rglob("*")]}
        before.append(inodes - synced)
        return real_exchange(new, old)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(folders, "_exchange", exchange)
    replace(path, "two")
    assert before == [set()]


PROGRAM = """
from pathlib import Path
from cnn.common import folders
sys.path.insert(0, {tests!r})
from test_folders import replace
if {twice}:
    folders._exchange = lambda a, b: False

def change():
    replace(Path(FOLDER) / "set", "new")
"""


@pytest.mark.slow(2)
@pytest.mark.parametrize("twice", [False, True])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_one(
    tmp_path: Path, twice: bool, kill_at_every_step: Callable[[str, Path], Iterator[int]]
) -> None:
    program = PROGRAM.format(tests=str(Path(__file__).parent), twice=twice)
    folder, seen = tmp_path / "here", set()
    fill(folder / "set", "old")
    for _ in kill_at_every_step(program, folder):
        if twice:
            settle(folder / "set")
        found = content(folder / "set")
        assert found in (whole("old"), whole("new"))
        seen.add(found["manifest"])
        replace(folder / "set", "newest")  # and the next one finds its way, and clears up
        assert content(folder / "set") == whole("newest")
        assert [p.name for p in folder.iterdir()] == ["set"]
        shutil.rmtree(folder)
        fill(folder / "set", "old")
    assert seen == {"old", "new"}
    assert content(folder / "set") == whole("new")


WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_folders import KIND, fill, replacing_folder
with replacing_folder(Path(sys.argv[1]), KIND) as new:
    fill(new, "theirs")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "set"
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
    other = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        replace(path, "ours")
        assert content(path) == whole("ours")
        other.communicate("\n", timeout=60)
        assert other.returncode == 0
        assert content(path) == whole("theirs")
        assert list(tmp_path.iterdir()) == [path]
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
