"""Errors of the environments: each is one of sliproad's and one that Gymnasium's users expect."""

from __future__ import annotations

from gymnasium import error

from cnn.common.errors import ConfigError


class InvalidActionError(ConfigError, error.InvalidAction):
    """An action is not in the action space."""


class InvalidResetError(ConfigError, error.Error, ValueError):
    """A seed or an option of ``reset`` cannot be used."""


class ResetNeededError(ConfigError, error.ResetNeeded):
    """A step was taken before ``reset``, or in a drive that has ended."""


class RenderModeError(ConfigError, error.UnsupportedMode):
    """A render mode is not offered."""
