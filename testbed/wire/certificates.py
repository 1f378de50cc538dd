"""Certificate files: validity, checks before use, and renewal without a restart.

Both ends of TLS accept renewed files without a restart. `TlsWatch` holds the contents in use. It
accepts new ones only if they can be used and are in date, so an incomplete file, or a certificate
whose key is not written yet, changes nothing.

The standard library reads only the dates of a peer's certificate or of authorities, and the base
install has no other reader, so the one field that is needed is read here: ``validity`` of a DER
certificate (RFC 5280, section 4.1; DER lengths: X.690, section 8.1.3).
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from cnn.common.errors import ConfigError

_PEM: Final = re.compile(
    "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL | re.ASCII
)
_SEQUENCE: Final = 0x30
_UTC_TIME: Final = 0x17
_GENERALISED_TIME: Final = 0x18
_VERSION: Final = 0xA0

Contents = dict[str, bytes]
"""Contents of the files, by the names of the fields that hold their paths."""

_log = logging.getLogger(__name__)


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
        """The problem with it at `now`; None if there is none."""
        if now > self.not_after:
            return f"expired on {_day(self.not_after)} (this machine's clock: {_day(now)})"
        if now < self.not_before:
            return f"not valid before {_day(self.not_before)} (this machine's clock: {_day(now)})"
        return None


def validities(path: Path) -> list[Validity]:
    """The validity of each certificate in a PEM file, in order; unreadable ones are left out.

    Raises:
        OSError: if the file cannot be read.
    """
    return validities_of(path.read_bytes())


def validities_of(content: bytes) -> list[Validity]:
    """The same for a PEM file's content."""
    found = []
    for pem in _PEM.findall(content.decode("ascii", errors="replace")):
        try:
            found.append(_validity(ssl.PEM_cert_to_DER_cert(pem)))
        except (ValueError, IndexError):
            continue
    return found


def complaints(
    chains: Iterable[Path | None],
    authorities: Iterable[Path | None],
    now: datetime | None = None,
) -> list[str]:
    """One line for each file whose certificates are out of date; a file that is absent has none.

    Args:
        chains: certificates of this end, each with its signers: all must be in date.
        authorities: certificates that may sign the other end's: one in date is enough.
        now: UTC; None uses the clock.
    """
    now = now or datetime.now(UTC)
    lines = []
    for paths, most in ((chains, False), (authorities, True)):
        for path in filter(None, paths):
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


class _Files(Protocol):
    def contents(self) -> Contents: ...
    def check(self) -> None: ...
    def complaints(self) -> list[str]: ...


class TlsWatch:
    """The contents of TLS files in use, replaced by newer ones once they can be used.

    Safe for several threads.

    Args:
        files: of either end.

    Attributes:
        contents: the contents in use; empty before `load`.
    """

    def __init__(self, files: _Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._refused: object = None
        self.contents: Contents = {}

    def load(self) -> Contents:
        """Use the files' present contents, in date or not; raises `ConfigError` if unusable."""
        self.contents = read_whole(self._files)
        return self.contents

    def look(self) -> bool:
        """Use the files' present contents if they are new and usable; returns True if so.

        Unusable contents are logged once, and the old ones stay in use.
        """
        with self._lock:
            try:
                found = self._files.contents()
            except ConfigError as error:
                self._refuse(str(error), str(error))
                return False
            if found == self.contents:
                self._refused = None
                return False
            try:
                if read_whole(self._files) != found:
                    return False  # still being written
            except ConfigError as error:
                self._refuse(found, str(error))
                return False
            if lines := self._files.complaints():
                self._refuse(found, lines[0])
                return False
            self._refused, self.contents = None, found
            _log.info("new TLS files in use")
            return True

    def not_after(self) -> dict[str, float]:
        """End of validity of the contents in use, as Unix time in seconds: ``cert`` of the chain's
        certificate that ends first, ``ca`` or ``client_ca`` of the authority that ends last."""
        ends: dict[str, float] = {}
        for name in ("ca", "client_ca", "cert"):
            content = self.contents.get(name, b"")
            if found := [each.not_after.timestamp() for each in validities_of(content)]:
                ends[name] = min(found) if name == "cert" else max(found)
        return ends

    def _refuse(self, what: object, why: str) -> None:
        if what != self._refused:
            _log.warning("new TLS files not used, the old ones stay in use: %s", why)
        self._refused = what


def system_authorities() -> bytes | None:
    """PEM of the public authorities that this system trusts; None where it has no such file.

    GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names that file; otherwise it is OpenSSL's, which SSL_CERT_FILE
    may replace. Without any, gRPC uses Mozilla's list at the time of its own release, which is part
    of grpcio (``roots.pem``).
    """
    file = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    file = file or ssl.get_default_verify_paths().cafile
    return None if file is None else _read(Path(file))


def read_whole(files: _Files) -> Contents:
    """Contents that were checked and did not change meanwhile; raises `ConfigError`."""
    found = files.contents()
    files.check()
    if files.contents() != found:
        raise ConfigError(
            "TLS files that change while they are read",
            expected="files that are written already",
            hint="try again",
        )
    return found


def contents_of(**paths: Path | None) -> Contents:
    return {name: _read(path) for name, path in paths.items() if path is not None}


def check_chain(cert: Path, key: Path) -> None:
    # gRPC itself would only report that the port cannot be bound.
    _read(cert)
    _read(key)
    try:
        # A key with a password must fail, not prompt on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError, or a file that was just removed
        raise ConfigError(
            f"TLS certificate {cert} with key {key}: {error}",
            expected="a PEM certificate and its PEM key without a password",
            hint="check that the two files belong together",
        ) from error


def check_authorities(path: Path) -> None:
    data = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:  # also for an empty file
        raise ConfigError(
            f"TLS authorities {path}: {error}",
            expected="one or more PEM certificates",
            hint="give the file of the authority that signed the other end's certificate",
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"TLS file {path}: {error.strerror or error}",
            expected="a readable PEM file",
            hint="check the path and its permissions",
        ) from error
