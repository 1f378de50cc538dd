"""Bundles are verified before anything runs."""

import json
import shutil
from pathlib import Path

import pytest

from cnn.bundle import embedded_bundle_path, load_bundle, manifest_hash
from cnn.common.errors import BundleError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_bundle_path(), tmp_path / "bundle"))


def test_shipped_bundle_is_whole() -> None:
    bundle = load_bundle()
    assert bundle.config.input_size == 48
    assert bundle.config.width <= 0.5
    assert len(bundle.temperatures) == 20


def test_a_flipped_bit_in_a_segment_is_found(copy: Path) -> None:
    file = copy / "segments" / "block3.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match="block3 does not match"):
        load_bundle(copy)


def test_a_changed_manifest_is_found(copy: Path) -> None:
    file = copy / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["temperatures"][0] += 0.25
    file.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="manifest hash"):
        load_bundle(copy)
    manifest["hash"] = manifest_hash(manifest)
    file.write_text(json.dumps(manifest))
    assert load_bundle(copy).temperatures[0] == manifest["temperatures"][0]


@pytest.mark.parametrize("name", ["manifest.json", "segments/block1.onnx"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match="model bundle"):
        load_bundle(copy)


def test_another_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected a folder with manifest\.json"):
        load_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="no JSON"):
        load_bundle(tmp_path)
