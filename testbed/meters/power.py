"""Power of devices and modems: published profiles, each with its source, and the model meter.

A profile is a device and a modem, written ``device+modem`` such as
``jetson-nano+5g-nsa-lowband``. Nothing here was measured by this project.

Modem figures are linear fits of whole-phone power against uplink rate. Their intercept
includes the phone's own consumption with the screen on (about 2,400 mW), which is subtracted:
the rest is the connected modem at zero rate. A slope in mW per Mbit/s is an energy
per bit (nJ/bit).

Each modem has two variants. The plain one has no tail: other traffic keeps the modem of a
vehicle connected, so an exchange is charged for the modem's activity while it lasts and for
nothing after it. The ``-tail`` variant is a modem that only this application
uses: after an exchange it stays connected until the network's inactivity timer ends. The
tail's power is then taken as that of the connected modem at zero rate, an upper bound,
because discontinuous reception (C-DRX) lowers it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from cnn.common.errors import ConfigError, shown
from testbed.meters.meter import EnergyReading, FrameActivity, Meter
from testbed.records.measurement import MAX_AMOUNT


def is_amount(value: object) -> bool:
    """Whether a figure of a device or modem is finite and not negative; a bool does not count."""
    return type(value) in (int, float) and 0 <= value <= MAX_AMOUNT  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class DevicePower:
    """Power of a device without its modem.

    Attributes:
        name: such as ``jetson-nano``.
        idle_mw: while it waits.
        busy_mw: while it computes.
        source: publication or file of the figures.
    """

    name: str
    idle_mw: float
    busy_mw: float
    source: str


@dataclass(frozen=True, slots=True)
class RadioPower:
    """Modem power above the device's own idle power.

    Attributes:
        name: such as ``5g-nsa-lowband``.
        tx_mw_per_mbps: extra power for each Mbit/s while sending.
        active_mw: power while sending, waiting for the answer or receiving.
        tail_mw: power after the last activity, for at most `tail_ms`.
        tail_ms: how long the modem stays connected after activity.
        source: publication or file of the figures.

    Raises:
        ConfigError: if a figure is not a finite number, or is negative.
    """

    name: str
    tx_mw_per_mbps: float
    active_mw: float
    tail_mw: float
    tail_ms: float
    source: str

    def __post_init__(self) -> None:
        figures = (self.tx_mw_per_mbps, self.active_mw, self.tail_mw, self.tail_ms)
        texts = isinstance(self.name, str) and isinstance(self.source, str)
        if not all(map(is_amount, figures)) or not texts:
            raise ConfigError(
                f"power of modem {shown(self.name)}: {shown(figures)}",
                expected="finite figures, none negative",
                hint="correct the device profile",
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
        """``device+modem``, as given to `power_profile`."""
        return f"{self.device.name}+{self.radio.name}"


DEVICES: Final = {
    d.name: d
    for d in (
        DevicePower(
            "jetson-nano",
            2030,
            3200,
            "board power of a Jetson Nano in its low-power setting under repeated DNN load, "
            "POM_5V rails of a published tegrastats log (no model named)",
        ),
        DevicePower(
            "raspberry-pi-4",
            2700,
            6400,
            "J. Geerling, Raspberry Pi Dramble power consumption benchmarks: Pi 4 B idle "
            "540 mA, 400 % CPU load 1280 mA at 5 V (busy is an upper bound for one thread)",
        ),
    )
}

_SCREEN_ON_MW: Final = 2400.0
"""Baseline of the measured phone with its screen on, mW (2,360 and 2,410 in two sets)."""

_UMN21: Final = (
    "linear fit of the released MN-Transfer samples of A. Narayanan et al., 'A Variegated "
    "Look at 5G in the Wild', ACM SIGCOMM 2021; intercept less 2400 mW screen-on baseline"
)
_PROBE: Final = (
    "; tail length: end of RRC_CONNECTED in the released RRC-Probe samples of the same paper "
    "(Verizon); tail power: the same intercept, an upper bound (no C-DRX)"
)


def _fitted(name: str, slope_mw_per_mbps: float, intercept_mw: float) -> RadioPower:
    return RadioPower(name, slope_mw_per_mbps, intercept_mw - _SCREEN_ON_MW, 0.0, 0.0, _UMN21)


def _with_tail(radio: RadioPower, tail_ms: float) -> RadioPower:
    return replace(
        radio,
        name=f"{radio.name}-tail",
        tail_mw=radio.active_mw,
        tail_ms=tail_ms,
        source=radio.source + _PROBE,
    )


_HUANG12: Final = (
    "J. Huang et al., 'A Close Examination of Performance and Power Characteristics of 4G LTE "
    "Networks', ACM MobiSys 2012 (a first-generation LTE phone); figures as cited by later texts "
    "(uplink slope and base power: its Table 4; tail of 11.576 s: its Table 3; tail power of "
    "1060 mW), not checked against the paper itself; its promotion energy is left out, and no "
    "phone baseline is subtracted"
)
"""Three public texts that cite the paper agree on these figures (slope, base power and tail length
are in two of them each, the tail power in one); the paper's own text was not available. They are
not part of the 2021 samples behind the other profiles, which give 85.4 mW per Mbit/s and 484 mW
above the phone's baseline for LTE: use this profile as a worst case."""

_LTE = _fitted("lte", 85.4, 2884)
_LOWBAND = _fitted("5g-nsa-lowband", 32.2, 3197)
_MMWAVE = _fitted("5g-mmwave", 9.15, 5637)

RADIOS: Final = {
    r.name: r
    for r in (
        _LOWBAND,
        _LTE,
        _MMWAVE,
        # RTT of a packet after a pause jumps from below 0.4 s to above 0.7 s when the pause
        # exceeds these lengths (released probes: LTE 10.0 s, low band 10.0 s, mmWave 10.1 s).
        _with_tail(_LOWBAND, 10_000),
        _with_tail(_LTE, 10_000),
        _with_tail(_MMWAVE, 10_100),
        RadioPower(
            "lte-2012-tail",
            438.39,
            1288.04,
            1060.0,
            11_576,
            _HUANG12,
        ),
        RadioPower("none", 0.0, 0.0, 0.0, 0.0, "no modem is accounted for"),
    )
}

DEFAULT_PROFILE: Final = "jetson-nano+5g-nsa-lowband"


def power_profile(name: str) -> PowerProfile:
    """The profile ``device+modem``; ``device`` alone has no modem.

    Raises:
        ConfigError: if the device or the modem is unknown.
    """
    device, _, radio = name.partition("+")
    try:
        return PowerProfile(DEVICES[device], RADIOS[radio or "none"])
    except KeyError as error:
        raise ConfigError(
            f"power profile {shown(name)} (unknown: {shown(error.args[0])})",
            expected=f"DEVICE+MODEM with DEVICE in {sorted(DEVICES)}, MODEM in {sorted(RADIOS)}",
            hint=f"try {DEFAULT_PROFILE}",
        ) from None


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
