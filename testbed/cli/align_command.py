"""``sliproad testbed align``: add the energy measured by an instrument to records."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cnn.common.console import JsonFlag, emit_json
from cnn.common.outputs import check_file
from testbed.common.output_kinds import ALIGNED


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

    Frames are matched by time stamps; a frame that touches a hole of the log gets no energy.
    """
    check_file(out, ALIGNED, inputs=(records, log))
    from cnn.common.errors import DataError
    from testbed.meters.external_csv import frame_starts, read_power_log, with_external_energy
    from testbed.records.record_file import RecordWriter, read_records

    measured = read_records(records)
    started_s = measured.source.get("first_capture_unix_s")
    if measured.source.get("kind") != "device" or not isinstance(started_s, float):
        raise DataError(
            f"records {records} of kind {measured.source.get('kind')!r}",
            expected="records of one device run, that ended by itself or by SIGTERM",
            hint="use a file written by `sliproad testbed device --out`",
        )
    power = read_power_log(log, offset_s=offset_s, max_gap_s=max_gap_s)
    rows = with_external_energy(list(measured.rows()), started_s, power)
    known = sum(row.energy_mj is not None for row in rows)
    starts = frame_starts(rows, started_s)
    if not known:
        span = f"{_utc(power.time_s[0])} to {_utc(power.time_s[-1])}"
        run = f", which ran from {_utc(starts[0])} to {_utc(starts[-1])}" if starts else ""
        raise DataError(
            f"power log {log} of {span} covers none of the {len(rows)} frames{run}",
            expected="a log of the same time as the run, without a hole in every frame",
            hint="give the clocks' difference with --offset-s",
        )
    holes = power.holes(starts[0], starts[-1])
    hole_s = sum(end - start for start, end in holes)
    told = {"power_log": log.name, "power_log_holes": len(holes), "power_log_hole_s": hole_s}
    with RecordWriter(out, {**measured.source, **told}) as writer:
        for row in rows:
            writer.write(row)
    typer.echo(f"{known} of {len(rows)} frames with energy from {log.name}, in {out}")
    if holes:
        typer.echo(f"holes of the log during the run: {len(holes)}, {hole_s:.3f} s in all")
    if power.left_out:
        rows_left = ", ".join(f"{n} {why}" for why, n in power.left_out.items())
        typer.echo(f"rows of the log left out: {rows_left}")
    if json:
        emit_json(
            {
                "records": str(out),
                "frames": len(rows),
                "with_energy": known,
                "holes": len(holes),
                "hole_s": hole_s,
                "rows_left_out": power.left_out,
            }
        )


def _utc(unix_s: float) -> str:
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{unix_s:.0f} s"
