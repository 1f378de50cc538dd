"""The device's configuration file: one typed, checked TOML file for an unattended device.

The classes of `sections_run` and `sections_watch` are the file's sections and their fields its
keys; ``docs/deploy.md`` documents every one of them (a test compares the two). Whatever is left
out has the default that stands there. Relative paths are taken from the file's own folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

from testbed.common.toml_config import parse_toml, read_toml
from testbed.deploy.sections_run import (
    BundlesSection,
    DriveSection,
    FramesSection,
    MeterSection,
    ServerSection,
)
from testbed.deploy.sections_watch import (
    GuardSection,
    LogSection,
    MetricsSection,
    RecordsSection,
)
from testbed.wire.tls import SYSTEM

_PATHS: Final = {
    "server": ("tls_ca", "tls_cert", "tls_key"),
    "bundles": ("model", "policy", "shadow", "trusted_keys"),
    "frames": ("data",),
    "records": ("folder",),
}


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """The whole file, checked.

    Attributes: one for each section, see their classes. Only ``bundles`` has no default
    that would do: it must name a policy or an action.
    """

    bundles: BundlesSection = field(default_factory=BundlesSection)
    server: ServerSection = field(default_factory=ServerSection)
    frames: FramesSection = field(default_factory=FramesSection)
    drive: DriveSection = field(default_factory=DriveSection)
    meter: MeterSection = field(default_factory=MeterSection)
    records: RecordsSection = field(default_factory=RecordsSection)
    metrics: MetricsSection = field(default_factory=MetricsSection)
    guard: GuardSection = field(default_factory=GuardSection)
    log: LogSection = field(default_factory=LogSection)


def load_device_file(path: Path) -> DeviceFile:
    """Read and check a configuration file.

    Raises:
        ConfigError: if it cannot be read, or a key is unknown, of the wrong type or
            impossible.
    """
    return _resolved(read_toml(path, DeviceFile), path.parent)


def parse_device_file(text: str, where: str = "device.toml", folder: Path = Path()) -> DeviceFile:
    """The text of such a file; relative paths are taken from `folder`."""
    return _resolved(parse_toml(text, DeviceFile, where), folder)


def keys() -> list[str]:
    """Every key as ``section.key``, in the order of the classes."""
    sections = get_type_hints(DeviceFile)
    return [f"{name}.{key.name}" for name, kind in sections.items() for key in fields(kind)]


def _resolved(file: DeviceFile, folder: Path) -> DeviceFile:
    changed: dict[str, Any] = {}
    for name, path_keys in _PATHS.items():
        section = getattr(file, name)
        given = {key: getattr(section, key) for key in path_keys}
        paths = {
            key: _joined(folder, value)
            for key, value in given.items()
            if value is not None and (key, value) != ("tls_ca", SYSTEM)
        }
        changed[name] = replace(section, **paths)
    return replace(file, **changed)


def _joined(folder: Path, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(str(folder / each) for each in value)
    return str(folder / value)
