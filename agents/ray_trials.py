"""The trials of a study as Ray Tune's function trainables, on this machine or on a cluster.

A trial is the usual training with its own checkpoints in its own folder, which every node must
see under the same path. So Ray only decides where and when a trial runs: one that was stopped, by
a lost node or a killed driver, is resumed from its checkpoint by whoever starts it next, and the
policy file says that it is done.

Ray's usage statistics are off, and no dashboard is started.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune

from agents.train_config import TrainConfig
from agents.train_once import train_once
from agents.training import world_of
from cnn.common.errors import DataError, RemoteError, SliproadError
from cnn.common.outputs import Claim

MAX_RETRIES: Final = 3
"""Times that a trial is started again after its node or its process was lost."""
_LEFT_BEHIND_S: Final = 60.0
"""A process whose node or driver is gone ends within some seconds; until then it has the folder."""
_ANSWER_S: Final = 10.0
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints on standard output, whatever `verbose` says
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run has its own log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, as of any other
}


@contextmanager
def connected(address: str | None, at_once: int | None) -> Iterator[None]:
    """A cluster within the block: the one at `address`, or a new one on this machine alone.

    Args:
        address: ``HOST:PORT`` of a cluster's head; None starts Ray here.
        at_once: trials at once, and so processors of this machine to use; None takes all.

    Raises:
        RemoteError: if there is no cluster at `address`.
    """
    os.environ.update(_QUIET)
    if address is not None:
        _check_head(address)
    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "num_cpus": at_once, "include_dashboard": False}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address or "this machine", error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_head(address: str) -> None:
    """Raise `RemoteError` unless something listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(where: str, error: Exception) -> RemoteError:
    return RemoteError(
        f"no Ray cluster at {where}: {_last_line(error)}",
        expected="HOST:PORT of a cluster with the same Ray and Python, or --local",
        hint="start one with `ray start --head`",
    )


def run_trials(
    configs: Mapping[str, TrainConfig],
    out: Path,
    *,
    at_once: int | None = None,
    done: Callable[[str], object] = lambda name: None,
) -> None:
    """Train all trials on the cluster that is `connected`, one processor each.

    Args:
        configs: settings by trial's name, with their network's actions.
        out: folder of the study, an absolute path; ``trials/NAME`` are runs, ``ray`` is Ray's.
        at_once: trials at once; None runs as many as there are processors.
        done: called with the name of each trial that ended.

    Raises:
        DataError: if a trial failed. All others are finished first.
    """
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_train, configs=configs, out=out), {"cpu": 1}),
        param_space={"trial": tune.grid_search(list(configs))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once, trial_dirname_creator=lambda t: str(t.config["trial"])
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(out),
            failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
            callbacks=[_Done(done)],
            verbose=0,
        ),
    )
    results = tuner.fit()
    failed = [_last_line(error) for error in results.errors]
    failed += [str(r.metrics["error"]) for r in results if r.metrics and r.metrics.get("error")]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(configs)} trainings failed, such as: {failed[0]}",
            expected="trainings that end",
            hint=f"correct the cause (Ray's own files are in {out / 'ray'}), and use --resume",
        )


def _train(trial: dict[str, Any], configs: Mapping[str, TrainConfig], out: Path) -> dict[str, str]:
    """One trial, within a process of Ray's. What a user can correct is not tried again."""
    name = trial["trial"]
    folder = out / "trials" / name
    try:
        _wait_until_free(folder)
        train_once(configs[name], folder, world_of(configs[name]))
    except SliproadError as error:
        return {"error": f"{name}: {error}"}
    return {"error": ""}


def _wait_until_free(folder: Path) -> None:
    """Return once no other process trains into `folder`; one that lost its node soon ends."""
    until_s = time.monotonic() + _LEFT_BEHIND_S
    while True:
        try:
            Claim(folder, folder=True).release()
            return
        except DataError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.5)


class _Done(tune.Callback):  # type: ignore[misc]
    """Tells the name of each trial that is complete."""

    def __init__(self, told: Callable[[str], object]) -> None:
        self._told = told

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps its callbacks in a file, from which nothing here restores them."""
        return {}

    def on_trial_complete(
        self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any
    ) -> None:
        self._told(str(trial.config["trial"]))


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
