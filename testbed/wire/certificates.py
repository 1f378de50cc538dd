"""From when until when a certificate file is valid, and what is wrong with that today.

The standard library reads dates of a peer's certificate or of authorities alone, and the base
install has no other reader, so the one field that is needed is read here: ``validity`` of a DER
certificate (RFC 5280, section 4.1; DER lengths: X.690, section 8.1.3).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_PEM: Final = re.compile(
    "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL | re.ASCII
)
_SEQUENCE: Final = 0x30
_UTC_TIME: Final = 0x17
_GENERALISED_TIME: Final = 0x18
_VERSION: Final = 0xA0


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is valid, both ends included.

    Attributes:
        not_before: UTC.
        not_after: UTC.
    """

    not_before: datetime
    not_after: datetime

    def complaint(self, now: datetime) -> str | None:
        """What is wrong with it at `now`; None if nothing is."""
        if now > self.not_after:
            return f"expired on {_day(self.not_after)} (this machine's clock: {_day(now)})"
        if now < self.not_before:
            return f"not valid before {_day(self.not_before)} (this machine's clock: {_day(now)})"
        return None


def validities(path: Path) -> list[Validity]:
    """Of each certificate in a PEM file, in order; one that cannot be read is left out.

    Raises:
        OSError: if the file cannot be read.
    """
    return validities_of(path.read_bytes())


def validities_of(content: bytes) -> list[Validity]:
    """The same of a PEM file's content."""
    found = []
    for pem in _PEM.findall(content.decode("ascii", errors="replace")):
        try:
            found.append(_validity(ssl.PEM_cert_to_DER_cert(pem)))
        except (ValueError, IndexError):
            continue
    return found


def complaints(
    chains: Iterable[Path], authorities: Iterable[Path], now: datetime | None = None
) -> list[str]:
    """One line for each file whose certificates are out of date; a file that is absent has none.

    Args:
        chains: certificates of this end, each with those that signed it: all must be in date.
        authorities: certificates that may sign the other end's: one in date will do.
        now: UTC; None asks the clock.
    """
    now = now or datetime.now(UTC)
    lines = []
    for paths, most in ((chains, False), (authorities, True)):
        for path in paths:
            bad = _complaints(path, now)
            if bad and (all(bad) if most else any(bad)):
                name = "authorities" if most else "certificate"
                lines.append(f"TLS {name} {path}: {next(filter(None, bad))}")
    return lines


def _complaints(path: Path, now: datetime) -> list[str | None]:
    try:
        return [each.complaint(now) for each in validities(path)]
    except OSError:
        return []


def _validity(der: bytes) -> Validity:
    """Certificate = SEQUENCE {tbs = SEQUENCE {[0] version, serial, signature, issuer,
    validity = SEQUENCE {time, time}, ...}, ...}; raises `ValueError` or `IndexError`."""
    _, at, _ = _element(der, 0, _SEQUENCE)
    _, at, _ = _element(der, at, _SEQUENCE)
    tag, _, end = _element(der, at)
    if tag == _VERSION:
        at = end
    for _ in ("serial", "signature", "issuer"):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at, _SEQUENCE)
    not_before, at = _time(der, at)
    not_after, _ = _time(der, at)
    return Validity(not_before, not_after)


def _element(der: bytes, at: int, expected: int | None = None) -> tuple[int, int, int]:
    """Tag of the element at `at`, and where its content starts and ends."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length > 0x7F:
        n = length & 0x7F
        length, start = int.from_bytes(der[start : start + n], "big"), start + n
    if (expected is not None and tag != expected) or start + length > len(der):
        raise ValueError("not the certificate's form")
    return tag, start, start + length


def _time(der: bytes, at: int) -> tuple[datetime, int]:
    """The moment at `at`, and where the next element starts."""
    tag, start, end = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:  # years 1950 to 2049
        text = ("19" if text >= "50" else "20") + text
    elif tag != _GENERALISED_TIME:
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC), end


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
