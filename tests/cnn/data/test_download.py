"""Download of the archives against a real HTTP server on the loopback."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cnn.common.errors import DataError
from cnn.common.outputs import Claim
from cnn.data.download import ARCHIVES, Archive, by_hand, download

pytest.importorskip("pooch", reason="pooch comes with the extra [train]")


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


IMAGES = zipped({"GTSRB/Final_Test/Images/00000.ppm": bytes(range(256)) * 800, "GTSRB/Readme": b""})
TRUTH = zipped({"GT-final_test.csv": b"Filename;ClassId\n"})


def small_archives() -> list[Archive]:
    return [
        Archive("images.zip", hashlib.md5(IMAGES).hexdigest(), Path("GTSRB/Final_Test/Images")),
        Archive("truth.zip", hashlib.md5(TRUTH).hexdigest(), Path("GT-final_test.csv")),
    ]


class Log:
    """What the server was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []


@contextmanager
def serving(
    files: dict[str, bytes], *, cut_first_at: int | None = None
) -> Iterator[tuple[str, Log]]:
    """Serve `files` with byte ranges; optionally break off the first transfer."""
    log = Log()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            log.requests.append((self.path, asked))
            data = files.get(self.path.lstrip("/"))
            if data is None:
                self.send_error(404)
                return
            first = int(re.findall(r"\d+", asked)[0]) if asked else 0
            if first >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            stop = cut_first_at if cut_first_at and len(log.requests) == 1 else len(data)
            self.wfile.write(data[first:stop])
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", log
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(out: Path, url: str, **options: bool) -> Path:
    return download(out, archives=small_archives(), base_url=url, progress=False, **options)


@pytest.mark.slow(1)
def test_downloads_checks_and_unpacks(tmp_path: Path) -> None:
    with serving({"images.zip": IMAGES, "truth.zip": TRUTH}) as (url, log):
        fetch(tmp_path, url)
        assert len(log.requests) == 2
        fetch(tmp_path, url)
        assert len(log.requests) == 2  # nothing is fetched twice
    image = tmp_path / "GTSRB/Final_Test/Images/00000.ppm"
    assert image.read_bytes() == bytes(range(256)) * 800
    assert sorted(p.name for p in tmp_path.iterdir()) == ["GT-final_test.csv", "GTSRB"]


def test_an_interrupted_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    files = {"images.zip": IMAGES, "truth.zip": TRUTH}
    with serving(files, cut_first_at=150_000) as (url, log):
        with pytest.raises(DataError, match="cannot fetch"):
            fetch(tmp_path, url)
        kept = (tmp_path / "images.zip.part").stat().st_size
        assert 0 < kept <= 150_000
        assert not (tmp_path / "GTSRB").exists()
        fetch(tmp_path, url, keep_archives=True)
    assert log.requests[1] == ("/images.zip", f"bytes={kept}-")
    assert (tmp_path / "images.zip").read_bytes() == IMAGES


def test_a_whole_part_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(IMAGES)
    with serving({"images.zip": IMAGES, "truth.zip": TRUTH}) as (url, _):
        fetch(tmp_path, url)
    assert (tmp_path / "GTSRB/Final_Test/Images/00000.ppm").exists()


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    damaged = IMAGES[:-1] + b"?"
    with serving({"images.zip": damaged}) as (url, _), pytest.raises(DataError, match="damaged"):
        fetch(tmp_path, url)
    assert not (tmp_path / "GTSRB").exists()
    assert not (tmp_path / "images.zip").exists()


def test_without_network_the_message_says_what_to_place_where(tmp_path: Path) -> None:
    with serving({}) as (url, _):
        pass  # the server is gone: nobody listens there
    with pytest.raises(DataError) as caught:
        fetch(tmp_path, url)
    message = str(caught.value)
    for archive in small_archives():
        assert archive.name in message
        assert archive.md5 in message
    assert str(tmp_path) in message
    assert "\n" not in message


def test_files_placed_by_hand_need_no_network(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(IMAGES)
    (tmp_path / "truth.zip").write_bytes(TRUTH)
    fetch(tmp_path, "http://127.0.0.1:9/")
    assert (tmp_path / "GT-final_test.csv").exists()
    assert (tmp_path / "images.zip").read_bytes() == IMAGES  # the user's own stay


def test_a_file_of_the_users_under_an_archives_name_stays(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"another archive")
    with (
        serving({"images.zip": IMAGES, "truth.zip": TRUTH}) as (url, log),
        pytest.raises(DataError, match="another checksum"),
    ):
        fetch(tmp_path, url)
    assert log.requests == []
    assert [p.name for p in tmp_path.iterdir()] == ["images.zip"]
    assert (tmp_path / "images.zip").read_bytes() == b"another archive"


def test_what_a_killed_download_unpacked_goes_and_nothing_else(tmp_path: Path) -> None:
    for name in (".unpack-k1l_ed00", ".unpack-notes", ".unpack"):
        (tmp_path / name).mkdir()
    (tmp_path / ".unpack-k1l_ed00" / "half.ppm").write_bytes(b"P6")
    with serving({"images.zip": IMAGES, "truth.zip": TRUTH}) as (url, _):
        fetch(tmp_path, url)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {".unpack-notes", ".unpack", "GTSRB", "GT-final_test.csv"}


def test_two_downloads_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    with Claim(tmp_path, folder=True), pytest.raises(DataError, match="is in use by process"):
        fetch(tmp_path, "http://127.0.0.1:9/")


def test_a_file_with_the_right_name_but_without_the_images_is_refused(tmp_path: Path) -> None:
    other = zipped({"readme.txt": b"hello"})
    archive = Archive("images.zip", hashlib.md5(other).hexdigest(), Path("GTSRB/Final_Test/Images"))
    (tmp_path / "images.zip").write_bytes(other)
    with pytest.raises(DataError, match="holds no"):
        download(tmp_path, archives=[archive], progress=False)


def test_official_archives_are_three_with_md5_sums() -> None:
    assert len(ARCHIVES) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", a.md5) for a in ARCHIVES)
    assert "GTSRB_Final_Test_GT.zip" in by_hand(Path("somewhere"))
