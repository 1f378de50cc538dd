"""Frame tables: what the file says is what the network does."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn.bundle import load_bundle
from cnn.common.errors import DataError
from cnn.data.image_set import SPLICED, ImageSet, load_split
from cnn.frame_table import FrameTable, embedded_table, frame_features, join_tables
from cnn.make_frame_table import another_drive, make_table, make_varied_table, running_tracks
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED


def small_set(n: int = 12) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(
        images=rng.integers(0, 256, (n, 48, 48, 3), dtype=np.uint8),
        label=np.repeat(np.arange(n // 4), 4).astype(np.int16),
        track=np.zeros(n, np.int32),
        frame=np.tile(np.arange(4), n // 4).astype(np.int16),
        width_px=np.full(n, 40, np.int16),
        height_px=np.full(n, 42, np.int16),
    )


def test_table_holds_what_single_frames_answer() -> None:
    data, runtime = small_set(), SplitRuntime(load_bundle())
    table = make_table(runtime, data, "noise", batch=5)
    for i in (0, 7, 11):
        for a in SHIPPED.actions:
            prediction, confidence = runtime.act(data.images[i], a)
            assert table.prediction[i, a.index] == prediction
            assert table.confidence[i, a.index] == pytest.approx(confidence, abs=2e-3)
        expected = frame_features(data.images[i], 40, 42, i % 4)
        np.testing.assert_array_equal(table.features[i], expected)
    assert table.track.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_saved_table_reads_back(tmp_path: Path) -> None:
    table = make_table(SplitRuntime(load_bundle()), small_set(), "noise")
    table.save(tmp_path / "t.npz")
    back = FrameTable.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(back.prediction, table.prediction)
    np.testing.assert_allclose(back.confidence, table.confidence, atol=1e-5)
    np.testing.assert_array_equal(back.payload_bytes, table.payload_bytes)
    assert (back.bundle_hash, back.source) == (table.bundle_hash, "noise")
    assert list(tmp_path.iterdir()) == [tmp_path / "t.npz"]


def written(n_classes: int, n: int = 40) -> FrameTable:
    """A table of random answers among so many classes, the highest among them."""
    rng = np.random.default_rng(n_classes)
    prediction = rng.integers(0, n_classes, (n, len(SHIPPED.actions))).astype(np.int16)
    prediction[0, 0] = n_classes - 1
    return FrameTable(
        label=prediction[:, 3].copy(),
        track=(np.arange(n) // 4).astype(np.int32),
        frame=(np.arange(n) % 4).astype(np.int16),
        prediction=prediction,
        confidence=rng.random((n, len(SHIPPED.actions)), np.float32),
        payload_bytes=rng.integers(0, 2**31, (n, len(SHIPPED.actions))).astype(np.int32),
        features=rng.random((n, 6), np.float32),
        bundle_hash="0" * 64,
        source="random",
    )


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([2, 43, 256, 257, 1000, 2**15]))
def test_every_number_of_classes_comes_back(n_classes: int) -> None:
    table = written(n_classes)
    with tempfile.TemporaryDirectory() as folder:
        table.save(Path(folder) / "t.npz")
        back = FrameTable.load(Path(folder) / "t.npz")
    for name in ("label", "track", "frame", "prediction", "payload_bytes", "features"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
        assert getattr(back, name).dtype == getattr(table, name).dtype
    np.testing.assert_allclose(back.confidence, table.confidence, atol=0.5 / 65535 + 1e-7)


def test_a_table_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Format 1 as it was: predictions uint8, confidences uint16."""
    table = written(43)
    table.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as raw:
        assert raw["prediction"].dtype == np.uint8
        assert raw["confidence"].dtype == np.uint16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", np.nan),
        ("confidence", 1.01),
        ("confidence", -0.01),
        ("prediction", -1),
        ("payload_bytes", -5),
        ("features", np.inf),
        ("frame", -1),
        ("label", -2),
        ("track", 7),
    ],
)
def test_a_number_out_of_its_range_makes_no_table(name: str, value: float) -> None:
    table = written(43)
    array = getattr(table, name).copy()
    array.flat[0] = value
    with pytest.raises(DataError, match="frame table"):
        replace(table, **{name: array})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("prediction", np.full((40, 20), 70_000)),
        ("label", np.full(40, 2**15)),
        ("payload_bytes", np.full((40, 20), 2**31)),
        ("confidence", np.full((40, 20), 0.5)),
    ],
)
def test_a_file_with_numbers_that_do_not_fit_is_refused(
    tmp_path: Path, name: str, values: np.ndarray
) -> None:
    written(43).save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as raw:
        arrays = {key: raw[key] for key in raw.files}
    np.savez(tmp_path / "t.npz", **{**arrays, name: values})
    with pytest.raises(DataError, match=name):
        FrameTable.load(tmp_path / "t.npz")


def test_a_track_longer_than_its_numbers_is_refused() -> None:
    n = 2**15 + 1
    blank = np.zeros(n, np.int16)
    data = ImageSet(np.zeros((n, 1, 1, 3), np.uint8), blank, blank.astype(np.int32), *[blank] * 3)
    with pytest.raises(DataError, match="frames of one track"):
        running_tracks(data)


@pytest.mark.parametrize("damage", [b"", b"not a table", b"PK\x03\x04 cut short"])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "t.npz").write_bytes(damage)
    with pytest.raises(DataError, match="frame table"):
        FrameTable.load(tmp_path / "t.npz")


def test_embedded_tables_belong_to_the_embedded_bundle_and_share_no_track() -> None:
    tables = [embedded_table(name) for name in ("policy-train", "policy-test")]
    for table, part in zip(tables, ("policy-train", "policy-test"), strict=True):
        assert table.bundle_hash == load_bundle().hash
        assert len(np.unique(table.track)) >= len(load_split()[part])  # type: ignore[index]
        assert set(np.unique(table.label)) == set(range(43))


def test_spliced_tracks_are_cut() -> None:
    name, cut = next(iter(SPLICED.items()))
    label, number = (int(x) for x in name.split("/"))
    n = 30
    data = ImageSet(
        images=np.zeros((n, 4, 4, 3), np.uint8),
        label=np.full(n, label, np.int16),
        track=np.full(n, number, np.int32),
        frame=np.arange(n, dtype=np.int16),
        width_px=np.zeros(n, np.int16),
        height_px=np.zeros(n, np.int16),
    )
    track, frame = running_tracks(data)
    assert track.tolist() == [0] * cut + [1] * (n - cut)
    assert frame.tolist() == [*range(cut), *range(n - cut)]


def test_frames_without_tracks_make_no_table() -> None:
    data = small_set()
    bare = ImageSet(data.images, data.label, data.track - 1, *[data.frame] * 3)
    with pytest.raises(DataError, match="without a track"):
        make_table(SplitRuntime(load_bundle()), bare, "test")


@pytest.mark.slow(13)
def test_embedded_table_equals_a_fresh_run(data_dir: Path) -> None:
    """First tracks of the policy-test part, through the shipped bundle, once more."""
    from cnn.data.gtsrb import load_gtsrb

    data = load_gtsrb(data_dir / "gtsrb", "train", 48)
    names = load_split()["policy-test"][:6]
    fresh = make_table(SplitRuntime(load_bundle()), data.only_tracks(names), "x")
    shipped = embedded_table("policy-test")
    n = len(fresh)
    np.testing.assert_array_equal(fresh.label, shipped.label[:n])
    np.testing.assert_allclose(fresh.features, shipped.features[:n], rtol=1e-4, atol=1e-5)
    # Another processor may sum in another order: a handful of near-ties may flip.
    assert (fresh.prediction != shipped.prediction[:n]).mean() <= 0.002
    assert np.abs(fresh.confidence - shipped.confidence[:n]).mean() <= 0.002


@pytest.mark.slow(1)
def test_a_varied_table_is_the_tracks_and_more_drives_past_them() -> None:
    data, runtime = small_set(), SplitRuntime(load_bundle())
    plain = make_table(runtime, data, "noise")
    varied = make_varied_table(runtime, data, "noise", drives=2, strength=1.0, seed=3)
    n = len(plain)
    assert len(varied) == 3 * n
    assert varied.track.tolist() == [t + 3 * k for k in range(3) for t in plain.track]
    np.testing.assert_array_equal(varied.prediction[:n], plain.prediction)
    for k in (1, 2):
        day = make_table(runtime, another_drive(data, 1.0, 3 + k), "noise")
        np.testing.assert_array_equal(varied.confidence[k * n : (k + 1) * n], day.confidence)
    assert "2 more drives" in varied.source


def test_tables_of_different_bundles_are_not_joined() -> None:
    table = make_table(SplitRuntime(load_bundle()), small_set(), "noise")
    with pytest.raises(DataError, match="2 model bundles"):
        join_tables([table, replace(table, bundle_hash="0" * 64)], "both")


def test_the_embedded_varied_table_holds_the_embedded_tracks_and_is_harder() -> None:
    plain, varied = embedded_table("policy-train"), embedded_table("policy-train-varied")
    n = len(plain)
    assert (len(varied), varied.n_tracks) == (4 * n, 4 * plain.n_tracks)
    np.testing.assert_array_equal(varied.prediction[:n], plain.prediction)
    np.testing.assert_array_equal(varied.label, np.tile(plain.label, 4))
    assert varied.correct.mean() < plain.correct.mean()
