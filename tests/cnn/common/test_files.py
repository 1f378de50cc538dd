"""Files: whole or not there, in the order that survives a power cut, and nothing else touched."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnn.common.errors import DataError
from cnn.common.files import Pending, make_folder, replacing, write_bytes, write_new, write_text


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the system, in order; each call still happens."""
    seen: list[str] = []

    def spy(name: str, describe) -> None:  # type: ignore[no-untyped-def]
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            seen.append(f"{name} {describe(*args)}")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    def kind(descriptor: int) -> str:
        return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"

    spy("fsync", kind)
    spy("replace", lambda a, b: Path(b).name)
    spy("unlink", lambda path, **_: Path(path).name)
    return seen


def test_a_file_is_synced_then_renamed_then_its_folder_synced(
    tmp_path: Path, steps: list[str]
) -> None:
    write_text(tmp_path / "a.json", "{}")
    changes = [step for step in steps if not step.startswith("unlink .")]
    assert changes == ["fsync file", "replace a.json", "fsync folder"]


def test_new_folders_are_synced_into_those_above(tmp_path: Path, steps: list[str]) -> None:
    assert make_folder(tmp_path / "a" / "b") == [tmp_path / "a", tmp_path / "a" / "b"]
    assert steps == ["fsync folder", "fsync folder"]
    assert make_folder(tmp_path / "a" / "b") == []


def test_a_failed_block_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def break_off() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_mask_and_then_the_file_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        write_text(path, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    write_text(path, "newer")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/a.txt")
    write_text(link, "one")
    write_text(link, "two")
    assert link.is_symlink()
    assert (tmp_path / "there" / "a.txt").read_text() == "two"
    assert {p.name for p in tmp_path.iterdir()} == {"there", "link"}


@pytest.mark.parametrize("where", ["/dev/full", "/dev/null", "folder", "file/x", "loop/x"])
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / where
    before = path.stat().st_mode if path.exists() else None
    with pytest.raises(DataError, match=f"cannot write {path}"):
        write_text(path, "x")
    assert (path.stat().st_mode if path.exists() else None) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_no_room_is_one_clear_error(tmp_path: Path) -> None:
    """In a process of its own, whose files may have 4096 bytes: no more fits."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from cnn.common.errors import DataError\n"
        "from cnn.common.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    write_bytes(Path(sys.argv[1]), bytes(5000))\n"
        "except DataError as error:\n    print(error.given)\n"
    )
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", program, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said == f"cannot write {path}: File too large\n"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "ü" * 120 + ".png", "a." + "b" * 240])
def test_long_names_have_room_for_a_temporary_one(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    assert [p.name for p in tmp_path.iterdir()] == [name]


HELD = """
import sys, time
from pathlib import Path
from cnn.common.files import Pending
pending = Pending(Path(sys.argv[1]))
pending.temporary.write_text("not all of i")
print("ready", flush=True)
time.sleep(600)
"""


def test_a_killed_writers_file_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    mine = [tmp_path / ".a.notes.part.json", tmp_path / ".a.0123abcd.part.json.bak"]
    for each in mine:
        each.write_text("the user's own")
    command = [sys.executable, "-c", HELD, str(path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        write_text(path, "whole")
        assert len(list(tmp_path.glob(".a.????????.part.json"))) == 2
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        write_text(path, "whole again")
        assert len(list(tmp_path.glob(".a.????????.part.json"))) == 1
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    write_text(path, "at last")
    assert sorted(tmp_path.iterdir()) == sorted([*mine, path])


def test_a_new_file_never_replaces(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert write_new(path, b"secret", 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not write_new(path, b"other")
    assert path.read_bytes() == b"secret"
    assert list(tmp_path.iterdir()) == [path]


def test_without_hard_links_a_new_file_still_never_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(a: object, b: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # what FAT answers

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "key"
    assert write_new(path, b"secret", 0o600)
    assert not write_new(path, b"other")
    assert path.read_bytes() == b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [22, 95, 38])
def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_a_reader_may_take_a_file_with_its_folder_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As who waits for a server's port file does: the server must not end over it."""
    real, folder = os.replace, tmp_path / "taken"

    def replace(old: Path, new: Path) -> None:
        real(old, new)
        shutil.rmtree(folder)

    monkeypatch.setattr(os, "replace", replace)
    write_text(folder / "port", "8001")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_to_sync_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(5, os.strerror(5))

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DataError, match="Input/output error"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.slow(1)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    contents=st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    names=st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
        min_size=1,
        max_size=3,
        unique=True,
    ),
)
def test_any_name_holds_what_was_written_last_and_nothing_is_beside_it(
    tmp_path: Path, contents: list[bytes], names: list[str]
) -> None:
    fine = [n for n in names if n not in (".", "..") and len(os.fsencode(n)) <= 255]
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    for name in fine:
        for content in contents:
            write_bytes(folder / name, content)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == dict.fromkeys(fine, contents[-1])


def test_discard_after_commit_does_nothing(tmp_path: Path) -> None:
    pending = Pending(tmp_path / "a")
    pending.temporary.write_text("x")
    pending.commit()
    pending.discard()
    assert (tmp_path / "a").read_text() == "x"
