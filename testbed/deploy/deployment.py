"""The network and policies of a deployed device, loaded and tested before use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnn.bundle import Bundle, load_bundle
from cnn.common.errors import BundleError, ConfigError, SliproadError, require, shown
from cnn.common.plug_ins import plug_in, plug_in_names
from cnn.ort import CPU_PROVIDER
from cnn.runtime import SplitRuntime
from cnn.topology import Topology
from testbed.deploy.guarded_policy import ask, stage_start
from testbed.deploy.loss_monitor import MonitorTerms
from testbed.deploy.signing import TrustedKeys, signature_path
from testbed.meters.power import names_file, power_profile
from testbed.policy.decision_points import START, DecisionSpace, decision_points
from testbed.policy.exploration import ExploringPolicy
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.plugged_policy import POLICY_PLUG_INS, PluggedPolicy, plugged_policies
from testbed.policy.policies import Policy, StaticPolicy
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.reference_profile import ReferenceProfile
from testbed.policy.task_settings import Task

_TEST_OBSERVATIONS = 64
_TEST_SEED = 0

Stamp = tuple[tuple[str, int, int, int], ...]
"""(path, inode, size, modification time) of every file of a deployment."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a deployment comes from.

    Attributes:
        model: bundle folder; None is the shipped one.
        policy: policy file, or None with `action` or `plug_in`.
        action: one action for every frame, or None with `policy` or `plug_in`.
        plug_in: name of a policy plug-in, or None with `policy` or `action`.
        shadow: second policy file, or None.
        threads: of the runtime.
        providers: of the runtime.
        trusted_keys: public key files; if there are any, model and policies must be signed by
            one of them. The shipped model is part of the installation and needs no signature.
        needs_reference: refuse a policy file without a reference profile (a guard relies on it).
        explore: share of frames whose action is drawn at random; if not 0, the deployment read
            at the start stays in use.
        seed: of these draws.
    """

    model: Path | None = None
    policy: Path | None = None
    action: str | None = None
    shadow: Path | None = None
    threads: int = 1
    providers: tuple[str, ...] = (CPU_PROVIDER,)
    trusted_keys: tuple[Path, ...] = ()
    needs_reference: bool = False
    explore: float = 0.0
    seed: int = 0
    plug_in: str | None = None

    def stamp(self) -> Stamp:
        """Changes whenever a file is replaced or edited; a missing file counts as such."""
        if self.explore:
            return ()
        files = [path for path in (self.policy, self.shadow) if path is not None]
        if self.model is not None:
            files += [self.model / "manifest.json", *sorted(self.model.glob("segments/*.onnx"))]
        if self.trusted_keys:
            signed = (self.model, self.policy, self.shadow)
            files += [signature_path(path) for path in signed if path is not None]
        return tuple(_stamp(path) for path in files)


@dataclass(frozen=True, slots=True, eq=False)
class Deployment:
    """A network and the policies made for it, ready to run.

    Attributes:
        model: the verified model bundle.
        runtime: of that bundle, warmed up.
        policy: makes the decisions.
        policy_hash: twelve digits of its file's content hash, or the action's name, or name and
            version of the distribution that the plug-in is of.
        shadow: decides without acting; None without one.
        reference: reference profile of the policy; None if its file has none.
        stamp: of the files when they were read.
        task: the policy's task; None if its file has none, or there is no file.
        shadow_task: the same of the shadow.
        monitor: of the policy's certificate; None if its file has none.
    """

    model: Bundle
    runtime: SplitRuntime
    policy: Policy
    policy_hash: str
    shadow: Policy | None
    reference: ReferenceProfile | None
    stamp: Stamp
    task: Task | None = None
    shadow_task: Task | None = None
    monitor: MonitorTerms | None = None


def load(
    sources: Sources,
    observations: NDArray[np.float32] | None = None,
    frame: NDArray[np.uint8] | None = None,
    running: Deployment | None = None,
) -> Deployment:
    """Read, verify and test everything.

    Args:
        sources: files.
        observations: recent observations, float32 (n, obs_dim), for the test of the policies.
        frame: a recent frame, uint8 (H, W, 3), for the test of the network.
        running: the current deployment; its network is kept if the bundle is the same, and a new
            one must have the same topology and read frames of the same size.

    Raises:
        BundleError: if a file is missing, damaged, not signed as required, does not fit the
            others, or its contents fail their test, or if it has a certificate whose monitor
            this version cannot keep.
        ConfigError: if a trusted key cannot be read, the network has no such action, this
            machine's ONNX Runtime lacks a provider, or the plug-in fails.
    """
    stamp = sources.stamp()
    trusted = TrustedKeys.read(sources.trusted_keys) if sources.trusted_keys else None
    model = load_bundle(sources.model)
    if trusted is not None and sources.model is not None:
        trusted.check(sources.model, "model", model.hash)
    if running is not None and model.hash == running.model.hash:
        model, runtime = running.model, running.runtime
    else:
        runtime = _new_runtime(model, sources, running, frame)
    reference = task = shadow_task = monitor = None
    if sources.policy is not None:
        bundle = _policy_file(sources.policy, model, trusted)
        policy: Policy = policy_from_bundle(bundle)
        policy_hash, reference = (
            bundle.content_hash[:12],
            ReferenceProfile.of_manifest(bundle.manifest),
        )
        task, monitor = bundle.task, MonitorTerms.of_manifest(bundle.manifest)
    elif sources.plug_in is not None:
        policy = _plugged(sources.plug_in, model.topology, trusted)
        policy_hash = policy.plug_in.distribution
    else:
        chosen = model.topology.parse(sources.action or "")
        policy, policy_hash = StaticPolicy(chosen, topology=model.topology), chosen.name
    if sources.needs_reference and reference is None:
        raise BundleError(
            f"guard of {sources.policy or sources.plug_in or sources.action}, which promises "
            "nothing",
            expected="a policy file with a promise, or limits of your own",
            hint="train it with this version, or set guard.max_delay_ms or another limit",
        )
    shadow: Policy | None = None
    if sources.shadow is not None:
        bundle = _policy_file(sources.shadow, model, trusted)
        shadow, shadow_task = policy_from_bundle(bundle), bundle.task
    for each in (policy, shadow):
        if each is not None:
            check_policy(each, observations)
    if sources.explore:
        policy = _exploring(policy, sources)
    return Deployment(
        model, runtime, policy, policy_hash, shadow, reference, stamp, task, shadow_task, monitor
    )


def _plugged(name: str, topology: Topology, trusted: TrustedKeys | None) -> PluggedPolicy:
    """The policy of a plug-in on a device."""
    found = plug_in(POLICY_PLUG_INS, name)
    if found is None:
        others = plug_in_names(POLICY_PLUG_INS)
        raise ConfigError(
            f"policy {name}: no such file, and no plug-in of this name",
            expected=f"a policy file, or one of the plug-ins: {', '.join(others) or 'none here'}",
            hint="check the path, or install the plug-in",
        )
    if trusted is not None:
        raise BundleError(
            f"{found}, with trusted_keys",
            expected="a signed policy file",
            hint="leave trusted_keys out, or give a policy file",
        )
    return plugged_policies(found, topology)[0]


def _exploring(policy: Policy, sources: Sources) -> Policy:
    if policy.space.is_staged:
        raise ConfigError(
            f"explore {sources.explore:g} with a staged policy",
            expected="a policy that decides once a frame",
            hint="do not explore, or give another policy",
        )
    return ExploringPolicy(policy, sources.explore, sources.seed)


def check_policy(policy: Policy, observations: NDArray[np.float32] | None = None) -> None:
    """Raise `BundleError` unless the policy decides on finite outputs, alone as in a batch.

    Args:
        policy: under test; a staged one is asked at every decision point. It is reset afterwards.
        observations: float32 (n, obs_dim), tried besides random ones and extremes.

    Raises:
        ConfigError: instead, if the policy is a plug-in's.
    """
    space = policy.space
    points = range(decision_points(space.topology).n_points) if space.is_staged else (START,)
    try:
        for point in points:
            tried = _test_observations(observations, space, point)
            for row in tried:
                ask(policy, row, point)
            outputs = getattr(policy, "outputs", None)
            if outputs is not None and not np.isfinite(outputs(tried)).all():
                raise ValueError("outputs that are not finite")
        policy.reset()
    except SliproadError:  # of a plug-in, which it names
        raise
    except Exception as error:  # a policy that fails in any way is not used
        raise BundleError(
            f"policy {policy.name!r} fails its self-test ({type(error).__name__}: {error})",
            expected="a finite decision for every observation",
            hint="export the policy again with `sliproad agent export`",
        ) from error


def _test_observations(
    seen: NDArray[np.float32] | None, space: DecisionSpace, point: int
) -> NDArray[np.float32]:
    """Random observations, extremes, and those `seen`, all as at the start of a frame.

    Returns:
        float32 (n, `space.obs_dim`).
    """
    size = space.obs_dim
    rng = np.random.default_rng([_TEST_SEED, point])
    random = rng.uniform(-1, 1, (_TEST_OBSERVATIONS, size)).astype(np.float32)
    extremes = np.array([[-1.0], [0.0], [1.0]], np.float32) * np.ones(size, np.float32)
    tried: list[NDArray[np.float32]] = [random, extremes]
    if seen is not None:
        start = np.tile(stage_start(space.topology), (len(seen), 1))
        tried.append(np.concatenate([seen, start], axis=1) if space.is_staged else seen)
    return np.concatenate(tried)


def check_runtime(runtime: SplitRuntime, frame: NDArray[np.uint8] | None = None) -> None:
    """Raise `BundleError` unless every action answers with a class and a probability."""
    config = runtime.bundle.config
    if frame is None:
        shape = (config.input_size, config.input_size, 3)
        frame = np.random.default_rng(_TEST_SEED).integers(0, 256, shape, np.uint8)
    for action in runtime.topology.actions:
        prediction, confidence = runtime.act(frame, action)
        sound = math.isfinite(confidence) and 0 < confidence <= 1.0001
        if not sound or not 0 <= prediction < config.n_classes:
            raise BundleError(
                f"model bundle {runtime.bundle.hash[:12]}: {action.name} answers class "
                f"{prediction} with confidence {confidence}",
                expected="a class of the network and a probability",
                hint="export the bundle again with `sliproad cnn export`",
            )


def _new_runtime(
    model: Bundle, sources: Sources, running: Deployment | None, frame: NDArray[np.uint8] | None
) -> SplitRuntime:
    if running is not None and _form(model) != _form(running.model):
        raise BundleError(
            f"model bundle {model.hash[:12]}: {_form(model)}",
            expected=f"{_form(running.model)}, as the running one",
            hint="restart the device to change to a network of another form",
        )
    runtime = SplitRuntime(model, sources.threads, sources.providers)
    runtime.warm(device_segments(model.topology))
    if running is not None:  # at the start no frame waits, and there is no other deployment to keep
        check_runtime(runtime, frame)
    return runtime


def _form(model: Bundle) -> str:
    return f"{model.topology}, for frames of {model.config.input_size} pixels"


def device_segments(topology: Topology) -> tuple[str, ...]:
    """The parts of a bundle that a device loads: everything but the decoders."""
    return tuple(name for name in topology.segments if not name.startswith("dec"))


def _policy_file(path: Path, model: Bundle, trusted: TrustedKeys | None) -> PolicyBundle:
    bundle = PolicyBundle.load(path)
    if trusted is not None:
        trusted.check(path, "policy", bundle.content_hash)
    bundle.check_fit(model.hash, model.topology)
    if bundle.task is not None and bundle.task.power:
        try:
            require(
                not names_file(bundle.task.power),
                f"power {shown(bundle.task.power)}, a file of another machine",
                "a shipped power profile, or none",
            )
            power_profile(bundle.task.power)
        except ConfigError as error:
            raise BundleError(
                f"policy file {path} with {error.given}", expected=error.expected, hint=error.hint
            ) from error
    return bundle


def _stamp(path: Path) -> tuple[str, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns
