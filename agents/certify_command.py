"""``sliproad agent certify``: a floor with a number on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agents.run_files import named
from agents.scenario_commands import JudgedPolicy, JudgedScenario
from cnn.common.console import JsonFlag, SeedOption, emit_json
from cnn.common.errors import ConfigError
from cnn.common.outputs import check_file
from testbed.common.output_kinds import POLICY

if TYPE_CHECKING:
    from agents.certify import Certified


def certify(
    scenario: JudgedScenario = "",
    policy: JudgedPolicy = None,
    level: Annotated[
        float, typer.Option(help="Probability at which the promise is kept, between 0 and 1.")
    ] = 0.95,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Mean loss of accuracy that is promised at most; the scenario's if left out.",
            show_default=False,
        ),
    ] = None,
    critical_margin: Annotated[
        float | None,
        typer.Option(
            help="The same of the signs of the scenario's critical classes alone; the scenario's "
            "if left out.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            help="Frame table (.npz) of the calibration signs; the scenario's test frames if left "
            "out. The policy must not have learnt on them."
        ),
    ] = None,
    shifted: Annotated[
        Path | None,
        typer.Option(
            help="Frame table (.npz) under conditions that the network was not trained for "
            "(sliproad cnn table --blur, --fog): how soon the monitor alarms."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Policy file to write, .policy, with its certificate.")
    ] = None,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Certify that a policy keeps its accuracy on signs that nobody has seen.

    Tests the policy and more careful versions of it, and takes the cheapest that keeps the margin
    at this level. Says so where these signs are too few. docs/certificate.md explains it.
    """
    if out is not None:
        check_file(named(out), POLICY)
    from agents.certify import certify_policy
    from agents.contenders import policy_to_judge, warn_of_other_task
    from agents.export_policy import write
    from cnn.frame_table import FrameTable
    from offload_env.world import build_world, load_table

    loaded, chosen = policy_to_judge(policy, scenario)
    bundle, path = loaded.bundle, loaded.origin.path
    warn_of_other_task(path, bundle, build_world(chosen))
    found = certify_policy(
        bundle,
        chosen,
        load_table(chosen, "test") if frames is None else FrameTable.load(frames),
        level=level,
        margin=chosen.constraint.accuracy_margin if margin is None else margin,
        critical_margin=critical_margin,
        seed=seed,
        shifted=None if shifted is None else FrameTable.load(shifted),
    )
    for line in _lines(found):
        typer.echo(line)
    written = None
    if out is not None and found.bundle is not None:
        written = write(found.bundle, out)
        typer.echo(f"policy {written}")
    if json:
        named_by = {"scenario": chosen.name, "policy": str(path)}
        emit_json({**named_by, **found.as_json(), "written": written and str(written)})
    if out is not None and found.bundle is None:
        larger = [f"--margin {found.smallest_margin:.4f}"]
        if found.critical is not None:
            larger.append(f"--critical-margin {found.critical.smallest_margin:.4f}")
        raise ConfigError(
            f"margin {found.margin:g} at level {found.level:g}, which is not certified",
            expected="a margin that these signs can certify",
            hint=f"nothing is written; give more signs, or {' and '.join(larger)} or larger",
        )


def _lines(found: Certified) -> list[str]:
    """What was found, in sentences."""
    points, monitor = 100 * found.margin, found.monitor
    promise = f"mean loss of at most {points:.2f} points at level {found.level:g}"
    if found.cost_factor is None:
        said = [
            f"NOT CERTIFIED: {promise}. It takes {found.signs_needed} signs without any loss, and "
            f"these are {found.signs}; the smallest margin that the most careful candidate keeps "
            f"on them is {100 * found.smallest_margin:.2f} points"
        ]
    else:
        said = [
            f"certified: {promise}, floor {100 * found.floor:.2f} %, on {found.signs} signs; "
            f"price {found.price:g}, cost {found.cost_factor:.4f} of the uncertified policy's"
        ]
    if (own := found.critical) is not None:
        said.append(
            f"critical classes: margin {100 * own.margin:.2f} points, floor "
            f"{100 * own.floor:.2f} %, on {own.signs} signs; it takes {own.signs_needed} without "
            f"any loss, and the smallest margin is {100 * own.smallest_margin:.2f} points"
        )
    splits = found.splits
    said.append(
        f"{splits.splits} divisions of the signs into halves, margin "
        f"{100 * found.splits_margin:.2f} points: {100 * splits.certified_share:.1f} % certified, "
        f"{100 * splits.broken_share:.1f} % broken"
    )
    alarm = "no shifted frames given (--shifted)"
    if monitor.found_share is not None:
        within = "not" if monitor.alarm_frames is None else f"within {monitor.alarm_frames} frames"
        alarm = f"alarm {within} in 95 % of drives, within 300 in {100 * monitor.found_share:.1f} %"
    limits = "".join(
        f"{evidence}: limit {limit:.4f}, " for evidence, limit in monitor.terms.limits().items()
    )
    said.append(
        f"monitor of {limits}{monitor.false_alarms_per_day:.3g} false alarms a day; {alarm}"
    )
    return said
