"""Parquet files that reveal any damage: one checksum over the whole file, and one a page.

A page's checksum (``crc`` of the page header, the Parquet format's own) covers only the data. The
headers and the footer, a third of a small file, have none, and a flipped bit there may read as
other rows. So a finished file gets a seal: a mark and the CRC-32 of all its other bytes, stored
before the footer. Parquet readers find the footer from the end and ignore the seal. So any other
program reads such a file as usual; this one refuses a file with a broken seal.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

_MARK: Final = b"\x89SLIPROADCRC"
_SEAL: Final = struct.Struct("<12sI")
_END: Final = struct.Struct("<I4s")
"""Length of the footer, then PAR1 (https://parquet.apache.org/docs/file-format/)."""
_BLOCK: Final = 1 << 20


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of a file to be sealed; raises `OSError` if the file cannot be made."""
    return pq.ParquetWriter(path, schema, write_page_checksum=True)


def seal(path: Path) -> None:
    """Seal a file that its `writer` has closed; raises `OSError` if it cannot be written."""
    with path.open("r+b") as file:
        file.seek(-_END.size, 2)
        end = file.tell()
        footer = end - int(_END.unpack(file.read())[0])
        file.seek(0)
        crc, left = 0, footer
        while block := file.read(min(_BLOCK, left)):
            crc, left = zlib.crc32(block, crc), left - len(block)
        tail = file.read()
        file.seek(footer)
        file.write(_SEAL.pack(_MARK, zlib.crc32(tail, crc)) + tail)


def read(path: Path) -> tuple[pa.Table, dict[bytes, bytes]]:
    """Rows and metadata of a Parquet file, sealed or not.

    Raises:
        OSError, pyarrow.ArrowException: if it cannot be read.
        ValueError: if its seal is broken.
    """
    content = path.read_bytes()
    at = _seal_of(content)
    if at is not None:
        view, after = memoryview(content), at + _SEAL.size
        crc = zlib.crc32(view[after:], zlib.crc32(view[:at]))
        if len(content) < after or _SEAL.unpack_from(content, at)[1] != crc:
            raise ValueError("damaged: its checksum does not fit")
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    table = file.read()
    table.validate(full=True)
    return table, dict(file.metadata.metadata or {})


def extent(path: Path) -> tuple[int, int]:
    """Rows of a Parquet file and their unpacked bytes, as stated in its footer.

    Raises:
        OSError, pyarrow.ArrowException: if it cannot be read.
    """
    footer = pq.read_metadata(path)
    groups = (footer.row_group(k) for k in range(footer.num_row_groups))
    return footer.num_rows, sum(group.total_byte_size for group in groups)


def _seal_of(content: bytes) -> int | None:
    """Position of the seal, even if its mark or the footer's length is damaged."""
    if len(content) >= _END.size:
        at = len(content) - _END.size - int(_END.unpack(content[-_END.size :])[0]) - _SEAL.size
        alike = sum(a == b for a, b in zip(content[max(at, 0) :], _MARK, strict=False))
        if at >= 0 and 2 * alike >= len(_MARK):
            return at
    at = content.rfind(_MARK)
    return None if at < 0 else at
