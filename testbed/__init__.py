"""The testbed: device, MEC server, link, meters, measurements, cost models, policies.

The code of the device's decisions is here, so that training and the device share it.
Nothing in this package imports torch, gymnasium or stable-baselines3.

The names below are what other code needs. Importing the package is light: a name's own module, and
gRPC or ONNX Runtime with it, is imported when the name is first asked for (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from testbed.device.device_config import DeviceConfig
    from testbed.device.device_loop import Device
    from testbed.device.frame_sources import CameraFrame, open_frames
    from testbed.link.emulator import LinkEmulator
    from testbed.link.link_process import LinkProcess
    from testbed.link.transfer import LinkRecord
    from testbed.meters.available import find_meters, open_meter
    from testbed.meters.cost_model import CostModel
    from testbed.meters.meter import EnergyReading, FrameActivity, Meter, SampledMeter
    from testbed.meters.power import ModelMeter, power_profile
    from testbed.policy.decision_points import START, decision_points
    from testbed.policy.network_policy import load_policy, policy_from_bundle
    from testbed.policy.observation_fields import schema_of
    from testbed.policy.observer import Observer
    from testbed.policy.policies import CommitOnce, Policy, StaticPolicy
    from testbed.policy.policy_file import PolicyBundle
    from testbed.policy.task_settings import Settings
    from testbed.records.measurement import Measurement
    from testbed.records.record_file import Records, RecordWriter, read_all, read_records
    from testbed.server.mec_server import MecServer, ServerConfig
    from testbed.server.server_process import ServerProcess
    from testbed.traces.collection import load_traces
    from testbed.traces.generator import generate_trace
    from testbed.traces.measured import Measured
    from testbed.traces.trace import Trace, constant_trace, save_trace
    from testbed.traces.trace_files import ImportOptions, import_trace, read_trace
    from testbed.wire.client import ExchangeFailed, MecClient, Reply
    from testbed.wire.tls import ServerTls, TlsFiles

__all__ = [
    "CameraFrame",
    "CommitOnce",
    "CostModel",
    "Device",
    "DeviceConfig",
    "EnergyReading",
    "ExchangeFailed",
    "FrameActivity",
    "ImportOptions",
    "LinkEmulator",
    "LinkProcess",
    "LinkRecord",
    "Measured",
    "Measurement",
    "MecClient",
    "MecServer",
    "Meter",
    "ModelMeter",
    "Observer",
    "Policy",
    "PolicyBundle",
    "RecordWriter",
    "Records",
    "Reply",
    "START",
    "SampledMeter",
    "ServerConfig",
    "ServerProcess",
    "ServerTls",
    "Settings",
    "StaticPolicy",
    "TlsFiles",
    "Trace",
    "constant_trace",
    "decision_points",
    "find_meters",
    "generate_trace",
    "import_trace",
    "load_policy",
    "load_traces",
    "open_frames",
    "open_meter",
    "policy_from_bundle",
    "power_profile",
    "read_all",
    "read_records",
    "read_trace",
    "save_trace",
    "schema_of",
]

_NAMES_OF: Final = {
    "meters.cost_model": ("CostModel",),
    "device.device_config": ("DeviceConfig",),
    "device.device_loop": ("Device",),
    "device.frame_sources": ("CameraFrame", "open_frames"),
    "link.emulator": ("LinkEmulator",),
    "link.link_process": ("LinkProcess",),
    "link.transfer": ("LinkRecord",),
    "meters.available": ("find_meters", "open_meter"),
    "meters.meter": ("EnergyReading", "FrameActivity", "Meter", "SampledMeter"),
    "meters.power": ("ModelMeter", "power_profile"),
    "policy.decision_points": ("START", "decision_points"),
    "policy.task_settings": ("Settings",),
    "policy.network_policy": ("load_policy", "policy_from_bundle"),
    "policy.observation_fields": ("schema_of",),
    "policy.observer": ("Observer",),
    "policy.policies": ("CommitOnce", "Policy", "StaticPolicy"),
    "policy.policy_file": ("PolicyBundle",),
    "records.measurement": ("Measurement",),
    "records.record_file": ("Records", "RecordWriter", "read_all", "read_records"),
    "server.mec_server": ("MecServer", "ServerConfig"),
    "server.server_process": ("ServerProcess",),
    "traces.collection": ("load_traces",),
    "traces.generator": ("generate_trace",),
    "traces.measured": ("Measured",),
    "traces.trace": ("Trace", "constant_trace", "save_trace"),
    "traces.trace_files": ("ImportOptions", "import_trace", "read_trace"),
    "wire.client": ("ExchangeFailed", "MecClient", "Reply"),
    "wire.tls": ("ServerTls", "TlsFiles"),
}
_MODULE_OF: Final = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
