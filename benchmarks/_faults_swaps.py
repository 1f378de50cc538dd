"""Policy files that a running device must not use: refused, or taken back, and the device goes on.

Each is well formed as a file (its hash is right), fits the network and the observation, and says
something in its manifest, or holds weights, with which no device can run. It is put in the place of
the good policy while frames are sent to a server, and the device is told to look. Then the good
one's hash must be what runs, and frames must go on.
"""

from __future__ import annotations

import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from _faults_parts import RunningDevice, say, wait_for

from cnn.bundle import load_bundle
from cnn.common.files import replacing
from cnn.topology import SHIPPED
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import PolicyBundle
from testbed.server.server_process import ServerProcess

SCHEMA = schema_of(SHIPPED)

ACTION = SHIPPED.action(3, 1)
VERDICT_S = 12.0
TASK = {
    "tech": "5G", "accuracy_floor": 0.95, "delay_share": 0.5, "full_local_ms": 80.0,
    "period_ms": 50.0,
    "timeout_ms": 250.0, "deadline_ms": 100.0, "max_queue_ms": 2000.0,
}  # fmt: skip
PROMISE = {
    "window": 10, "windows": 100, "quantiles": {"delay_ms": [1.0, 2.0, 5.0, 5e3, 1e4]},
    "actions": [1 / SHIPPED.n_actions] * SHIPPED.n_actions, "action_shift": 1.0,
}  # fmt: skip
BAD_PROMISES: dict[str, dict[str, Any]] = {
    "window 2**70": {"window": 2**70},
    "window 2**63": {"window": 2**63},
    "window infinite": {"window": float("inf")},
    "window -1": {"window": -1},
    "window of a text": {"window": "ten"},
    "a quantile that is not a number": {"quantiles": {"delay_ms": [float("nan")] * 5}},
    "quantiles of a list": {"quantiles": [1, 2]},
    "an infinite action shift": {"action_shift": float("inf")},
}
BAD_TASKS: dict[str, dict[str, Any]] = {
    "a period of 1e300 ms": {"period_ms": 1e300},
    "a time-out of 1e300 ms": {"timeout_ms": 1e300},
    "a queue of 1e308 ms": {"max_queue_ms": 1e308},
    "full local processing of 1e-300 ms": {"full_local_ms": 1e-300},
    "an energy budget of 1e308 mJ": {"energy_budget_mj": 1e308},
    "an unknown technology": {"tech": "6G"},
    "a floor of 7": {"accuracy_floor": 7.0},
    "a power profile that is none": {"power": "none+none"},
}
QUICK = ("window 2**70", "a period of 1e300 ms", "weights that overflow")


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The whole group."""
    bad = bad_policies()
    names = [name for name in bad if not quick or name in QUICK]
    back = 0
    with ServerProcess() as server:
        text = settings(server.target)
        device, good = started(folder, text)
        try:
            for name in names:
                since = len(device.log())
                save(folder / "a.policy", bad[name])
                verdict = judged(device, good, since)
                back += verdict in ("refused", "rolled back")
                say(f"swaps: {name}: {verdict}")
                if verdict not in ("refused", "rolled back"):
                    device.kill()
                    device, good = started(folder, text)
            device.stop()
        finally:
            device.kill()
    say(f"swaps: {back} of {len(names)} refused or rolled back")
    failed = [] if back == len(names) else [f"{len(names) - back} bad swaps"]
    return {"swap_rollbacks": back, "failed": failed}


def bad_policies() -> dict[str, PolicyBundle]:
    """By what is wrong with each."""
    found = {name: policy(reference=PROMISE | change) for name, change in BAD_PROMISES.items()}
    found |= {name: policy(task=TASK | change) for name, change in BAD_TASKS.items()}
    huge = np.full((SHIPPED.n_actions, SCHEMA.obs_dim), 3e38, np.float32)
    found["weights that overflow"] = policy(weight=huge)
    found["weights that are not numbers"] = policy(weight=huge * np.float32("nan"))
    found["metrics of a list"] = policy(metrics=[1])
    return found


def policy(
    reference: Any = PROMISE, task: Any = TASK, weight: Any = None, metrics: Any = None
) -> PolicyBundle:
    """A linear policy that takes `ACTION`; what is given stands in its file."""
    bias = np.zeros(SHIPPED.n_actions, np.float32)
    bias[ACTION.index] = 1.0
    about = {
        "kind": "mlp", "name": "always", "layers": 1, "activation": "tanh",
        "actions": list(range(SHIPPED.n_actions)), "observation": {"schema_hash": SCHEMA.hash},
        "bundle_hash": load_bundle().hash, "task": task,
        "metrics": {"promise": reference} if metrics is None else metrics,
    }  # fmt: skip
    plain = np.zeros((SHIPPED.n_actions, SCHEMA.obs_dim), np.float32)
    return PolicyBundle(about, {"weight0": plain if weight is None else weight, "bias0": bias})


def save(path: Path, bundle: PolicyBundle) -> None:
    """Put it in place in one step."""
    with replacing(path) as beside:
        bundle.save(beside)


def started(folder: Path, text: str) -> tuple[RunningDevice, str]:
    """A device with the good policy, and the good policy's hash."""
    save(folder / "a.policy", policy())
    device = RunningDevice(folder, text)
    if not device.running() or not device.goes_on(3, "ok", 15):
        raise RuntimeError("the device with the good policy answers no frame")
    return device, PolicyBundle.load(folder / "a.policy").content_hash[:12]


def judged(device: RunningDevice, good: str, since: int) -> str:
    """What became of the policy now in the file."""
    device.process.send_signal(signal.SIGHUP)
    told = {"new bundles not used": "refused", "rolled back": "rolled back", "kept": "kept"}

    def verdicts() -> list[str]:
        return [told[line["message"]] for line in device.log()[since:] if line["message"] in told]

    wait_for(lambda: bool(verdicts()) or not device.alive, VERDICT_S, 0.1)
    if not device.alive:
        return f"the device ended with {device.process.returncode}"
    if not device.goes_on(5):
        return "no more frames"
    found = verdicts()
    if running_policy(device) != good:
        return "in use"
    return found[-1] if found else "nothing said"


def running_policy(device: RunningDevice) -> str:
    """Hash of the policy in use, by the device's metrics."""
    device.frames()
    url = f"http://127.0.0.1:{device.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as page:
        found = re.search(r'policy_hash="(\w+)"', page.read().decode())
    return found[1] if found else ""


def settings(target: str) -> str:
    """A device that is guarded by what its policy promises."""
    return (
        f'[server]\naddress = "{target}"\n[guard]\nenabled = true\n'
        '[bundles]\npolicy = "a.policy"\nwatch_s = 0\nprobation_frames = 20\n'
    )
