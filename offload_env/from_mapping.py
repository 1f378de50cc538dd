"""Environments that take all their arguments in one mapping, as RLlib passes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
Self = TypeVar("Self")


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
