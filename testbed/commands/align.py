"""``sliproad testbed align``: give records the energy that an instrument measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnn.console import JsonFlag, emit_json


def align(
    records: Annotated[Path, typer.Option(help="Parquet file of `sliproad testbed device`.")],
    log: Annotated[
        Path,
        typer.Option(
            help="The instrument's CSV: time_s (seconds since 1970) or timestamp (ISO 8601), "
            "and power_mw, power_w, or voltage_v with current_a."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Parquet file with the measured energy, mJ.")],
    offset_s: Annotated[float, typer.Option(help="Seconds to add to the log's time stamps.")] = 0.0,
    max_gap_s: Annotated[
        float, typer.Option(help="Seconds without a sample that leave a frame without energy.")
    ] = 1.0,
    json: JsonFlag = False,
) -> None:
    """Replace modelled energy by what an instrument's log says, frame by frame.

    Frames are matched by time stamps; a frame that the log does not cover gets no energy.
    """
    from cnn.errors import DataError
    from testbed.meters.external_csv import read_power_log, with_external_energy
    from testbed.records.parquet import RecordWriter, read_records

    measured = read_records(records)
    started_s = measured.source.get("first_capture_unix_s")
    if measured.source.get("kind") != "device" or not isinstance(started_s, float):
        raise DataError(
            f"records {records} of kind {measured.source.get('kind')!r}",
            expected="records of one device run, that ended by itself or by SIGTERM",
            mend="use a file written by `sliproad testbed device --out`",
        )
    power = read_power_log(log, offset_s=offset_s, max_gap_s=max_gap_s)
    rows = with_external_energy(list(measured.rows()), started_s, power)
    known = sum(row.energy_mj is not None for row in rows)
    if not known:
        raise DataError(
            f"power log {log} covers none of the {len(rows)} frames",
            expected="a log of the same time as the run",
            mend="give the clocks' difference with --offset-s",
        )
    with RecordWriter(out, {**measured.source, "power_log": log.name}) as writer:
        for row in rows:
            writer.write(row)
    typer.echo(f"{known} of {len(rows)} frames with energy from {log.name}, in {out}")
    if json:
        emit_json({"records": str(out), "frames": len(rows), "with_energy": known})
