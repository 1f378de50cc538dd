"""Checks of what a caller passes: arguments, seeds, reset options and actions.

One rule and one error for every environment; input that is refused changes nothing. Each error is
both one of sliproad's and one that Gymnasium's users expect.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeVar

import numpy as np
from gymnasium import error
from gymnasium.utils import seeding
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from offload_env.episode import Keys

P = ParamSpec("P")
Self = TypeVar("Self")

MAX_KEY: Final = 2**64 - 1
"""Greatest key of an episode."""
Seeds = int | Sequence[int | None] | NDArray[np.integer] | None
Lanes = NDArray[np.intp]


class InvalidActionError(ConfigError, error.InvalidAction):
    """An action is not in the action space."""


class InvalidResetError(ConfigError, error.Error, ValueError):
    """A seed or an option of ``reset`` cannot be used."""


class ResetNeededError(ConfigError, error.ResetNeeded):
    """A step was taken before ``reset``, or in a drive that has ended."""


class RenderModeError(ConfigError, error.UnsupportedMode):
    """A render mode is not offered."""


def from_mapping(
    init: Callable[Concatenate[Self, P], None],
) -> Callable[Concatenate[Self, P], None]:
    """Let ``Env(config)`` mean ``Env(**config)`` where `config` is a mapping.

    RLlib calls the class that ``AlgorithmConfig.environment(Env, env_config={...})`` names with
    an ``EnvContext``, a dict, as the only argument
    (`ray.rllib.env.single_agent_env_runner.SingleAgentEnvRunner.make_env`). An unknown key is a
    `TypeError`, as an unknown argument is.
    """

    @wraps(init)
    def wrapped(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if len(args) == 1 and isinstance(args[0], Mapping):
            by_name: Callable[..., None] = init
            by_name(self, **{**args[0], **kwargs})
        else:
            init(self, *args, **kwargs)

    return wrapped


def draw_key(rng: np.random.Generator) -> int:
    """The key of the next episode."""
    return int(rng.integers(0, 2**63))


def asked_key(options: Mapping[str, Any] | None) -> int | None:
    """The key in the options of a single environment's ``reset``, if there is one.

    Raises:
        InvalidResetError: if another option is given, or the key is not an integer of 64 bits.
    """
    options = checked_options(options, ("key",))
    return checked_key(options["key"]) if "key" in options else None


def checked_options(options: Mapping[str, Any] | None, known: Iterable[str]) -> Mapping[str, Any]:
    """The options, none of them unknown; raises `InvalidResetError`."""
    if options is None:
        return {}
    expected = f"a dict of {', '.join(known)}"
    if not isinstance(options, Mapping):
        raise InvalidResetError(
            f"reset options of type {type(options).__name__}", expected=expected, hint="correct it"
        )
    unknown = [str(name) for name in options if name not in known]
    if unknown:
        raise InvalidResetError(
            f"unknown reset option {', '.join(unknown)}", expected=expected, hint="leave it out"
        )
    return options


def checked_key(key: Any) -> int:
    """A key as a Python integer; raises `InvalidResetError`."""
    try:
        number = operator.index(key)
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_KEY:
        said = key if isinstance(key, str | int | float) else f"of type {type(key).__name__}"
        raise InvalidResetError(
            f"reset option key {said}",
            expected="an integer from 0 to 2^64 - 1",
            hint="give the key of an episode",
        )
    return number


def asked_keys(options: Mapping[str, Any], n: int) -> Keys | None:
    """The keys in the options of a vector's ``reset``, uint64 (n,).

    ``key``: one integer for all lanes, as Gymnasium's vectors pass it to each member, or one a
    lane; ``keys``: one a lane.

    Raises:
        InvalidResetError: if both are given, or one is of the wrong length or no integer.
    """
    given = [name for name in ("key", "keys") if name in options]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidResetError("reset options key and keys", expected="one of them", hint="choose")
    value = options[given[0]]
    if isinstance(value, np.ndarray) and value.dtype == np.uint64 and value.shape == (n,):
        return value.copy()
    array = np.asarray(value, object)
    if given == ["key"] and array.ndim == 0:
        return np.full(n, checked_key(value), np.uint64)
    if array.shape != (n,):
        raise InvalidResetError(
            f"reset option {given[0]} of shape {array.shape}",
            expected=f"{n} keys, one a lane",
            hint="give one a lane, or the same to all lanes with key",
        )
    return np.array([checked_key(key) for key in array.tolist()], np.uint64)


def asked_lanes(options: Mapping[str, Any], n: int) -> Lanes:
    """Lanes to reset: those of the option ``reset_mask`` (bool (n,)), or all.

    Raises:
        InvalidResetError: if the mask is of another form, or names no lane.
    """
    if "reset_mask" not in options:
        return np.arange(n)
    mask = np.asarray(options["reset_mask"])
    if mask.shape != (n,) or mask.dtype != np.bool_ or not mask.any():
        raise InvalidResetError(
            f"reset option reset_mask of shape {mask.shape} and type {mask.dtype}, "
            f"{np.count_nonzero(mask)} true",
            expected=f"{n} bools, at least one of them true",
            hint="name the lanes to reset",
        )
    return np.flatnonzero(mask)


def checked_seed(seed: Any) -> int | None:
    """A seed as a Python integer, or None; raises `InvalidResetError`."""
    if seed is None:
        return None
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        said = seed if isinstance(seed, str | int | float) else f"of type {type(seed).__name__}"
        raise InvalidResetError(
            f"seed {said}", expected="an integer of at least 0, or None", hint="give another seed"
        )
    return number


class LaneSeeds:
    """One generator a lane, seeded as Gymnasium seeds the members of a vector."""

    def __init__(self, n: int) -> None:
        self._rngs = [np.random.default_rng() for _ in range(n)]

    def seed(self, seed: Seeds, lanes: Lanes | None = None) -> None:
        """Seed some lanes, by default all.

        Args:
            seed: an integer seeds lane k with seed + k; a sequence holds one seed a lane, where
                None keeps that lane's generator; None keeps all generators.
            lanes: intp (K,); the others keep their generators.

        Raises:
            InvalidResetError: if there is another number of seeds than lanes, or one is not an
                integer of at least 0.
        """
        n = len(self._rngs)
        if isinstance(seed, Sequence) or (isinstance(seed, np.ndarray) and seed.ndim):
            seeds = [checked_seed(value) for value in seed]
        else:
            first = checked_seed(seed)
            seeds = [None if first is None else first + k for k in range(n)]
        if len(seeds) != n:
            raise InvalidResetError(f"{len(seeds)} seeds", expected=f"{n}", hint="give one a lane")
        for k in range(n) if lanes is None else lanes.tolist():
            if (value := seeds[k]) is not None:
                self._rngs[k] = seeding.np_random(value)[0]

    def keys(self, lanes: Lanes) -> Keys:
        """Keys of the next episodes of some lanes."""
        return np.array([draw_key(self._rngs[k]) for k in lanes.tolist()], np.uint64)


def check_render_mode(render_mode: str | None, metadata: Mapping[str, Any]) -> str | None:
    """One of ``metadata["render_modes"]`` or None; raises `RenderModeError` otherwise."""
    modes: list[str] = metadata["render_modes"]
    if render_mode is not None and render_mode not in modes:
        raise RenderModeError(
            f"render_mode {render_mode}",
            expected=f"{', '.join(modes)}, or None",
            hint="choose one of them",
        )
    return render_mode


def checked_action(action: Any, n: int) -> int:
    """An action of ``Discrete(n)`` as a Python integer.

    Args:
        action: an integer of any kind: Python's, numpy's, an array or tensor of shape ().
        n: number of actions.

    Raises:
        InvalidActionError: if it is no integer, or not in 0..n-1. A float is never rounded.
    """
    try:
        number = operator.index(action)
    except TypeError:
        _refuse(f"action {_said(action)}", f"an integer from 0 to {n - 1}")
    if not 0 <= number < n:
        _refuse(f"action {number}", f"an integer from 0 to {n - 1}")
    return number


def checked_actions(actions: Any, n_envs: int, n: int) -> NDArray[np.int64]:
    """Actions of ``MultiDiscrete([n] * n_envs)`` as int64 (n_envs,).

    Args:
        actions: an array, or a sequence, of `n_envs` integers.
        n_envs: number of drives.
        n: number of actions in each.

    Raises:
        InvalidActionError: if the shape is another, or one of them is no integer in 0..n-1.
    """
    expected = f"{n_envs} integers from 0 to {n - 1}, one a lane"
    try:
        array = np.asarray(actions)
    except (TypeError, ValueError):  # of unequal lengths, or a tensor that is not on the CPU
        _refuse(f"actions {_said(actions)}", expected)
    if array.shape != (n_envs,) or array.dtype.kind not in "iub":
        _refuse(f"actions {_said(array if array.ndim else actions)}", expected)
    numbers = array.astype(np.int64, copy=False)
    # As unsigned numbers the negative ones are large: one comparison instead of two.
    outside = numbers.view(np.uint64) >= n
    if np.count_nonzero(outside):  # several times faster than any()
        lane = int(outside.argmax())
        _refuse(f"action {array[lane]} in lane {lane}", f"an integer from 0 to {n - 1}")
    return numbers


def _said(value: Any) -> str:
    """A short description of a value, for an error message."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and len(shape):
        return f"of shape {tuple(shape)} and type {dtype}"
    if isinstance(value, str | int | float | np.number | np.ndarray):
        return f"{value} of type {type(value).__name__ if dtype is None else dtype}"
    return f"of type {type(value).__name__}"


def _refuse(given: str, expected: str) -> NoReturn:
    raise InvalidActionError(
        given, expected=expected, hint="take it from the environment's action_space"
    )
