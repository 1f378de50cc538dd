"""``sliproad testbed doctor``: the state of this machine, and how to fix what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from cnn.common.console import JsonFlag, emit_json
from cnn.common.errors import SliproadError
from testbed.common.clock import wait_until
from testbed.meters.available import find_meters

SERVER_PACKAGES: Final = ("grpc_health", "grpc_reflection", "prometheus_client")
FIT_PACKAGES: Final = ("scipy", "matplotlib")


def doctor(
    bundle: Annotated[
        Path | None, typer.Option(help="Model bundle folder; the shipped one if left out.")
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port that a server would take.")] = 8001,
    host: Annotated[
        str, typer.Option(help="Name or address that a server would listen on.")
    ] = "127.0.0.1",
    data: Annotated[
        Path | None, typer.Option(help="Data folder; SLIPROAD_DATA if left out.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Device's configuration file (TOML) whose certificates are looked at."),
    ] = None,
    certificate: Annotated[
        list[Path] | None, typer.Option(help="PEM file of TLS to look at; repeat for several.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Say what this machine has: runtime, bundle, meters (mJ), shaping, data, port.

    Certificates are named with the day until which they are valid.

    Exits with 2 if something is missing without which no device can run.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from testbed.deploy.assembly import plain_note, tls_of
    from testbed.deploy.device_file import load_device_file
    from testbed.wire.address import parse_host

    files = list(certificate or ())
    plain = None
    if config is not None:
        device = load_device_file(config)
        tls, plain = tls_of(device), plain_note(device)
        files += [path for path in (tls.ca, tls.cert) if path is not None] if tls else []
    findings = examine(
        bundle=bundle,
        port=port,
        host=parse_host(host, "--host"),
        plain=plain,
        data=data,
        certificates=files,
    )
    table = Table("", "", "what", "found", "to fix it", box=None, pad_edge=False)
    for finding in findings:
        mark = "ok" if finding.ok else "MISSING" if finding.needed else "-"
        need = "needed" if finding.needed else ""
        cells = (mark, need, finding.name, finding.found, finding.hint)
        table.add_row(*map(escape, cells))
    Console().print(table)
    broken = [finding.name for finding in findings if finding.needed and not finding.ok]
    if json:
        emit_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]})
    if broken:
        raise typer.Exit(2)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the checked part.
        ok: True if it exists and works.
        needed: the device cannot run without it.
        found: what was found.
        hint: what to do to fix it if it is not ok; empty if it is.
    """

    name: str
    ok: bool
    needed: bool
    found: str
    hint: str = ""


def examine(
    *,
    bundle: Path | None = None,
    port: int = 8001,
    host: str = "127.0.0.1",
    plain: str | None = None,
    data: Path | None = None,
    sysfs: Path = Path("/sys"),
    certificates: Sequence[Path] = (),
) -> list[Finding]:
    """Check everything once; takes about a second and changes nothing.

    Args:
        bundle: model bundle; None is the shipped one.
        port: port that a server would use.
        host: address that it would listen on.
        plain: warning about a device's traffic without TLS (`testbed.deploy.assembly.plain_note`).
        data: folder of measured data; None uses ``SLIPROAD_DATA``.
        sysfs: the kernel's view of the hardware.
        certificates: TLS certificates (PEM files) whose dates are checked.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _runtime,
        lambda: _bundle(bundle),
        _packages,
        lambda: _port(host, port),
        lambda: _certificates(certificates),
        lambda: _in_the_clear(host, plain, certificates),
        _clock,
        lambda: _meters(sysfs),
        _plug_ins,
        lambda: _shaping(sysfs),
        lambda: _data(data),
    )
    return [finding for check in checks for finding in check()]


def _runtime() -> Iterator[Finding]:
    try:
        from cnn.ort import onnxruntime

        providers = ", ".join(_providers())
        yield Finding("onnxruntime", True, True, f"{onnxruntime.__version__} ({providers})")
    except ImportError as error:
        yield Finding("onnxruntime", False, True, str(error), "pip install sliproad")
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    busy = load > 0.5 * cpus
    hint = "other work disturbs measurements: stop it, or measure later" if busy else ""
    yield Finding("load", not busy, False, f"{load:.1f} on {cpus} cores", hint)


def _providers() -> list[str]:
    from cnn.ort import onnxruntime

    return list(onnxruntime.get_available_providers())


def _bundle(path: Path | None) -> Iterator[Finding]:
    from cnn.bundle import load_bundle
    from cnn.runtime import SplitRuntime
    from testbed.device.processor import full_local_ms

    try:
        model = load_bundle(path)
        runtime = SplitRuntime(model)
        runtime.warm(runs=1)
        local_ms = full_local_ms(runtime)
        yield Finding(
            "model bundle", True, True, f"{model.hash[:12]}, full local {local_ms:.1f} ms"
        )
    except SliproadError as error:
        yield Finding("model bundle", False, True, error.given, error.hint)


def _packages() -> Iterator[Finding]:
    for name, modules, extra in (
        ("server packages", SERVER_PACKAGES, "server"),
        ("fit packages", FIT_PACKAGES, "train"),
        ("signing packages", ("cryptography",), "signing"),
    ):
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        yield Finding(
            name,
            not missing,
            False,
            f"missing: {', '.join(missing)}" if missing else ", ".join(modules),
            f"pip install 'sliproad[{extra}]'" if missing else "",
        )


def _port(host: str, port: int) -> Iterator[Finding]:
    from testbed.wire.address import check_free

    try:
        check_free(host, port, what="server")
        yield Finding("server port", True, False, f"{port} is free")
    except SliproadError as error:
        yield Finding("server port", False, False, error.given, error.hint)


def _certificates(paths: Sequence[Path]) -> Iterator[Finding]:
    from testbed.wire.certificates import validities

    now = datetime.now(UTC)
    for path in paths:
        name = f"certificate {path.name}"
        try:
            found = validities(path)
        except OSError as error:
            yield Finding(name, False, False, error.strerror or str(error), "check the path")
            continue
        if not found:
            yield Finding(name, False, False, "no PEM certificate in it", "check the file")
        for each in found:
            complaint = each.complaint(now)
            left = f"valid until {each.not_after:%Y-%m-%d}, {(each.not_after - now).days} days"
            hint = "renew it, or set this machine's clock" if complaint else ""
            yield Finding(name, complaint is None, False, complaint or left, hint)


def _in_the_clear(host: str, plain: str | None, certificates: Sequence[Path]) -> Iterator[Finding]:
    from testbed.wire.address import is_loopback

    if not is_loopback(host) and not certificates:
        found = f"other machines reach a server on {host}, in the clear"
        hint = "serve with TLS and look at its files with --certificate (docs/deploy.md)"
        yield Finding("server TLS", False, False, found, hint)
    if plain is not None:
        found, _, hint = plain.partition("; ")
        yield Finding("device TLS", False, False, found, hint)


def _clock() -> Iterator[Finding]:
    late_ms = []
    for _ in range(40):
        when = time.monotonic() + 0.003
        wait_until(when)
        late_ms.append((time.monotonic() - when) * 1e3)
    p95 = statistics.quantiles(late_ms, n=20)[-1]
    ok = p95 < 1.0
    hint = "" if ok else "stop other work, or run with a higher priority"
    yield Finding("timer", ok, False, f"waits end {p95:.3f} ms late (p95 of 40)", hint)


def _meters(sysfs: Path) -> Iterator[Finding]:
    any_readable = False
    for meter in find_meters(sysfs):
        works = meter.readable and meter.moves
        any_readable |= works
        yield Finding(f"meter {meter.name}", works, False, meter.note, meter.hint)
    if not any_readable:
        hint = "energy is modelled (--meter model), or align an instrument's CSV log"
        yield Finding("any hardware meter", False, False, "none can be read", hint)


def _plug_ins() -> Iterator[Finding]:
    """Every plug-in, imported once: one that fails is seen here and where it is used alone."""
    from cnn.common.plug_ins import plug_ins
    from testbed.device.frame_sources import FRAME_PLUG_INS
    from testbed.meters.available import METER_PLUG_INS
    from testbed.policy.plugged_policy import POLICY_PLUG_INS
    from testbed.traces.recognise import READER_PLUG_INS

    for group in (POLICY_PLUG_INS, METER_PLUG_INS, FRAME_PLUG_INS, READER_PLUG_INS):
        for plug_in in plug_ins(group):
            found, hint = f"{plug_in.distribution} ({plug_in.value})", ""
            try:
                plug_in.load()
            except SliproadError as error:
                found, hint = error.given, error.hint
            yield Finding(f"plug-in {plug_in.name}, {group.word}", not hint, False, found, hint)


def _shaping(sysfs: Path) -> Iterator[Finding]:
    root = os.geteuid() == 0
    tools = [tool for tool in ("tc", "ip") if shutil.which(tool) is None]
    ok = root and not tools
    why = "no root" if not root else f"missing: {', '.join(tools)}"
    found = "root, tc and ip" if ok else why
    hint = "" if ok else "the user-space link needs neither"
    yield Finding("tc in network namespaces", ok, False, found, hint)


def _data(given: Path | None) -> Iterator[Finding]:
    told = given or os.environ.get("SLIPROAD_DATA")
    if not told:
        hint = "not needed; to use measured data set SLIPROAD_DATA (docs/data.md)"
        yield Finding("data folder", False, False, "SLIPROAD_DATA is not set", hint)
        return
    folder = Path(told)
    parts = [part for part in ("gtsrb", "traces") if (folder / part).is_dir()]
    ok = len(parts) == 2
    found = f"{folder} with {', '.join(parts) or 'neither gtsrb nor traces'}"
    yield Finding("data folder", ok, False, found, "" if ok else "see docs/data.md")
