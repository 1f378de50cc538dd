"""``sliproad testbed fit``: the practical models of delay and energy, from measurements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnn.common.console import JsonFlag, SeedOption, emit_json, warn
from cnn.common.errors import ConfigError, DataError
from cnn.common.outputs import check_file, check_folder
from cnn.common.outside import refusing
from testbed.common.output_kinds import COST_MODEL, FIT_REPORT

if TYPE_CHECKING:
    from testbed.records.record_file import Records


def fit(
    records: Annotated[
        Path,
        typer.Option(help="Parquet file of a campaign; or record file or folder of a device."),
    ] = Path("runs/campaign.parquet"),
    base: Annotated[
        str | None,
        typer.Option(
            help="With a device's records: cost model for what they do not show, a file or "
            "`shipped`."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Cost model to write, JSON.")] = None,
    name: Annotated[str, typer.Option(help="Name of the cost model.")] = "measured",
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for fit.md and pictures of a campaign; none if left out."),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(
            min=0, max=100_000, help="Bootstrap fits for a campaign's intervals; 0: no intervals."
        ),
    ] = 200,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Fit the models of delay (ms) and device energy (mJ) to a campaign or a device's records.

    Of a campaign, errors are those on held-out conditions: each condition is predicted by a fit
    to the others; the model written to --out uses all of them. Of a device's records, errors are
    those on held-out stretches of time, given each transfer; actions that were never taken come
    from --base, scaled by what was measured, and the model says which.
    """
    if out is not None:
        check_file(out, COST_MODEL, room=65_536, inputs=(records,))
    if report is not None:
        check_folder(report, FIT_REPORT)
    from testbed.costs.finite import check_finite
    from testbed.costs.record_samples import COLUMNS, MAX_ROWS
    from testbed.records.record_file import read_all

    runs = read_all(records, warn, columns=COLUMNS, max_rows=MAX_ROWS)
    for run in runs:
        check_finite(run, str(records))
    if [run.source.get("kind") for run in runs] == ["campaign"]:
        if base is not None:
            raise ConfigError(
                f"--base {base} with a campaign",
                expected="no --base: a campaign measures every action",
                hint="leave it out",
            )
        result = _of_campaign(records, runs[0], out, name, report, bootstrap, seed)
    else:
        if report is not None:
            raise ConfigError(
                f"--report {report} with a device's records",
                expected="a campaign, whose conditions the report shows",
                hint="leave it out",
            )
        result = _of_device(records, runs, base, out, name)
    if json:
        emit_json(result)


def _of_campaign(
    path: Path,
    measured: Records,
    out: Path | None,
    name: str,
    report: Path | None,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Fit a campaign, print the figures, and return them."""
    from cnn.common.checksums import file_sha256
    from testbed.costs import fit_check
    from testbed.costs.campaign_samples import payloads_of, samples_of
    from testbed.costs.cost_fit import cost_model, fit_samples
    from testbed.costs.fit_report import write_report
    from testbed.costs.measured_power import powers_of

    with refusing(
        DataError,
        f"records {path}",
        expected="a file written by `sliproad testbed campaign`",
        hint="measure again, or give another path",
    ):
        samples = samples_of(measured)
        slowdown = float(measured.source.get("slowdown", 1.0))  # of older campaigns
        payloads = payloads_of(measured)
        powers = powers_of(measured, samples)
        source = _source(measured.source, file_sha256(path))
        bundle_hash = str(measured.source["bundle_hash"])
    fitted = fit_samples(samples, slowdown, payloads)
    held_out = fit_check.hold_out(samples, slowdown, payloads, powers)
    model = cost_model(
        fitted,
        payloads,
        powers,
        name=name,
        source=source,
        bundle_hash=bundle_hash,
    )
    result: dict[str, Any] = {
        "delay_mape": held_out.delay_mape,
        "energy_mape": held_out.energy_mape,
        "r2_delay": fit_check.r_squared(held_out.delay_ms, held_out.delay_model_ms),
        "r2_energy": fit_check.r_squared(held_out.energy_mj, held_out.energy_model_mj),
        "coefficients": fitted.coefficients(),
        "intervals": fit_check.bootstrap(samples, slowdown, payloads, n=bootstrap, seed=seed),
        "by_action": held_out.by_action(),
        "delay_mape_frames": held_out.frame_delay_mape,
        "energy_source": powers.source,
        "frames": len(samples),
        "conditions": held_out.condition,
    }
    if out is not None:
        model.save(out)
        result["cost_model"] = str(out)
    if report is not None:
        written = write_report(report, model, result, held_out, measured.source)
        result["report"] = [str(path) for path in written]
    _print(result)
    return result


def _source(source: dict[str, Any], digest: str) -> str:
    return (
        f"measured: campaign {digest[:16]} of {source['created']} on {source['cpu']}, "
        f"{source['emulation']}"
    )


def _print(result: dict[str, Any]) -> None:
    typer.echo(f"{result['frames']} frames, conditions {', '.join(result['conditions'])}")
    typer.echo("held-out conditions, median frame of each action:")
    for what in ("delay", "energy"):
        error, r2 = result[f"{what}_mape"], result[f"r2_{what}"]
        known = f"mean error {error:.2%}, R2 {r2:.4f}" if math.isfinite(error) else "not measured"
        typer.echo(f"  {what}: {known}")
    worst = max(result["by_action"].items(), key=lambda item: item[1]["delay_mape"])
    typer.echo(f"  worst action for delay: {worst[0]}, {worst[1]['delay_mape']:.2%}")
    typer.echo("coefficients (ms):")
    for name, value in result["coefficients"].items():
        low, high = result["intervals"].get(name, (None, None))
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        typer.echo(f"  {name:24s} {value:8.4f}{interval}")


def _of_device(
    path: Path, runs: list[Records], base: str | None, out: Path | None, name: str
) -> dict[str, Any]:
    """Fit a device's records, print the figures, and return them."""
    from testbed.costs.record_model import model_of_records

    model, result = model_of_records(path, runs, base, name)
    if out is not None:
        model.save(out)
        result["cost_model"] = str(out)
    _print_device(result)
    return result


def _print_device(result: dict[str, Any]) -> None:
    taken = ", ".join(f"{name} {n}" for name, n in result["actions"].items())
    typer.echo(f"{result['frames']} frames: {taken}; left out: {result['left_out'] or 'none'}")
    errors = result["held_out_times"]
    typer.echo(
        f"held-out stretches, given each transfer: delay {_percent(errors['delay_mape'])}, "
        f"energy {_percent(errors['energy_mape'])} ({errors['groups']} groups)"
    )
    if result["held_out_actions"] is not None:
        errors = result["held_out_actions"]
        typer.echo(
            "held-out actions, from the others and the base: "
            f"delay {_percent(errors['delay_mape'])}, "
            f"energy {_percent(errors['energy_mape'])} ({errors['groups']} groups)"
        )
    typer.echo(f"measured: {', '.join(result['measured']) or 'no whole action'}")
    typer.echo(f"from the base, scaled: {', '.join(result['from_base']) or 'nothing'}")
    for side in ("device", "server"):
        scale = result[f"{side}_scale"]
        if scale is not None:
            typer.echo(f"{side}: {scale:.3f} times the base")


def _percent(error: float) -> str:
    return f"{error:.2%}" if math.isfinite(error) else "not measured"
