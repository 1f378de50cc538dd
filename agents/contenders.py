"""The learnt policies that an evaluation judges: files that were given, or the shipped ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from agents.evaluation import AGENT, STAGED
from agents.origin import Origin
from agents.run_files import POLICY
from agents.shipped import shipped_path
from cnn.common.errors import BundleError, DataError
from offload_env.world import World
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.staged_policies import AnyPolicy, StagedPolicy, any_policy_from_bundle


@dataclass(frozen=True, slots=True)
class Contender:
    """A learnt policy, ready to drive, and where it comes from."""

    policy: AnyPolicy
    origin: Origin

    @property
    def name(self) -> str:
        """Its row in an evaluation: ``agent`` or ``staged-agent``."""
        return STAGED if isinstance(self.policy, StagedPolicy) else AGENT


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


def contender(path: Path, bundle_hash: str | None, *, shipped: bool = False) -> Contender:
    """Read the policy of a file or of a run's folder.

    Args:
        path: policy file, or folder of a training run.
        bundle_hash: model bundle it must fit; None does not check it.
        shipped: whether it came with the package.

    Raises:
        DataError: if the folder has no policy.
        BundleError: if the file is damaged or does not fit.
    """
    file = policy_file(path)
    bundle = PolicyBundle.load(file)
    bundle.check_fit(bundle_hash)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    origin = Origin(file, digest, shipped, str(bundle.manifest.get("scenario", "")))
    return Contender(any_policy_from_bundle(bundle), origin)


def shipped_contenders(world: World) -> list[Contender]:
    """The shipped policies of a world's scenario that fit its model bundle."""
    found = []
    for staged in (False, True):
        path = shipped_path(world.scenario.name, staged)
        if path.is_file():
            try:
                found.append(contender(path, world.table.bundle_hash, shipped=True))
            except BundleError:  # for another network: not for this world
                continue
    return found
