"""The errors a user can cause or mend, said in three parts: given, expected, mend."""

from __future__ import annotations


class SliproadError(Exception):
    """A failure that is not a bug: bad input, a missing file, an absent peer.

    The command line prints it as one line and exits with code 2.

    Args:
        given: what was given or found.
        expected: what would have been right.
        mend: what the user can do about it.
    """

    def __init__(self, given: str, *, expected: str, mend: str) -> None:
        self.given = given
        self.expected = expected
        self.mend = mend
        super().__init__(f"{given}; expected {expected}; {mend}")


class DataError(SliproadError):
    """A data set, trace or record is missing or not of the stated form."""


class BundleError(SliproadError):
    """A model or policy bundle is missing, corrupt, or does not fit its partner."""


class ConfigError(SliproadError):
    """A setting is unknown or out of range."""


class RemoteError(SliproadError):
    """The other end (MEC server, link) is absent or refused."""
