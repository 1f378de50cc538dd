"""What is submitted to OffloadBench: a policy file or Python code, its record, and the replay.

The record of a policy on one scenario is every number that it gave, in the order in which the
simulator asked. The simulator does the same again on the same input, so that the record alone gives
every figure again, without the policy.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from agents.contenders import contender, warn_of_other_task
from cnn.common.errors import ConfigError, DataError
from cnn.common.outside import file_bytes, refusing
from cnn.common.plug_ins import PlugIn
from cnn.topology import Topology
from offload_env.world import World
from testbed.policy.decision_points import START, DecisionSpace, decision_points
from testbed.policy.plugged_policy import POLICY_PLUG_INS, plugged_policies
from testbed.policy.policies import Feedback, Learner, Policy

NAME: Final = "submission"
"""Its row in an evaluation."""
SCENARIO: Final = "{scenario}"
"""Stands for the scenario's name in the path of policy files."""
_MAX_SOURCE: Final = 16 << 20
_MAX_DECISIONS: Final = 64 << 20
_DTYPE: Final = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class PolicySource(PlugIn):
    """An attribute of a Python file, used as a policy plug-in's entry point is."""

    def __str__(self) -> str:
        return f"policy {self.distribution}:{self.value}"

    @property
    def hint(self) -> str:
        """How to fix it."""
        return f"correct {self.distribution}; docs/offload-bench.md has the interface"

    def load(self) -> Any:
        """Import the file.

        Returns:
            a function of a topology and a training world that gives policies, as of a plug-in.

        Raises:
            ConfigError: its import raises, or it has no such attribute.
        """
        path = Path(self.distribution)
        module_name = f"offload_bench_submission_{path.stem}"
        with self.calling():
            spec = importlib.util.spec_from_file_location(module_name, path)
            if spec is None or spec.loader is None:
                raise ValueError("no Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
            found = getattr(module, self.value)
        return lambda topology, world: _made(found, topology, world)


def _made(found: Any, topology: Topology, world: World) -> Sequence[Any]:
    """The policies of an object, of a class, or of a function.

    A class is called with the topology, a function with the topology and the training world.
    """
    make: Any = found
    if inspect.isclass(found):
        return [make(topology)]
    if isinstance(found, Policy):
        return [found]
    made = make(topology, world)
    return [made] if isinstance(made, Policy) else list(made)


@dataclass(frozen=True, slots=True)
class Submission:
    """What was submitted.

    Attributes:
        path: of the policy file, in which ``{scenario}`` stands for a scenario's name, or of the
            Python file.
        attribute: of the Python file; empty for a policy file.
    """

    path: str
    attribute: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``FILE.policy`` or ``FILE.py:NAME``.

        Raises:
            ConfigError: if it is neither.
        """
        path, colon, attribute = text.rpartition(":")
        if colon and path.endswith(".py") and attribute.isidentifier():
            return cls(path, attribute)
        if text.endswith(".py") or path.endswith(".py"):
            raise ConfigError(
                f"submission {text}",
                expected="FILE.py:NAME with the name of a class, function or policy in it",
                hint="add a colon and the name",
            )
        return cls(text)

    def __str__(self) -> str:
        return f"{self.path}:{self.attribute}" if self.attribute else self.path

    def file(self, scenario: str) -> Path:
        """The file that is used in one scenario."""
        return Path(self.path if self.attribute else self.path.replace(SCENARIO, scenario))

    def sha256(self, scenario: str) -> str:
        """SHA-256 of that file, hexadecimal.

        Raises:
            DataError: if it cannot be read.
        """
        file = self.file(scenario)
        with refusing(DataError, f"submission {file}", expected="a file", hint="correct the path"):
            return hashlib.sha256(file_bytes(file, _MAX_SOURCE)).hexdigest()

    def candidates(self, train_world: World) -> list[Policy]:
        """The policies to choose from on training drives; one for a policy file.

        Raises:
            DataError: if the file cannot be read.
            BundleError: if a policy file is damaged, or for another network.
            ConfigError: if the Python code fails, or gives no policy for the network.
        """
        name = train_world.scenario.name
        self.sha256(name)  # for its error
        if not self.attribute:
            one = contender(self.file(name), train_world)
            warn_of_other_task(one.origin.path, one.bundle, train_world)
            return [one.policy]
        source = PolicySource(POLICY_PLUG_INS, NAME, self.attribute, self.path)
        return [*plugged_policies(source, train_world.topology, train_world)]


class Recorded:
    """A policy whose decisions are checked and kept, in the order in which they are asked for.

    Args:
        policy: that decides.
        name: for errors.
    """

    def __init__(self, policy: Policy, name: str) -> None:
        self.name, self.policy, self.source = NAME, policy, name
        self.space: DecisionSpace = policy.space
        self.memoryless = bool(getattr(policy, "memoryless", False))
        self._calls: list[NDArray[np.int64]] = []

    def reset(self) -> None:
        """Start a drive, and the record."""
        self.policy.reset()
        self._calls = []

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """The policy's action."""
        return int(self.decide_batch(observation[None], np.array([point]))[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The policy's actions, int64 (B,).

        Raises:
            ConfigError: if one is not legal, or the policy changed its decision space.
        """
        chosen = self.policy.decide_batch(observations, points)
        if self.policy.space.name != self.space.name:
            raise ConfigError(
                f"{self.source} changed its decision space from {self.space.name}",
                expected="one space for all drives",
                hint="correct it",
            )
        if self.space.is_staged:
            at = np.full(len(chosen), START) if points is None else points
            wrong = np.flatnonzero(~decision_points(self.space.topology).legal[at, chosen])
            if len(wrong):
                raise ConfigError(
                    f"{self.source} gave action {chosen[wrong[0]]} at decision point "
                    f"{at[wrong[0]]}",
                    expected="an action that is legal there",
                    hint="look it up in testbed.decision_points(topology).legal",
                )
        self._calls.append(chosen)
        return chosen

    def learn(self, feedback: Feedback) -> None:
        """Pass feedback on to a policy that learns."""
        if isinstance(self.policy, Learner):
            self.policy.learn(feedback)

    @property
    def record(self) -> dict[str, Any]:
        """The decisions for a JSON file; see `Replayed.read`."""
        data = np.concatenate([*self._calls, np.zeros(0, np.int64)]).astype(_DTYPE).tobytes()
        return {
            "space": self.space.name,
            "memoryless": self.memoryless,
            "decisions": len(data) // _DTYPE.itemsize,
            "sha256": hashlib.sha256(data).hexdigest(),
            "zlib_base64": base64.b64encode(zlib.compress(data, 9)).decode(),
        }


class Replayed:
    """Recorded decisions, given again in their order.

    Args:
        space: in which they were made.
        decisions: integers (D,), each from 0 to `space.n_actions` - 1.
        memoryless: whether they were asked for as of a memoryless policy.
    """

    def __init__(self, space: DecisionSpace, decisions: NDArray[Any], memoryless: bool) -> None:
        self.name, self.space, self.memoryless = NAME, space, memoryless
        self._decisions, self._at = decisions.astype(np.int64), 0

    @classmethod
    def read(cls, record: Mapping[str, Any], topology: Topology, what: str) -> Self:
        """Read what `Recorded.record` gives.

        Args:
            record: a JSON object from outside: ``decisions`` little-endian 16-bit numbers, packed
                by zlib, in base64, with their SHA-256.
            topology: of the network.
            what: names it in an error.

        Raises:
            DataError: if it is damaged, or not of this network.
        """
        expected = "a record that offload_bench.py wrote for this scenario"
        with refusing(DataError, what, expected=expected, hint="take the file as it was printed"):
            count = int(record["decisions"])
            if not 0 <= count <= _MAX_DECISIONS:
                raise ValueError(f"{count} decisions")
            size = count * _DTYPE.itemsize
            unpack = zlib.decompressobj()
            packed = base64.b64decode(record["zlib_base64"], validate=True)
            data = unpack.decompress(packed, size + 1)
            if len(data) != size or hashlib.sha256(data).hexdigest() != record["sha256"]:
                raise ValueError("its decisions do not have its SHA-256")
            if record["space"] not in ("frame", "staged"):
                raise ValueError(f"decision space {record['space']!r}")
            space = decision_points(topology).space(record["space"])
            decisions = np.frombuffer(data, _DTYPE)
            if count and int(decisions.max()) >= space.n_actions:
                raise ValueError(f"action {decisions.max()} of {space.n_actions}")
            return cls(space, decisions, bool(record["memoryless"]))

    def reset(self) -> None:
        """Begin again."""
        self._at = 0

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """The next decision."""
        return int(self.decide_batch(observation[None], np.array([point]))[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The next decisions, int64 (B,), whatever is observed.

        Raises:
            DataError: if the record has ended.
        """
        begin, self._at = self._at, self._at + len(observations)
        if self._at > len(self._decisions):
            raise self._wrong("fewer")
        return self._decisions[begin : self._at]

    def check_end(self) -> None:
        """Raise `DataError` unless every decision was used."""
        if self._at != len(self._decisions):
            raise self._wrong("more")

    def _wrong(self, how: str) -> DataError:
        return DataError(
            f"a record of {len(self._decisions)} decisions, {how} than its drives ask for",
            expected="the record of the same scenario, drives and version",
            hint="take the file as it was printed",
        )
