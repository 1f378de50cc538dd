"""``sliproad testbed device --check``: what a run will need is tried, and nothing kept."""

from __future__ import annotations

import socket
from pathlib import Path

from cnn.common.errors import ConfigError, DataError, require
from cnn.common.outputs import check_folder
from testbed.deploy.assembly import device_config_of, plain_note, tls_of
from testbed.deploy.device_file import DeviceFile
from testbed.deploy.device_service import DeviceService
from testbed.meters.available import find_meters, open_meter


def preflight(file: DeviceFile) -> list[str]:
    """Try what a run of `file` needs; one line for each part that is there.

    Bundles and policies are loaded and tested as at the start of a run, the meter is opened,
    the camera gives a first frame, the records' folder is asked whether it can be written, and
    the metrics' port whether it is free. A server is not asked: a device starts without one.

    Raises:
        SliproadError: naming the first thing that a run would miss.
    """
    service = DeviceService(file)
    require(
        not service.complaints(),
        "; ".join(service.complaints()),
        "certificates that are valid now",
        "renew them, or set this machine's clock",
    )
    device_config_of(file, service.task)
    tls, plain = tls_of(file), plain_note(file)
    source, meter, folder = file.frames.source, file.meter, file.records.folder
    lines = [f"bundles: {service.runs()}"]
    if file.server.address is not None:
        how = "in the clear" if tls is None else f"TLS: {tls.describe()}"
        lines.append(f"server: {file.server.address}, {how}")
    if plain is not None:
        lines.append(f"warning: {plain}")
    _meter(meter.name, service.task.power)
    lines.append(f"meter: {meter.name}")
    if next(service.camera(), None) is None:
        raise DataError(
            f"frame source {source} without a frame",
            expected="at least one",
            hint="give another [frames] source",
        )
    lines.append(f"frames: {source}")
    if folder is not None:
        check_folder(Path(folder))
        lines.append(f"records: {folder}")
    if file.metrics.port is not None:
        _metrics(file.metrics.host, file.metrics.port)
        lines.append(f"metrics: {file.metrics.host}:{file.metrics.port}")
    return lines


def _meter(name: str, power: str) -> None:
    with open_meter(name, power):
        pass
    for info in find_meters():
        if info.name == name and not info.readable:
            raise ConfigError(
                f"meter {name}: {info.note}",
                expected="a meter that this process can read",
                hint="give it the right to, or use another [meter] name",
            )


def _metrics(host: str, port: int) -> None:
    import prometheus_client  # noqa: F401 - whether the extra is installed

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"[metrics] {host}:{port} ({error.strerror or error})",
            expected="an address of this machine and a port that is free",
            hint="give others in [metrics], or stop what listens there",
        ) from error
