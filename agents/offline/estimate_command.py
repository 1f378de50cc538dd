"""``sliproad agent estimate``: what another policy would have cost, from records alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from cnn.common.console import JsonFlag, SeedOption, emit_json, warn
from cnn.common.errors import ConfigError


def _known(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "unknown"


_WARNING = (
    "TOO FEW: {:.0f} effective frames, at least {} are needed; the records hardly show this "
    "policy, and what follows is the model's guess. Record more frames, explore more "
    "(--explore), or judge a policy that is more like the recorded one."
)


def estimate(
    records: Annotated[
        Path, typer.Option(help="Record file or folder of a device that ran with --explore.")
    ],
    policy: Annotated[Path, typer.Option(help="Policy file of the candidate.")],
    scenario: Annotated[
        str,
        typer.Option(
            help="Scenario whose device and prices the records are read with; "
            "the policy's own if left out."
        ),
    ] = "",
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Estimate a policy's delay, energy and cost from the records of another one.

    Inverse propensity scoring, its self-normalised form, and the doubly robust estimator,
    with 95 % bootstrap intervals. Trust the last; docs/agents.md says what none of them sees.
    """
    from agents.contenders import warn_of_other_task
    from agents.offline.from_records import log_of
    from agents.offline.off_policy import MIN_EFFECTIVE, warn_of_other_log
    from agents.offline.off_policy import estimate as run_estimate
    from offload_env.world import build_world
    from testbed.policy.policies import policy_from_bundle
    from testbed.policy.policy_file import PolicyBundle
    from testbed.records.record_file import read_all

    runs = read_all(records, warn)
    bundle = PolicyBundle.load(policy)
    bundle.check_fit(runs[0].source.get("bundle_hash"))
    candidate = policy_from_bundle(bundle)
    if not getattr(candidate, "memoryless", False):
        raise ConfigError(
            f"policy {policy} of kind {bundle.manifest.get('kind')!r}",
            expected="a policy that decides by one observation alone",
            hint="estimate a policy of `sliproad agent train` that decides once a frame",
        )
    world = build_world(scenario or str(bundle.manifest["scenario"]), "train")
    log = log_of(runs, world)
    warn_of_other_task(policy, bundle, world)
    warn_of_other_log(policy, bundle, log.observation)
    found = run_estimate(log, candidate, world, seed=seed)
    typer.echo(
        f"{found.frames} frames; the candidate agrees with {100 * found.match:.1f} % of them, "
        f"worth {found.effective_frames:.0f} frames of its own"
    )
    if not found.enough:
        typer.echo(_WARNING.format(found.effective_frames, MIN_EFFECTIVE))
    for outcome, by in found.figures.items():
        dr = by["dr"]
        typer.echo(
            f"{outcome:<12} logged {found.logged[outcome]:.4f}  doubly robust {dr.mean:.4f} "
            f"({dr.low:.4f} .. {dr.high:.4f})  snips {_known(by['snips'].mean)}  "
            f"ips {_known(by['ips'].mean)}"
        )
    if json:
        emit_json({"policy": str(policy), "records": str(records), **found.as_json()})
