"""The powers of the energy model: those behind a campaign's energy figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from cnn.common.errors import DataError
from testbed.costs.campaign_samples import Samples
from testbed.meters.power import RadioPower
from testbed.records.record_file import Records


@dataclass(frozen=True, slots=True)
class Powers:
    """Powers in the energy model, milliwatts, with their source.

    ``fitted`` ones come from a hardware meter's readings, other ones from a publication.
    """

    idle_mw: float
    busy_mw: float
    radio: RadioPower
    source: str
    fitted: bool = False


def powers_of(records: Records, samples: Samples) -> Powers:
    """Powers that the energy model uses.

    With the model meter they are the published ones that made the energy figures. With a
    hardware meter the device's two powers are fitted, and no modem is accounted for.

    Raises:
        DataError: if the campaign has no energy figures.
    """
    told = records.source
    if told["config"]["meter"] == "model":
        device, radio = told["device_power"], RadioPower(**told["radio_power"])
        source = f"published: {device['source']}"
        return Powers(device["idle_mw"], device["busy_mw"], radio, source)
    known = np.isfinite(samples.energy_mj)
    if not known.any():
        raise DataError(
            f"a campaign with meter {told['config']['meter']!r} and no energy figure",
            expected="energy of at least some frames",
            hint="use --meter model, or see `sliproad testbed doctor`",
        )
    columns = np.stack([samples.compute_ms, samples.delay_ms], 1)[known] / 1e3
    # busy = idle + extra with extra >= 0, so that busy is never below idle.
    extra_mw, idle_mw = nnls(columns, samples.energy_mj[known])[0].tolist()
    none = RadioPower("none", 0.0, 0.0, 0.0, 0.0, "the meter sees no modem")
    return Powers(idle_mw, idle_mw + extra_mw, none, f"fitted to {told['config']['meter']}", True)
