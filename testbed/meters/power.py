"""Power of devices and modems: profiles, each with its source, and the model meter.

A profile is a device and a modem, written ``device+modem`` such as
``jetson-nano+5g-nsa-lowband``. Each of the two is a name of a shipped file, or the path of one of
your own: a power file (TOML), or a device profile (the JSON that `sliproad testbed fit` writes).
The shipped files are in ``testbed/assets/power``; nothing in them was measured by this project.

The shipped modems' figures are linear fits of whole-phone power against uplink rate. Their
intercept includes the phone's own consumption with the screen on (about 2,400 mW), which is
subtracted: the rest is the connected modem at zero rate. A slope in mW per Mbit/s is an energy
per bit (nJ/bit).

Each of these modems has variants. The plain one has no tail: other traffic keeps the modem of a
vehicle connected, so an exchange is charged for the modem's activity while it lasts and for
nothing after it. The ``-tail`` variant is a modem that only this application
uses: after an exchange it stays connected until the network's inactivity timer ends. The
tail's power is then taken as that of the connected modem at zero rate, an upper bound,
because discontinuous reception (C-DRX) lowers it. The ``-rrc`` variant must also connect again
after its tail (RRC idle to RRC connected) before the first byte leaves.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from cnn.common.errors import ConfigError, require, shown
from cnn.common.outside import MAX_JSON_BYTES, file_bytes, json_object, refusing
from testbed.common.toml_config import build, parse, toml_text
from testbed.meters.meter import EnergyReading, FrameActivity, Meter
from testbed.records.measurement import MAX_AMOUNT

_ASSETS: Final = resources.files("testbed") / "assets" / "power"
_FILES: Final = (".toml", ".json")
_MEND: Final = "correct the device profile"


def is_amount(value: object) -> bool:
    """Whether a figure of a device or modem is finite and not negative; a bool does not count."""
    return type(value) in (int, float) and 0 <= value <= MAX_AMOUNT  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class DevicePower:
    """Power of a device without its modem.

    Attributes:
        name: such as ``jetson-nano``, or that of a file.
        idle_mw: while it waits.
        busy_mw: while it computes, not less.
        source: origin of the figures.

    Raises:
        ConfigError: if a figure is not a finite number, is negative, or busy is below idle.
    """

    name: str
    idle_mw: float
    busy_mw: float
    source: str

    def __post_init__(self) -> None:
        require(
            is_amount(self.idle_mw) and is_amount(self.busy_mw) and self.idle_mw <= self.busy_mw,
            f"power of device {shown(self.name)}: idle {shown(self.idle_mw)} mW, "
            f"busy {shown(self.busy_mw)} mW",
            "finite figures, none negative, idle <= busy",
            _MEND,
        )

    @property
    def origin(self) -> str:
        """For cost models: the source; a shipped file's figures are published ones."""
        return self.source if self.name.endswith(_FILES) else f"published: {self.source}"


@dataclass(frozen=True, slots=True)
class RadioPower:
    """Modem power above the device's own idle power.

    Attributes:
        name: such as ``5g-nsa-lowband``, or that of a file.
        tx_mw_per_mbps: extra power for each Mbit/s while sending.
        active_mw: power while sending, waiting for the answer or receiving.
        tail_mw: power after the last activity, for at most `tail_ms`.
        tail_ms: how long the modem stays connected after activity.
        source: origin of the figures.
        promotion_ms: how long connecting takes after the tail, before the first byte leaves, at
            `active_mw`; only a modem with a tail is ever disconnected.

    Raises:
        ConfigError: if a figure is not a finite number, or is negative; or there is a promotion
            without a tail.
    """

    name: str
    tx_mw_per_mbps: float
    active_mw: float
    tail_mw: float
    tail_ms: float
    source: str
    promotion_ms: float = 0.0

    def __post_init__(self) -> None:
        figures = (
            *(self.tx_mw_per_mbps, self.active_mw, self.tail_mw, self.tail_ms),
            self.promotion_ms,
        )
        texts = isinstance(self.name, str) and isinstance(self.source, str)
        if not all(map(is_amount, figures)) or not texts:
            raise ConfigError(
                f"power of modem {shown(self.name)}: {shown(figures)}",
                expected="finite figures, none negative",
                hint=_MEND,
            )
        require(
            self.tail_ms > 0 or not self.promotion_ms,
            f"power of modem {shown(self.name)}: promotion_ms {shown(self.promotion_ms)} "
            "without a tail",
            "tail_ms above 0, after which the modem disconnects",
            _MEND,
        )

    @property
    def mj_per_byte(self) -> float:
        """Energy of sending a byte at any rate: mW per Mbit/s are nJ per bit."""
        return self.tx_mw_per_mbps * 8e-6

    def exchange_mj(self, sent_bytes: float, active_ms: float) -> float:
        """Modem energy of one exchange that lasts `active_ms` from first byte sent to
        answer read, millijoules."""
        return self.active_mw * active_ms / 1e3 + self.mj_per_byte * sent_bytes

    def tail_mj(self, elapsed_ms: float) -> float:
        """Energy of `elapsed_ms` spent in the tail (the caller caps it at `tail_ms`)."""
        return self.tail_mw * elapsed_ms / 1e3


@dataclass(frozen=True, slots=True)
class PowerProfile:
    """A device and its modem."""

    device: DevicePower
    radio: RadioPower

    @property
    def name(self) -> str:
        """``device+modem``, as given to `power_profile`; of a path, the file's name."""
        return f"{self.device.name}+{self.radio.name}"

    def to_json(self) -> dict[str, Any]:
        """Both with their sources, for the provenance of a measurement."""
        return {"device_power": asdict(self.device), "radio_power": asdict(self.radio)}

    @classmethod
    def of_json(cls, raw: dict[str, Any]) -> Self:
        """What `to_json` wrote; raises `KeyError` or `TypeError` if it is not there."""
        return cls(DevicePower(**raw["device_power"]), RadioPower(**raw["radio_power"]))


def power_names() -> tuple[str, ...]:
    """Names of the shipped power files, sorted."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in _ASSETS.iterdir()))


def names_file(profile: str) -> bool:
    """Whether a power profile is, or has in it, the path of a file."""
    return any(part.endswith(_FILES) for part in profile.split("+"))


def in_folder(profile: str, folder: Path) -> str:
    """The same power profile with its relative paths taken from `folder`."""
    parts = profile.split("+")
    return "+".join(str(folder / p) if p.endswith(_FILES) else p for p in parts)


def power_profile(profile: str) -> PowerProfile:
    """The profile ``DEVICE+MODEM``, each a shipped name or the path of a file.

    ``DEVICE`` alone has no modem, except that a file's own is taken. A path has no ``+`` in it.

    Raises:
        ConfigError: if there is no such file or name, a file's figures are impossible, or it has no
            device (or modem) where one is meant.
    """
    first, plus, second = profile.partition("+")
    of_first = _powers(first, profile)
    device, radio = of_first.get("device"), of_first.get("modem")
    if plus:
        radio = _powers(second, profile).get("modem")
    elif radio is None:
        radio = _powers("none", profile)["modem"]
    if not isinstance(device, DevicePower):
        raise _unknown(profile, f"{shown(first)} is no device")
    if not isinstance(radio, RadioPower):
        raise _unknown(profile, f"{shown(second)} is no modem")
    return PowerProfile(device, radio)


def _unknown(profile: str, why: str) -> ConfigError:
    return ConfigError(
        f"power profile {shown(profile)}: {why}",
        expected="DEVICE+MODEM, each the path of a .toml or .json file or one of "
        f"{', '.join(power_names())}",
        hint=f"try {DEFAULT_PROFILE}, or write a power file (docs/your-device.md)",
    )


DEFAULT_PROFILE: Final = "jetson-nano+5g-nsa-lowband"

_Powers = dict[str, DevicePower | RadioPower]
"""What a file has, by its sections: ``device``, ``modem`` or both."""
_Part = TypeVar("_Part", DevicePower, RadioPower)


def _powers(part: str, profile: str) -> _Powers:
    """The device and modem of one part of a profile."""
    if part.endswith(".json"):
        return _of_device_profile(Path(part))
    if part.endswith(".toml"):
        return _of_toml(toml_text(Path(part)), part, Path(part).name)
    if part not in power_names():
        raise _unknown(profile, f"unknown {shown(part)}")
    return _of_toml((_ASSETS / f"{part}.toml").read_text(encoding="utf-8"), part, part)


def _of_toml(text: str, where: str, name: str) -> _Powers:
    """The text of a power file; `name` is what its device and modem are called."""
    raw, found = parse(text, where), _Powers()
    for section, table in raw.items():
        if section == "device" and isinstance(table, dict):
            found[section] = _section(DevicePower, table, f"{where}: [device]", name)
        elif section == "modem" and isinstance(table, dict):
            found[section] = _section(RadioPower, table, f"{where}: [modem]", name)
        else:
            raise ConfigError(
                f"{where}: unknown key {shown(section)}",
                expected="the sections [device] and [modem]",
                hint="correct or remove it",
            )
    require(bool(found), f"{where}: neither [device] nor [modem]", "at least one", "add one")
    return found


def _section(kind: type[_Part], table: dict[str, Any], where: str, name: str) -> _Part:
    keys = [f.name for f in fields(kind) if f.name != "name" and f.default is MISSING]
    missing = [key for key in keys if key not in table]
    require(not missing, f"{where} without {', '.join(missing)}", ", ".join(keys), "add it")
    if "name" in table:
        raise ConfigError(
            f"{where}: key 'name'", expected="no such key: the file has a name", hint="remove it"
        )
    power = build(kind, {**table, "name": name}, where, hidden={"name"})
    require(
        bool(power.source.strip()),
        f"{where} with an empty source",
        "where its figures come from",
        "say who measured them, and how",
    )
    return power


def _of_device_profile(path: Path) -> _Powers:
    """The powers in a device profile, whose other figures are `CostModel`'s."""
    with refusing(
        ConfigError,
        f"powers in {path}",
        expected="a device profile written by `sliproad testbed fit`",
        hint="fit it again, or give another path",
    ):
        raw = json_object(file_bytes(path, MAX_JSON_BYTES))
        device = DevicePower(path.name, raw["idle_mw"], raw["busy_mw"], str(raw["power_source"]))
        return {"device": device, "modem": RadioPower(**raw["radio"])}


class ModelMeter(Meter):
    """Energy as in the simulator, from the device's actual activity.

    It charges busy power for computing, idle power for waiting for the answer, and the modem's
    exchange and tail. Waiting for the next camera frame costs only the tail.
    """

    def __init__(self, profile: PowerProfile) -> None:
        self.profile = profile
        self.source = f"model:{profile.name}"
        self.tail_ms = profile.radio.tail_ms

    def begin(self) -> None:
        """Nothing to read: the activity is enough."""

    def end(self, activity: FrameActivity) -> EnergyReading:
        """Millijoules of the window, split into its three terms."""
        device, radio = self.profile.device, self.profile.radio
        compute_mj = device.busy_mw * activity.compute_ms / 1e3
        idle_mj = device.idle_mw * activity.wait_ms / 1e3
        radio_mj = radio.exchange_mj(activity.sent_bytes, activity.exchange_ms)
        radio_mj += radio.tail_mj(activity.tail_ms)
        return EnergyReading(
            compute_mj, radio_mj, idle_mj, compute_mj + radio_mj + idle_mj, self.source
        )
