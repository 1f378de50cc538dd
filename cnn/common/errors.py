"""The errors a user can cause or fix, said in three parts: given, expected, what to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, overload


class SliproadError(Exception):
    """A failure that is not a bug: bad input, a missing file, an absent peer.

    The command line prints it as one line and exits with code 2.

    Args:
        given: what was given or found; or an error to say again, which is how Gymnasium's
            `AsyncVectorEnv` raises the error of a worker.
        expected: what would have been right.
        hint: what the user can do about it.
    """

    @overload
    def __init__(self, given: str, *, expected: str, hint: str) -> None: ...

    @overload
    def __init__(self, given: SliproadError) -> None: ...

    def __init__(self, given: str | SliproadError, *, expected: str = "", hint: str = "") -> None:
        if isinstance(given, SliproadError):
            again = given
            given, expected, hint = again.given, again.expected, again.hint
        self.given: str = given
        self.expected: str = expected
        self.hint: str = hint
        super().__init__(f"{given}; expected {expected}; {hint}")

    def __reduce__(self) -> tuple[Callable[[], SliproadError], tuple[Any, ...]]:
        """How to pickle it: worker processes send their errors to their parent."""
        return partial(type(self), self.given, expected=self.expected, hint=self.hint), ()


class DataError(SliproadError):
    """A data set, trace or record is missing or not of the stated form."""


class BundleError(SliproadError):
    """A model or policy bundle is missing, corrupt, or does not fit its partner."""


class ConfigError(SliproadError):
    """A setting is unknown or out of range."""


class RemoteError(SliproadError):
    """The other end (MEC server, link) is absent or refused."""
