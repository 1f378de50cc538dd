"""The files of the soak test's device: policies, another model bundle, images, its TOML file."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
from _faults_certificates import Pki
from PIL import Image

from cnn.bundle import embedded_bundle_path, manifest_hash
from cnn.topology import SHIPPED
from testbed.device.frame_sources import open_frames
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import PolicyBundle

SCHEMA = schema_of(SHIPPED)

PERIOD_MS = 100.0
TOTAL_MB = 16.0
"""Bound of the records; an hour of them fits."""


def write_policy(path: Path, bundle_hash: str, seed: int) -> None:
    """An untrained network of the usual size, so that all 20 actions are taken."""
    rng = np.random.default_rng(seed)
    sizes = [SCHEMA.obs_dim, 64, 64, SHIPPED.n_actions]
    arrays = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        arrays[f"weight{i}"] = rng.normal(0, 2 / n_in**0.5, (n_out, n_in)).astype(np.float32)
        arrays[f"bias{i}"] = np.zeros(n_out, np.float32)
    about = {
        "kind": "mlp",
        "name": f"untrained {seed}",
        "layers": len(sizes) - 1,
        "activation": "tanh",
        "actions": list(range(SHIPPED.n_actions)),
        "observation": {"schema_hash": SCHEMA.hash},
        "bundle_hash": bundle_hash,
        "metrics": {},
    }
    PolicyBundle(about, arrays).save(path)


def other_bundle(folder: Path) -> str:
    """The shipped weights as another bundle; its hash."""
    shutil.copytree(embedded_bundle_path(), folder)
    file = folder / "manifest.json"
    about = {**json.loads(file.read_text()), "note": "the same weights, for a soak test"}
    about["hash"] = manifest_hash(about)
    file.write_text(json.dumps(about))
    return str(about["hash"])


def write_images(folder: Path, n: int = 600) -> None:
    """Rendered tracks as a folder of images for each."""
    for frame in open_frames("render", 48, seed=1, n=n):
        track = folder / f"{frame.track:03d}"
        track.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame.image).save(track / f"{frame.frame_in_track:03d}.png")


def point(link: Path, target: Path) -> None:
    """Let a symbolic link name another folder, in one step."""
    beside = link.with_name(link.name + ".new")
    beside.symlink_to(target)
    beside.replace(link)


def config(folder: Path, target: str, pki: Pki | None, records: Path) -> str:
    """The device's file, without [log] and [metrics]."""
    return (
        f'[server]\naddress = "{target}"\n{pki.device_keys() if pki else ""}'
        '[bundles]\nmodel = "model"\npolicy = "a.policy"\nshadow = "b.policy"\nwatch_s = 2\n'
        f'[frames]\nsource = "folder:{folder / "images"}"\n'
        f"period_ms = {PERIOD_MS}\ntimeout_ms = 150\n"
        f'[records]\nfolder = "{records}"\nfile_mb = 0.5\nfile_s = 300\ntotal_mb = {TOTAL_MB}\n'
        "[guard]\nenabled = true\nmax_delay_ms = 120\n"
    )
