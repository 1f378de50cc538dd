"""Tables measured in a pipeline of one's own: the file, its errors, the frame table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from agents.cli import app
from cnn.common.errors import DataError
from cnn.frame_table import FEATURES, FrameTable
from cnn.imported_table import NEUTRAL, import_table
from testbed.policy.observation_fields import schema_of

PAIRS = ((1, 0), (1, 1), (3, 0), (3, 1), (3, 3))
"""Two exits and two splits of three blocks."""
Columns = dict[str, Any]


def columns(n: int = 4, seed: int = 0) -> Columns:
    """`n` frames numbered from 10, two a track; figures that tell where they come from."""
    rng = np.random.default_rng(seed)
    frame, pair = np.repeat(np.arange(n), len(PAIRS)), np.tile(np.arange(len(PAIRS)), n)
    exit, split = np.array(PAIRS)[pair].T
    return {
        "frame": 10 + frame,
        "track": 7 - frame // 2,
        "exit": exit,
        "split": split,
        "confidence": rng.random(len(frame)),
        "quality": (100 * frame + pair) / 1000,
        "payload_bytes": np.where(split == exit, 0, 1000 * split + 10),
    }


def written(path: Path, of: Columns) -> Path:
    pq.write_table(pa.table(of), path)
    return path


def imported(folder: Path, of: Columns) -> FrameTable:
    return import_table(written(folder / "mine.parquet", of)).table


def test_every_figure_comes_to_its_frame_and_action(tmp_path: Path) -> None:
    of = columns()
    order = np.random.default_rng(1).permutation(len(of["frame"]))
    table = imported(tmp_path, {name: values[order] for name, values in of.items()})
    topology = table.topology
    assert [(a.exit, a.split) for a in topology.actions] == list(PAIRS)
    assert (topology.n_blocks, topology.exits, topology.splits) == (3, (1, 3), (0, 1))
    assert topology.payload_shapes == ((1, 1, 10), (1, 1, 1010))
    expected = np.arange(4)[:, None] / 10 + np.arange(5) / 1000
    np.testing.assert_allclose(table.quality, expected, rtol=1e-6)
    np.testing.assert_allclose(table.confidence, of["confidence"].reshape(4, 5), rtol=1e-6)
    assert table.payload_bytes.tolist() == [[10, 0, 10, 1010, 0]] * 4
    assert table.track.tolist() == [0, 0, 1, 1]
    assert table.frame.tolist() == [0, 1, 0, 1]
    assert (table.label == -1).all()
    assert table.source == "mine.parquet, imported"
    assert table.measure == "quality"


def test_an_imported_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = imported(tmp_path, columns())
    table.save(tmp_path / "t.npz")
    back = FrameTable.load(tmp_path / "t.npz")
    for name in ("label", "track", "frame", "prediction", "payload_bytes", "features", "quality"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
        assert getattr(back, name).dtype == getattr(table, name).dtype
    np.testing.assert_allclose(back.confidence, table.confidence, atol=1e-5)
    assert (back.topology, back.bundle_hash) == (table.topology, table.bundle_hash)
    np.testing.assert_array_equal(back.correct, table.quality)
    assert back.correct.dtype == np.float64


def test_names_of_actions_do_as_well_as_exits_and_splits(tmp_path: Path) -> None:
    of = columns()
    exit, split = of.pop("exit"), of.pop("split")
    of["action"] = [f"e{e}s{s}" for e, s in zip(exit, split, strict=True)]
    named = imported(tmp_path, of)
    of["action"] = pa.array(of["action"]).dictionary_encode()
    coded = imported(tmp_path, of)
    expected = imported(tmp_path, columns())
    for table in (named, coded):
        np.testing.assert_array_equal(table.quality, expected.quality)
        assert table.topology == expected.topology


def test_frames_of_a_track_stay_together_in_their_order(tmp_path: Path) -> None:
    of = columns(6)
    camera = np.array(["left", "right"])[of["frame"] % 2]
    table = imported(tmp_path, {**of, "track": camera})
    assert table.track.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.frame.tolist() == [0, 1, 2, 0, 1, 2]
    assert table.quality is not None
    np.testing.assert_allclose(table.quality[:, 0], [0.0, 0.2, 0.4, 0.1, 0.3, 0.5], atol=1e-6)
    assert table.features[:, FEATURES.index("frame_in_track")].tolist() == [0, 1, 2, 0, 1, 2]


def test_frames_without_tracks_have_nothing_to_do_with_each_other(tmp_path: Path) -> None:
    of = columns()
    del of["track"]
    assert imported(tmp_path, of).track.tolist() == [0, 1, 2, 3]


def test_payloads_may_differ_from_frame_to_frame(tmp_path: Path) -> None:
    of, other = columns(), columns(2)
    cut = of["split"] == 1
    of["payload_bytes"] = np.where(cut & (of["exit"] == 3), 500 + of["frame"], of["payload_bytes"])
    other["payload_bytes"] = np.where(other["payload_bytes"] > 10, 77, other["payload_bytes"])
    other["payload_bytes"][3] = 78
    table, other_frames = imported(tmp_path, of), imported(tmp_path, other)
    assert table.payload_bytes[:, 3].tolist() == [510, 511, 512, 513]
    # Other frames of one pipeline have other sizes, and are of the same network.
    assert table.topology == other_frames.topology
    assert table.topology.payload_shapes == ((1, 1, 10), (1, 1, 1))


def test_what_the_file_does_not_state_is_neutral_and_named(tmp_path: Path) -> None:
    found = import_table(written(tmp_path / "t.parquet", columns()))
    assert set(found.neutral) == {*NEUTRAL, "prediction"}
    schema = schema_of(found.table.topology)
    scaled = schema.normalise(found.table.features, schema.features_at)
    np.testing.assert_allclose(scaled[:, : len(NEUTRAL)], 0.0, atol=2e-3)
    assert (found.table.prediction == 0).all()

    of = columns()
    of["prediction"] = np.arange(len(of["frame"]))
    of["brightness"] = of["frame"] / 100
    stated = import_table(written(tmp_path / "t.parquet", of))
    assert set(stated.neutral) == {*NEUTRAL} - {"brightness"}
    np.testing.assert_allclose(stated.table.features[:, 0], [0.1, 0.11, 0.12, 0.13], rtol=1e-6)
    assert stated.table.prediction.tolist()[1] == [5, 6, 7, 8, 9]


def test_yes_and_no_are_qualities(tmp_path: Path) -> None:
    of = columns()
    of["quality"] = of["exit"] == 3
    assert imported(tmp_path, of).correct.tolist() == [[0, 0, 1, 1, 1]] * 4


def changed(name: str, row: int, value: Any) -> Columns:
    of = columns()
    values = of[name].astype(object) if value is None else of[name].astype(type(value))
    values[row] = value
    return {**of, name: values}


def without(*names: str) -> Columns:
    return {name: values for name, values in columns().items() if name not in names}


def less(*rows: int) -> Columns:
    return {name: np.delete(values, rows) for name, values in columns().items()}


WRONG: dict[str, tuple[Columns, str]] = {
    "a missing action": (less(8), "no row of frame 11, action e3s1"),
    "the last one missing": (less(19), "no row of frame 13, action e3s3"),
    "an action missing everywhere": (less(0, 5, 10, 15), "no row of frame 10, action e1s0 .4 mis"),
    "an action twice": (changed("frame", 5, 10), "two rows of frame 10, action e1s0"),
    "a quality of 1.2": (changed("quality", 7, 1.2), "quality 1.2 of frame 11, action e3s0"),
    "a quality below 0": (changed("quality", 0, -0.1), "quality -0.1 of frame 10, action e1s0"),
    "NaN": (changed("confidence", 4, np.nan), "confidence nan of frame 10, action e3s3"),
    "null": (changed("quality", 4, None), "quality nan of frame 10, action e3s3"),
    "text": ({**columns(), "quality": ["good"] * 20}, "column quality of type string"),
    "unequal tracks": (changed("track", 9, 3), "frame 11 has two values of track"),
    "a foreign column": ({**columns(), "iou": np.ones(20)}, "column 'iou'"),
    "a missing column": (without("quality"), "expected also quality"),
    "no actions": (without("exit", "split"), r"also exit, split \(or action\)"),
    "actions in two ways": ({**columns(), "action": ["e1s1"] * 20}, "column 'exit'"),
    "a split beyond the exit": (changed("split", 3, 5), "exit 3 with split 5 in row 3"),
    "an exit of 0": (changed("exit", 2, 0), "exit 0 with split 0 in row 2"),
    "half a frame": (changed("frame", 0, 10.5), "frame: 1 of 20 values out of range"),
    "bytes of a local action": (changed("payload_bytes", 4, 9), "payload_bytes 9 of frame 10, .*3"),
    "bytes below 0": (changed("payload_bytes", 3, -1), "payload_bytes: 1 of 20 values out"),
    "a feature without a number": ({**columns(), "contrast": [np.inf] * 20}, "contrast"),
    "a name that is none": ({**without("exit", "split"), "action": ["exit 3"] * 20}, "'exit 3'"),
    "no rows": ({name: values[:0] for name, values in columns().items()}, "no rows"),
}


@pytest.mark.parametrize("of", WRONG)
def test_a_file_with_a_fault_is_refused_by_name(of: str, tmp_path: Path) -> None:
    faulty, said = WRONG[of]
    with pytest.raises(DataError, match=said) as caught:
        imported(tmp_path, faulty)
    assert "mine.parquet" in str(caught.value)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="expected a Parquet file"):
        import_table(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.csv"):
        import_table(tmp_path / "t.csv")


def test_the_command_says_what_it_read(tmp_path: Path) -> None:
    path, out = written(tmp_path / "mine.parquet", columns()), tmp_path / "t.npz"
    done = CliRunner().invoke(
        app, ["cnn", "table", "--import", str(path), "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    table = FrameTable.load(out)
    assert (result["frames"], result["tracks"]) == (4, 2)
    assert result["actions"] == ["e1s0", "e1s1", "e3s0", "e3s1", "e3s3"]
    assert result["quality"] == pytest.approx(table.correct.mean(0).tolist(), abs=1e-4)
    assert result["topology"] == table.topology.to_json()
    assert set(result["neutral"]) == {*NEUTRAL, "prediction"}


@pytest.mark.parametrize("more", [["--part", "policy-test"], ["--drives", "1"], ["--seed", "3"]])
def test_a_table_is_imported_or_made(more: list[str], tmp_path: Path) -> None:
    path, out = written(tmp_path / "mine.parquet", columns()), tmp_path / "t.npz"
    done = CliRunner().invoke(
        app, ["cnn", "table", "--import", str(path), "--out", str(out), *more]
    )
    assert done.exit_code != 0
    assert more[0] in str(done.exception)
    assert list(tmp_path.iterdir()) == [path]
