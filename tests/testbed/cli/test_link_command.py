"""What `sliproad testbed link` refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn.common.errors import ConfigError
from testbed.cli.link_command import link


@pytest.mark.parametrize(
    ("backend", "power", "message"),
    [
        ("tc", "jetson-nano+lte-rrc", "without promotion_ms"),
        ("user-space", "toaster+lte", "toaster"),
        ("pigeon", None, "user-space or tc"),
    ],
)
def test_an_impossible_link_is_refused(
    backend: str, power: str | None, message: str, tmp_path: Path
) -> None:
    port_file = tmp_path / "port"
    with pytest.raises(ConfigError, match=message):
        link(
            server="127.0.0.1:8001",
            rate_mbps=10.0,
            rtt_ms=20.0,
            backend=backend,
            power=power,
            port_file=port_file,
        )
    assert not port_file.exists()
