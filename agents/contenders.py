"""The learnt policies in an evaluation, given or shipped, and the worlds they drive in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import typer

from agents.evaluation import AGENT, STAGED, Evaluation, Origin, evaluate
from agents.export_policy import task_of
from agents.report import write_report
from agents.run_files import EVALUATION, POLICY, kept_scenario
from agents.terminal import comparison, energy_table, floor_table, steps_progress
from cnn.common.console import stderr_console, warn
from cnn.common.errors import BundleError, ConfigError, DataError, require
from cnn.common.outputs import check_folder
from cnn.common.plug_ins import PlugIn, plug_in, plug_in_names
from cnn.frame_table import FrameTable
from offload_env.scenario import Scenario, load_scenario, scenario_names
from offload_env.sources import measured_traces, traces_to_judge
from offload_env.world import World, build_world
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.plugged_policy import POLICY_PLUG_INS
from testbed.policy.policies import Policy
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.task_settings import differing, shown

MAX_FRAMES = 2_000_000
"""Frames of all test drives together; each one takes about 120 bytes for every policy."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A learnt policy, ready to drive, with its file's content and origin."""

    policy: Policy
    bundle: PolicyBundle
    origin: Origin

    @property
    def name(self) -> str:
        """Its row in an evaluation: ``agent`` or ``staged-agent``."""
        return STAGED if self.policy.space.is_staged else AGENT


def policy_file(path: Path) -> Path:
    """The policy file that `path` means: itself, or ``agent.policy`` of a run's folder.

    Raises:
        DataError: if the folder has none.
    """
    if not path.is_dir():
        return path
    inside = path / POLICY
    if not inside.is_file():
        raise DataError(
            f"folder {path} without {POLICY}",
            expected="a folder that `sliproad agent train` finished",
            hint="finish the run with --resume, or write its best policy with "
            "`sliproad agent export`",
        )
    return inside


def contender(path: Path, world: World | None, *, shipped: bool = False) -> Contender:
    """Read the policy of a file or of a run's folder.

    Args:
        path: policy file, or folder of a training run.
        world: of the network it must fit; None does not check it.
        shipped: whether it came with the package.

    Raises:
        DataError: if the folder has no policy.
        BundleError: if the file is damaged or does not fit.
    """
    file = policy_file(path)
    bundle = PolicyBundle.load(file)
    if world is None:
        bundle.check_fit(None)
    else:
        bundle.check_fit(world.table.bundle_hash, world.topology)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    origin = Origin(file, digest, shipped, str(bundle.manifest.get("scenario", "")))
    return Contender(policy_from_bundle(bundle), bundle, origin)


def shipped_contenders(world: World) -> dict[str, Contender]:
    """The shipped policies of a world's scenario that fit its model bundle, by name."""
    found = {}
    for path in (shipped_path(world.scenario.name, staged) for staged in (False, True)):
        with suppress(BundleError):  # for another network
            if path.is_file():
                shipped = contender(path, world, shipped=True)
                found[shipped.name] = shipped
    return found


def shipped_agents(world: World) -> dict[str, Policy]:
    """The shipped policies of a world's scenario by name: ``agent``, ``staged-agent``."""
    return {name: c.policy for name, c in shipped_contenders(world).items()}


def shipped_policy(world: World) -> Policy | None:
    """The shipped policy of one decision a frame; None if there is none that fits."""
    return shipped_agents(world).get(AGENT)


def shipped_path(scenario: str, staged: bool = False) -> Path:
    """Path of a scenario's shipped policy, which need not exist."""
    name = f"{scenario}.staged.policy" if staged else f"{scenario}.policy"
    return Path(str(resources.files("agents"))) / "assets" / name


def paths_of(run: Path | None, policy: Path | None, staged_policy: Path | None) -> list[Path]:
    """The policies that the command line names: files or runs' folders.

    Raises:
        ConfigError: if two of them mean the same.
    """
    if run is not None and policy is not None:
        raise ConfigError(
            f"both {run} and --policy {policy}",
            expected="one of the two",
            hint="leave --policy out",
        )
    return [path for path in (run or policy, staged_policy) if path is not None]


def judge(
    paths: list[Path],
    *,
    scenario: str,
    traces: Path | None,
    frames: Path | None,
    episodes: int,
    seed: int,
    out: Path | None,
    baselines: Sequence[str] = (),
) -> Evaluation:
    """Evaluate, print the comparison, and write the files if `out` is given.

    Args:
        paths: policy files or runs' folders; the shipped policies if there are none.
        scenario: name or file; empty takes the one that the policy was trained for.
        traces: folder of measured traces, instead of the scenario's.
        frames: frame table, instead of the scenario's.
        episodes: test drives.
        seed: of drives and bootstrap.
        out: folder.
        baselines: names of policy plug-ins to compare as well.
    """
    plug_ins = plugged_baselines(baselines)
    if out is not None:
        check_folder(out, EVALUATION)
    loaded = [contender(path, None) for path in paths]  # before the worlds: fails fast
    chosen = scenario_to_judge(scenario, paths, loaded)
    affordable(chosen, episodes)
    train_world = build_world(chosen, "train")
    test_world = _test_world(chosen, traces, frames)
    judged = contenders_of(paths, test_world)
    agents = {name: c.policy for name, c in judged.items()}
    with steps_progress(stderr_console(), "evaluating") as progress:
        result = evaluate(
            train_world,
            test_world,
            agents,
            drives=episodes,
            seed=seed,
            origins={name: c.origin for name, c in judged.items()},
            progress=progress,
            plug_ins=plug_ins,
        )
    for table in (comparison(result), floor_table(result), energy_table(result)):
        table.print()
    if out is not None:
        result.save(out)
        write_report(result, test_world, agents, out / "report.html")
        typer.echo(f"report {out / 'report.html'}")
    return result


def plugged_baselines(names: Sequence[str]) -> list[PlugIn]:
    """The policy plug-ins of these names; each is imported, so that one that fails does so now.

    Raises:
        ConfigError: there is none of a name, or it fails.
    """
    found = []
    for name in dict.fromkeys(names):
        plugged = plug_in(POLICY_PLUG_INS, name)
        if plugged is None:
            own, others = name in POLICY_PLUG_INS.ours, plug_in_names(POLICY_PLUG_INS)
            raise ConfigError(
                f"--baseline {name}" + (", which is in every evaluation" if own else ""),
                expected=f"a policy plug-in: {', '.join(others) or 'none is installed'}",
                hint="leave it out" if own else "install it, or correct the name",
            )
        plugged.load()
        found.append(plugged)
    return found


def scenario_to_judge(named: str, paths: list[Path], loaded: list[Contender]) -> Scenario:
    """The scenario on the command line, else the one beside the policy, else the policy's own.

    Args:
        named: name or file; empty if none was given.
        paths: policy files or runs' folders.
        loaded: their content; the first one decides.
    """
    if named:
        return load_scenario(named)
    if not loaded:
        return load_scenario("urban-5g")
    kept = kept_scenario(paths[0] if paths[0].is_dir() else paths[0].parent)
    if kept is not None and kept.name == loaded[0].origin.scenario:
        return kept
    name = loaded[0].origin.scenario
    if name in scenario_names():
        return load_scenario(name)
    raise ConfigError(
        f"policy {loaded[0].origin.path}, trained for the scenario {name or 'of no name'}, "
        "without that scenario beside it",
        expected="a run's folder, or a scenario",
        hint="give the scenario's file with --scenario",
    )


def policy_to_judge(policy: Path | None, scenario: str) -> tuple[Contender, Scenario]:
    """A policy and its scenario; the scenario's shipped staged policy if none is given.

    Args:
        policy: file or run's folder.
        scenario: name or file; empty takes the one that the policy was trained for.

    Raises:
        ConfigError: no policy is given, and none is shipped.
    """
    if policy is not None:
        loaded = contender(policy, None)
        return loaded, scenario_to_judge(scenario, [policy], [loaded])
    chosen = scenario_to_judge(scenario, [], [])
    path = shipped_path(chosen.name, staged=True)
    require(
        path.is_file(),
        f"scenario {chosen.name}, for which no policy is shipped",
        "a policy",
        "give the policy file or the run's folder with --policy",
    )
    return contender(path, None, shipped=True), chosen


def affordable(scenario: Scenario, episodes: int) -> None:
    """Raise `ConfigError` if so many test drives would not fit into memory."""
    frames = scenario.timing.n_frames * episodes
    if frames > MAX_FRAMES:
        raise ConfigError(
            f"{episodes} test drives of {scenario.timing.n_frames} frames",
            expected=f"at most {MAX_FRAMES} frames in all",
            hint=f"give --episodes {max(2, MAX_FRAMES // scenario.timing.n_frames)} or fewer",
        )


def contenders_of(paths: list[Path], world: World) -> dict[str, Contender]:
    """The policies of files or runs' folders by name, or the shipped ones if there are none.

    Warns of a policy that was trained for another task than the world's.
    """
    if not paths:
        shipped = shipped_contenders(world)
        name = world.scenario.name
        none = f"no policy is shipped for {name} and this model bundle: baselines only"
        found = "no policy given: the shipped ones are judged" if shipped else none
        stderr_console().print(found, highlight=False)
        return shipped
    contenders = [contender(path, world) for path in paths]
    judged = {c.name: c for c in contenders}
    if len(judged) < len(contenders):
        kind = "staged policies" if STAGED in judged else "policies of one decision a frame"
        raise ConfigError(
            f"two {kind}: {' and '.join(str(c.origin.path) for c in contenders)}",
            expected="at most one of each kind",
            hint="judge them one after the other, with the same --seed",
        )
    for c in judged.values():
        warn_of_other_task(c.origin.path, c.bundle, world)
    return judged


def _test_world(scenario: Scenario, traces: Path | None, frames: Path | None) -> World:
    measured = None
    if traces is not None or scenario.link.source == "measured":
        collection = (
            measured_traces(scenario, "test")
            if traces is None
            else traces_to_judge(scenario, traces)
        )
        stderr_console().print(
            "; ".join(collection.notes), highlight=False, markup=False, soft_wrap=True
        )
        measured = collection.traces
    table = FrameTable.load(frames) if frames is not None else None
    return build_world(scenario, "test", traces=measured, table=table)


def warn_of_other_task(path: Path, bundle: PolicyBundle, world: World) -> None:
    """One line on standard error if a policy was trained for another task than a world's."""
    task, name = bundle.task, world.scenario.name
    if task is None:
        warn(
            f"policy file {path} (format 1) does not say its task, which may be another than that "
            f"of {name}; write it again with `sliproad agent export --policy {path} --out FILE`"
        )
        return
    found = differing(task, asdict(task_of(world)))
    if found:
        text = ", ".join(f"{k} {shown(v)} instead of {shown(own)}" for k, (v, own) in found.items())
        warn(f"policy file {path} was trained for another task than that of {name}: {text}")
