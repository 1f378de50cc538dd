"""``sliproad agent control``: a policy that corrects its own accuracy on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agents.run_files import named
from agents.scenario_commands import JudgedPolicy, JudgedScenario
from cnn.common.console import JsonFlag, SeedOption, emit_json
from cnn.common.errors import ConfigError, in_range
from cnn.common.outputs import check_file
from testbed.common.output_kinds import POLICY

if TYPE_CHECKING:
    from agents.credit_control import Figures

DRIVES: Final = 64
"""Training drives on which a control is chosen."""
MOST: Final = 0.005


def control(
    out: Annotated[Path, typer.Option(help="Policy file to write, .policy, with the control.")],
    scenario: JudgedScenario = "",
    policy: JudgedPolicy = None,
    most: Annotated[
        float, typer.Option(help="How much more it may cost at home, as a share of the cost.")
    ] = MOST,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Let a policy grow careful while its answers are less sure than the floor asks.

    Without labels: the confidence of the answers so far decides. Chooses how careful on training
    drives, at home and with all round trips doubled, and writes nothing where it does not pay.
    docs/agents.md explains it.
    """
    check_file(named(out), POLICY)
    in_range("--most", most, 0.0, 1.0)
    from agents.contenders import policy_to_judge, warn_of_other_task
    from agents.credit_control import controlled
    from agents.export_policy import write
    from offload_env.episode import episode_keys
    from offload_env.world import build_world

    loaded, chosen = policy_to_judge(policy, scenario)
    train = build_world(chosen, "train")
    warn_of_other_task(loaded.origin.path, loaded.bundle, train)
    found = controlled(loaded.bundle, train, episode_keys(seed, DRIVES), most)
    if found is None:
        raise ConfigError(
            f"policy {loaded.origin.path} in {chosen.name}, where no control pays",
            expected=f"at most {100 * most:g} % more cost at home, no less accuracy there, and "
            "more accuracy with all round trips doubled",
            hint="nothing is written; give a larger --most, or deploy the policy as it is",
        )
    written = write(found.bundle, out)
    before, after = found.home_before, found.home
    typer.echo(f"at home (training drives): {_line(before, after)}")
    typer.echo(f"all round trips doubled: {_line(found.away_before, found.away)}")
    typer.echo(f"price at most {found.price:g}; policy {written}")
    if json:
        emit_json({"scenario": chosen.name, **found.as_json(), "written": str(written)})


def _line(before: Figures, after: Figures) -> str:
    def of(figures: Figures) -> str:
        return f"{figures.cost:.4f} ({100 * figures.over_floor:+.2f} points)"

    return f"cost (accuracy above the floor) {of(before)} without, {of(after)} with the control"
