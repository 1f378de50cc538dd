"""Fetch and unpack the official GTSRB archives, checksummed and resumable."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cnn.common.errors import DataError
from cnn.common.files import make_folder, not_written, sync
from cnn.common.outputs import Claim

_UNPACKING: Final = ".unpack-"

BASE_URL: Final = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
"""Where the benchmark's authors keep the archives (linked from benchmark.ini.rub.de)."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One file to fetch.

    Attributes:
        name: file name, also the last part of its address.
        md5: published checksum.
        holds: path it unpacks to, relative to the output folder.
    """

    name: str
    md5: str
    holds: Path


ARCHIVES: Final = (
    Archive(
        "GTSRB_Final_Training_Images.zip",
        "f33fd80ac59bff73c82d25ab499e03a3",
        Path("GTSRB/Final_Training/Images"),
    ),
    Archive(
        "GTSRB_Final_Test_Images.zip",
        "c7e4e6327067d32654124b0fe9e82185",
        Path("GTSRB/Final_Test/Images"),
    ),
    Archive(
        "GTSRB_Final_Test_GT.zip",
        "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
        Path("GT-final_test.csv"),
    ),
)
"""MD5 sums as torchvision publishes them (`torchvision/datasets/gtsrb.py`, test archives);
that of the training archive as several public loaders have it. MD5 detects damage, not malice; the
authors publish no stronger sum."""


def download(
    out: Path,
    *,
    archives: Sequence[Archive] = ARCHIVES,
    base_url: str = BASE_URL,
    keep_archives: bool = False,
    progress: bool = True,
) -> Path:
    """Fetch, check and unpack the archives that are not there yet.

    An archive that is in `out` already, placed by hand, is checked, not fetched, and left there. An
    interrupted transfer resumes. An archive is unpacked beside its final path, synced and then
    moved, so a half-unpacked set is never taken for a whole one.

    Args:
        out: folder that gets ``GTSRB/`` and ``GT-final_test.csv`` (about 0.6 GB, and as
            much again while it unpacks).
        archives: what to fetch.
        base_url: address of the folder of the archives.
        keep_archives: leave the zip files that were fetched in `out`.
        progress: show a bar on standard error.

    Returns:
        `out`, which `load_gtsrb` reads.

    Raises:
        DataError: if an archive cannot be fetched or is damaged (the message says which
            files to place where by hand), `out` cannot be written to, or another process
            downloads into it.
    """
    missing = [archive for archive in archives if not (out / archive.holds).exists()]
    if not missing:
        return out
    with Claim(out, folder=True):
        _remove_stale(out)
        for archive in missing:
            by_user = (out / archive.name).exists()
            path = _fetch(archive, out, missing, base_url, progress)
            _unpack(archive, path, out)
            if not (keep_archives or by_user):
                path.unlink()
    return out


def by_hand(out: Path, archives: Sequence[Archive] = ARCHIVES, base_url: str = BASE_URL) -> str:
    """Instructions without a network: which files, from where, into which folder."""
    files = ", ".join(f"{a.name} (md5 {a.md5})" for a in archives)
    return (
        f"fetch {files} from {base_url} on another machine, put them in {out} and run this "
        "again: it checks and unpacks them"
    )


def _fetch(
    archive: Archive, out: Path, archives: Sequence[Archive], base_url: str, progress: bool
) -> Path:
    import pooch
    import requests

    hint = by_hand(out, [a for a in archives if not (out / a.holds).exists()], base_url)
    if (out / archive.name).exists() and _md5(out / archive.name) != archive.md5:
        # Our downloads are there only after their checksum was right, so this file is not ours.
        raise DataError(
            f"{out / archive.name} has another checksum",
            expected=f"md5 {archive.md5}",
            hint="move it away, or fetch it again",
        )
    try:
        found = pooch.retrieve(
            url=base_url + archive.name,
            known_hash=f"md5:{archive.md5}",
            fname=archive.name,
            path=out,
            downloader=_Resuming(out / f"{archive.name}.part", progress),
        )
    except (requests.RequestException, OSError) as error:
        raise DataError(
            f"cannot fetch {archive.name}: {_short(error)}",
            expected=f"an answer from {base_url}",
            hint=hint,
        ) from error
    except ValueError as error:  # pooch raises it for a wrong checksum
        raise DataError(
            f"{archive.name} as fetched is damaged or another file",
            expected=f"md5 {archive.md5}",
            hint=f"try again, or {hint}",
        ) from error
    return Path(found)


def _short(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


_CHUNK_BYTES: Final = 1 << 16


class _Resuming:
    """A pooch downloader that keeps a partial file and asks the server for the rest."""

    def __init__(self, part: Path, progress: bool) -> None:
        self._part = part
        self._progress = progress

    def __call__(
        self, url: str, output_file: str | Path, pooch: Any, check_only: bool = False
    ) -> bool | None:
        import requests

        if check_only:
            return bool(requests.head(url, timeout=30, allow_redirects=True).ok)
        have = self._part.stat().st_size if self._part.exists() else 0
        headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
        with requests.get(url, stream=True, timeout=30, headers=headers) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                # Nothing is left to send: the file is whole, or its checksum will fail.
                pass
            else:
                response.raise_for_status()
                self._receive(response, have)
        sync(self._part)
        shutil.move(self._part, output_file)
        return None

    def _receive(self, response: Any, have: int) -> None:
        from tqdm import tqdm

        goes_on = response.status_code == 206 and response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {have}-")
        first = have if goes_on else 0
        length = response.headers.get("Content-Length")
        with (
            self._part.open("ab" if goes_on else "wb") as file,
            tqdm(
                total=first + int(length) if length else None,
                initial=first,
                unit="B",
                unit_scale=True,
                desc=self._part.stem,
                disable=not self._progress,
            ) as bar,
        ):
            for chunk in response.iter_content(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))


def _unpack(archive: Archive, path: Path, out: Path) -> None:
    target = out / archive.holds
    with tempfile.TemporaryDirectory(dir=out, prefix=_UNPACKING) as folder:
        try:
            with zipfile.ZipFile(path) as file:
                file.extractall(folder)
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{path}: {error}", expected="a zip archive", hint="delete it and run this again"
            ) from error
        unpacked = Path(folder) / archive.holds
        if not unpacked.exists():
            raise DataError(
                f"{path} holds no {archive.holds}",
                expected="the official archive",
                hint="delete it and run this again",
            )
        os.sync()  # once for all: 39,000 images one by one would take minutes
        try:
            make_folder(target.parent)
            if target.exists():
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            unpacked.rename(target)
            sync(target.parent)
        except OSError as error:
            raise not_written(target, error) from error


def _remove_stale(out: Path) -> None:
    """Remove files that a killed process unpacked; the caller holds the folder's lock."""
    for path in out.glob(f"{_UNPACKING}*"):
        if re.fullmatch(r"[a-z0-9_]{8}", path.name.removeprefix(_UNPACKING)):
            shutil.rmtree(path, ignore_errors=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
