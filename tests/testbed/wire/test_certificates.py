"""Dates of certificate files, compared with what `cryptography` wrote into them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.wire.certificates import Validity, complaints, validities
from testbed.wire.tls import ServerTls, TlsFiles

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def pki(new_pki: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return new_pki(tmp_path_factory.mktemp("pki"))


@settings(max_examples=30, deadline=None)
@given(st.datetimes(datetime(1950, 1, 1), datetime(2200, 1, 1)), st.timedeltas(DAY, 30_000 * DAY))
def test_dates_are_read_as_they_were_written(pki: Any, first: datetime, lasts: timedelta) -> None:
    """Up to 2049 as UTCTime, from then on as GeneralizedTime (RFC 5280, section 4.1.2.5)."""
    first, last = (when.replace(microsecond=0, tzinfo=UTC) for when in (first, first + lasts))
    path, _ = pki.make("any", first, last)
    assert validities(path) == [Validity(first, last)]


def test_every_certificate_of_a_file_is_read_and_the_rest_passed_over(
    pki: Any, tmp_path: Path
) -> None:
    one, key = pki.make("one", NOW - DAY, NOW)
    two, _ = pki.make("two", NOW, NOW + DAY)
    junk = "-----BEGIN CERTIFICATE-----\nTm9uZQ==\n-----END CERTIFICATE-----\n"
    parts = ["a comment\n", one.read_text(), key.read_text(), junk, two.read_text()]
    path = tmp_path / "chain.pem"
    path.write_text("".join(parts))
    assert validities(path) == [Validity(NOW - DAY, NOW), Validity(NOW, NOW + DAY)]


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_damaged_certificate_is_passed_over(pki: Any, damage: bytes, at: int) -> None:
    from base64 import encodebytes
    from ssl import PEM_cert_to_DER_cert

    der = bytearray(PEM_cert_to_DER_cert(pki.ca.read_text()))
    der[at : at + len(damage)] = damage
    path = pki.folder / "damaged.pem"
    body = encodebytes(bytes(der)).decode()
    path.write_text(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
    assert len(validities(path)) <= 1


def test_both_ends_of_the_time_are_in_it() -> None:
    validity = Validity(NOW, NOW + DAY)
    assert validity.complaint(NOW) is None
    assert validity.complaint(NOW + DAY) is None
    late = validity.complaint(NOW + DAY + timedelta(seconds=1))
    assert late is not None
    assert late.startswith("expired on 2026-07-02 12:00 UTC")
    early = validity.complaint(NOW - timedelta(seconds=1))
    assert early is not None
    assert early.startswith("not valid before 2026-07-01 12:00 UTC")
    assert "clock: 2026-07-01 11:59 UTC" in early


def test_of_authorities_one_in_date_will_do(pki: Any, tmp_path: Path) -> None:
    old, _ = pki.make("old", NOW - 2 * DAY, NOW - DAY)
    new, _ = pki.make("new", NOW - DAY, NOW + DAY)
    both = tmp_path / "both.pem"
    both.write_text(old.read_text() + new.read_text())
    assert complaints([], [both, new], NOW) == []
    assert len(complaints([], [old], NOW)) == 1
    (line,) = complaints([both, new], [], NOW)  # of a chain all must be
    assert line.startswith(f"TLS certificate {both}: expired on 2026-06-30")
    assert complaints([tmp_path / "absent.pem"], [], NOW) == []


def test_files_of_both_ends_are_looked_at(pki: Any) -> None:
    now = datetime.now(UTC)
    old, old_key = pki.make("stale", now - 2 * DAY, now - DAY)
    new, new_key = pki.make("early", now + DAY, now + 2 * DAY)
    assert TlsFiles(ca=pki.ca).complaints() == []
    (line,) = TlsFiles(pki.ca, old, old_key).complaints()
    assert "expired on" in line
    ours, theirs = ServerTls(new, new_key, client_ca=old).complaints()
    assert "not valid before" in ours
    assert theirs.startswith(f"TLS authorities {old}: expired on")
