"""Tables on disk: a pandas frame as a Parquet file that says whose it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import cnn
from cnn.common.files import replacing

METADATA_KEY: Final = b"sliproad.table"


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write `frame`, without its index, whole or not at all; `DataError` if it cannot be."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    ours = {METADATA_KEY: json.dumps({"sliproad": cnn.__version__}).encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **ours})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
