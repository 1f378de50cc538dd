"""The model meter: measured times and bytes, published powers."""

from __future__ import annotations

from testbed.costs.power import PowerProfile
from testbed.meters.meter import EnergyReading, FrameActivity, Meter


class ModelMeter(Meter):
    """Energy as the simulator accounts for it, from what the device really did.

    Busy power over computing, idle power while waiting for the answer, and the modem's
    exchange and tail. Waiting for the next camera frame costs nothing but the tail.
    """

    def __init__(self, profile: PowerProfile) -> None:
        self.profile = profile
        self.source = f"model:{profile.name}"
        self.tail_ms = profile.radio.tail_ms

    def begin(self) -> None:
        """Nothing to read: the activity says it all."""

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
