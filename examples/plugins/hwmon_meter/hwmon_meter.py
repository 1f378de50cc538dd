"""A power sensor of the kernel's hwmon class (INA219, INA226, INA260, ...) as a meter of sliproad.

    sliproad testbed device --meter hwmon:/sys/class/hwmon/hwmon2/power1_input --local-only ...

Such a file holds microwatts (the kernel's Documentation/hwmon/sysfs-interface.rst).
"""

from pathlib import Path

from testbed import Meter, SampledMeter


def open_meter(setting: str) -> Meter:
    """Sample the file `setting` every 20 ms."""
    file = Path(setting)

    def read_mw() -> float:
        return int(file.read_text()) / 1e3

    read_mw()  # a wrong path is refused at once; later a sample that fails is an empty window
    return SampledMeter(read_mw, f"hwmon:{file.name}")
