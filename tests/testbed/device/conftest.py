"""The shipped network, warm, and a server process, for the tests of the device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnn.bundle import Bundle, load_bundle
from cnn.runtime import SplitRuntime
from testbed.server.server_process import ServerProcess


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle()


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> SplitRuntime:
    runtime = SplitRuntime(bundle)
    runtime.warm(runs=1)
    return runtime


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as running:
        yield running
