"""Journals of older versions: Arrow streams without checksums, read in a process of its own.

Arrow's reader may end its process on damaged bytes, or ask for any amount of memory. So another
process reads such a journal, with bounds on time and memory, and writes the Parquet file. What
is passed on ends at the first batch that Arrow refuses, and leaves impossible rows out.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa

from testbed.deploy.journal import UnreadableError
from testbed.records.measurement import only_possible

_LIMIT_S: Final = 300.0
_MEMORY: Final = 4 << 30
"""Address space of that process, bytes; the libraries take 1 GB of it."""


def convert(journal: Path, target: Path) -> tuple[int, int]:
    """Write the possible rows of an old journal to `target`, a finished Parquet file.

    Returns:
        Rows written (without any there is no file), and impossible rows left out.

    Raises:
        OSError: if the target cannot be written.
        UnreadableError: if the process that read it crashed, or took too long.
    """
    command = [sys.executable, "-m", __name__, str(journal), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        told = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise UnreadableError from error
    if told["errno"]:
        raise OSError(told["errno"], told["reason"])
    return told["rows"], told["left_out"]


def _batches(journal: Path) -> Iterator[pa.RecordBatch]:
    with journal.open("rb") as file:
        try:
            for batch in pa.ipc.open_stream(file):
                batch.validate(full=True)
                yield batch
        except (pa.ArrowException, EOFError, OSError, MemoryError):
            return  # cut off or damaged here


def _main() -> None:
    from testbed.deploy.record_folder import write_parquet

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    journal, target = map(Path, sys.argv[1:])
    left_out = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal left_out
        for batch in _batches(journal):
            rows = only_possible(batch)
            left_out += batch.num_rows - rows.num_rows
            yield rows

    told = {"errno": 0, "reason": "", "rows": 0, "left_out": 0}
    try:
        told |= {"rows": write_parquet(batches(), target), "left_out": left_out}
    except OSError as error:
        told |= {"errno": error.errno or 5, "reason": error.strerror or str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    _main()
