"""How much of the bare tail's throughput the server keeps, and how long requests take.

    python benchmarks/server_throughput.py

prints one JSON object: ``server_fps`` (frames answered per second under saturating load
from a separate process, one connection per client, each with one request in flight),
``offline_batched_fps`` (the same ONNX tail without a server, in batches of the sizes that
the server really formed, on the same cores), their ``ratio``, and ``p99_ms`` (99th
percentile of a request's total time at that load), all for ``--action``; ``tails`` holds the
same for each of ``--also``, because a request costs the server about the same whatever it
asks for, and so the ratio depends on how long the tail is.

Server and offline run are pinned to the first half of the cores, the load to the other half;
rounds alternate, so that drift of the machine touches both. The figures of throughput need
a machine with nothing else to do: ``server_share`` and ``offline_share`` say how much of
their cores the two really had, and a neighbour on them distorts the ratio, in either
direction. ``cpu_ratio`` is the ratio of processor time per frame instead, offline to server
with all its threads; it hardly depends on neighbours, and on an idle machine it
equals the ratio. ``load_share`` near 1 would mean that the load was the bottleneck.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.wire.address import find_free
from testbed.wire.client import ExchangeFailed, MecClient

SERVE = (
    "import os, sys, typer; os.sched_setaffinity(0, map(int, sys.argv.pop(1).split(',')));"
    "from cnn.common.console import run_app; from testbed.cli.serve_command import serve;"
    "app = typer.Typer(); app.command()(serve); run_app(app)"
)


def main() -> None:
    """Run server, load and offline rounds for each tail and print the JSON object."""
    options = _parse()
    if options.role == "load":
        return _load(options)
    if options.role == "offline":
        return _offline(options)
    cores = sorted(os.sched_getaffinity(0))
    server_cores = cores[: max(1, len(cores) // 2)]
    load_cores = cores[len(server_cores) :] or cores
    actions = [options.action, *filter(None, options.also.split(","))]
    _note(f"server on cores {server_cores}, load on {load_cores}, actions {', '.join(actions)}")
    figures = {}
    for options.action in actions:
        rounds = _rounds(options, server_cores, load_cores)
        figures[options.action] = _figures(rounds, len(server_cores), len(load_cores))
    first, *others = actions
    result = {
        **figures[first],
        "action": first,
        "tails": {name: figures[name] for name in others},
        "direct_calls": options.direct_calls,
        "processes": 1,
        "clients": options.clients,
        "server_cores": server_cores,
        "load_cores": load_cores,
        "bundle": load_bundle(options.bundle).hash[:12],
    }
    print(json.dumps(result))


def _rounds(
    options: argparse.Namespace, server_cores: list[int], load_cores: list[int]
) -> list[dict[str, Any]]:
    """Alternate load and offline run for one action."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        process, target, metrics_url = _start_server(options, server_cores, Path(folder))
        try:
            _role("load", options, load_cores, target=target, seconds=1.0)  # warm-up
            for k in range(options.rounds):
                before = _batches(metrics_url)
                load = _role("load", options, load_cores, target=target, server_pid=process.pid)
                after = _batches(metrics_url)
                sizes = {n: c - before.get(n, 0) for n, c in after.items() if c > before.get(n, 0)}
                offline = _role("offline", options, server_cores, sizes=json.dumps(sizes))
                rounds.append({**load, **offline, "batches": sizes})
                _note(
                    f"{options.action} round {k + 1}: {load['fps']:.1f} / "
                    f"{offline['offline_fps']:.1f} frames/s"
                )
        finally:
            process.terminate()
            process.wait(30)
    return rounds


def _figures(
    rounds: list[dict[str, Any]], n_server_cores: int, n_load_cores: int
) -> dict[str, Any]:
    def mean(name: str) -> float:
        return float(np.mean([r[name] for r in rounds]))

    latencies = np.concatenate([r["latencies_ms"] for r in rounds])
    frames = sum(int(n) * c for r in rounds for n, c in r["batches"].items())
    return {
        "server_fps": round(mean("fps"), 1),
        "offline_batched_fps": round(mean("offline_fps"), 1),
        "ratio": round(mean("fps") / mean("offline_fps"), 3),
        "p99_ms": round(float(np.percentile(latencies, 99)), 2),
        "p50_ms": round(float(np.percentile(latencies, 50)), 2),
        "cpu_ratio": round(mean("offline_cpu_ms") / mean("server_cpu_ms"), 3),
        "server_cpu_ms": round(mean("server_cpu_ms"), 4),
        "offline_cpu_ms": round(mean("offline_cpu_ms"), 4),
        "server_share": round(mean("fps") * mean("server_cpu_ms") / 1e3 / n_server_cores, 3),
        "offline_share": round(mean("offline_share"), 3),
        "load_share": round(mean("load_cpu") / n_load_cores, 3),
        "mean_batch": round(frames / sum(c for r in rounds for c in r["batches"].values()), 2),
        "failed": sum(r["failed"] for r in rounds),
        "rounds_fps": [[round(r["fps"], 1), round(r["offline_fps"], 1)] for r in rounds],
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--action", default="e5s2", help="action whose tail is served")
    parser.add_argument("--also", default="e5s0,e3s1", help="further actions, by commas, or ''")
    parser.add_argument("--clients", type=int, default=16, help="connections, one request each")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of load and offline run")
    parser.add_argument("--max-batch", type=int, default=8, help="frames in one batch, at most 16")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute one batch")
    parser.add_argument("--direct-calls", action="store_true", help="serve as that option says")
    parser.add_argument("--bundle", type=Path, default=None, help="bundle folder; shipped one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the payloads")
    for internal in ("--role", "--target", "--sizes", "--server-pid"):
        parser.add_argument(internal, default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _payload(options: argparse.Namespace, runtime: SplitRuntime, batch: int) -> NDArray[np.uint8]:
    action = runtime.topology.parse(options.action)
    shape = (batch, *runtime.wire_shape(action.split))
    return np.random.default_rng(options.seed).integers(0, 256, shape, dtype=np.uint8)


def _start_server(
    options: argparse.Namespace, cores: list[int], folder: Path
) -> tuple[subprocess.Popen[bytes], str, str]:
    port_file, metrics_port = folder / "port", find_free("127.0.0.1")
    command = [
        sys.executable, "-c", SERVE, ",".join(map(str, cores)), "--port", "0",
        "--port-file", str(port_file), "--metrics-port", str(metrics_port),
        "--threads", str(options.threads), "--max-batch", str(options.max_batch),
        *(["--bundle", str(options.bundle)] if options.bundle else []),
        *(["--direct-calls"] if options.direct_calls else []),
    ]  # fmt: skip
    process = subprocess.Popen(command)
    while not port_file.exists():
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}")
        time.sleep(0.02)
    target = f"127.0.0.1:{port_file.read_text().strip()}"
    return process, target, f"http://127.0.0.1:{metrics_port}/metrics"


def _batches(url: str) -> dict[str, int]:
    """Batches computed so far, by their exact number of frames (up to 16)."""
    with urllib.request.urlopen(url, timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    counts = {
        float(sample.labels["le"]): int(sample.value)
        for family in families
        for sample in family.samples
        if sample.name == "sliproad_batch_frames_bucket"
    }
    out, below = {}, 0
    for size in sorted(counts):
        out[f"{size:g}"] = counts[size] - below
        below = counts[size]
    return out


def _role(role: str, options: argparse.Namespace, cores: list[int], **more: Any) -> dict[str, Any]:
    """Run this script as another process on `cores` and read its JSON line."""
    given = {**vars(options), "role": role, **more}
    arguments = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in given.items()
        if name != "direct_calls" and (value not in (None, "") or name == "also")
    ]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _load(options: argparse.Namespace) -> None:
    """Closed loop: `clients` devices, each sends its next frame when its answer is there."""
    bundle = load_bundle(options.bundle)
    action = bundle.topology.parse(options.action)
    data = _payload(options, SplitRuntime(bundle), 1)
    latencies: list[list[float]] = [[] for _ in range(options.clients)]
    failed = [0] * options.clients
    together = threading.Barrier(options.clients + 1)
    stop = threading.Event()

    def device(k: int) -> None:
        with MecClient(options.target, bundle.hash) as client:
            client.connect(20)
            together.wait(60)
            while not stop.is_set():
                try:
                    reply = client.infer(data, action.exit, action.split, timeout_ms=10_000)
                    latencies[k].append(reply.total_ms)
                except ExchangeFailed:
                    failed[k] += 1

    threads = [threading.Thread(target=device, args=(k,)) for k in range(options.clients)]
    for thread in threads:
        thread.start()
    together.wait(60)
    began, load_cpu_s, server_cpu_s = time.perf_counter(), time.process_time(), _cpu_s(options)
    before = sum(map(len, latencies))
    time.sleep(options.seconds)
    answered = sum(map(len, latencies)) - before
    elapsed = time.perf_counter() - began
    load_cpu_s, server_cpu_s = time.process_time() - load_cpu_s, _cpu_s(options) - server_cpu_s
    stop.set()
    for thread in threads:
        thread.join()
    flat = [round(x, 3) for one in latencies for x in one]
    out = {
        "fps": answered / elapsed,
        "latencies_ms": flat,
        "failed": sum(failed),
        "server_cpu_ms": server_cpu_s * 1e3 / answered,
        "load_cpu": load_cpu_s / elapsed,
    }
    print(json.dumps(out))


def _cpu_s(options: argparse.Namespace) -> float:
    """Processor time of the server with all its threads so far (Linux); 0 without its pid."""
    if not options.server_pid:
        return 0.0
    # proc(5): utime and stime are fields 14 and 15; the name in field 2 may hold blanks.
    fields = Path(f"/proc/{options.server_pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _offline(options: argparse.Namespace) -> None:
    """The tail alone, in batches of the given sizes, shuffled, for as long as a round."""
    runtime = SplitRuntime(load_bundle(options.bundle), threads=options.threads)
    action = runtime.topology.parse(options.action)
    sizes: dict[str, int] = json.loads(options.sizes)
    payloads = {int(n): _payload(options, runtime, int(n)) for n in sizes}
    order = np.repeat([int(n) for n in sizes], list(sizes.values()))
    np.random.default_rng(options.seed).shuffle(order)
    for data in payloads.values():
        runtime.tail(data, action.exit, action.split)
    frames, k = 0, 0
    began, began_cpu_s = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - began) < options.seconds:
        size = int(order[k % len(order)])
        runtime.tail(payloads[size], action.exit, action.split)
        frames, k = frames + size, k + 1
    cpu_s = time.process_time() - began_cpu_s
    out = {
        "offline_fps": frames / elapsed,
        "offline_cpu_ms": cpu_s * 1e3 / frames,
        "offline_share": cpu_s / elapsed / options.threads,
    }
    print(json.dumps(out))


def _note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
