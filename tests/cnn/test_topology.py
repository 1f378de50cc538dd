"""Topologies: numbering of actions, files, and networks of other forms than the shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.bundle import Bundle, load_bundle, manifest_hash
from cnn.common.errors import BundleError, ConfigError, DataError
from cnn.data.image_set import ImageSet
from cnn.frame_table import FrameTable, embedded_table, join_tables
from cnn.make_frame_table import make_table
from cnn.model_config import ModelConfig
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Topology

TWO = Topology(2, (1, 2), (0, 1), ((8, 8, 3), (2, 3, 3)))
THREE_OF_FOUR = Topology(4, (1, 3, 4), (0, 2), ((8, 8, 3), (5, 1, 2)))
SEVEN = Topology(7, tuple(range(1, 8)), tuple(range(7)), ((8, 8, 3), *[(1, 2, 2)] * 6))
NO_FRAME = Topology(3, (2, 3), (1,), ((2, 2, 2),))
OTHERS = (TWO, THREE_OF_FOUR, SEVEN)


def test_the_shipped_network_has_its_twenty_actions_in_order() -> None:
    pairs = [(e, s) for e in range(1, 6) for s in range(e + 1)]
    assert [(a.exit, a.split) for a in SHIPPED.actions] == pairs
    assert [a.index for a in SHIPPED.actions] == list(range(20))
    assert [SHIPPED.index(e, s) for e, s in pairs] == list(range(20))
    assert [(e - 1) * (e + 2) // 2 + s for e, s in pairs] == list(range(20))
    assert ModelConfig().topology() == SHIPPED == load_bundle().topology


def test_names_and_numbers_read_back() -> None:
    for a in SHIPPED.actions:
        assert SHIPPED.parse(a.name) == SHIPPED.parse(str(a.index)) == SHIPPED.action_at(a.index)
        assert SHIPPED.action(a.exit, a.split) == a
        assert SHIPPED.action(a.exit, a.split).index == a.index


def test_local_and_offload_are_the_two_ends() -> None:
    assert [a.name for a in SHIPPED.actions if a.is_local] == [
        "e1s1",
        "e2s2",
        "e3s3",
        "e4s4",
        "e5s5",
    ]
    assert sum(a.is_full_offload for a in SHIPPED.actions) == 5


@pytest.mark.parametrize(
    "text", ["e2s3", "e0s0", "e6s1", "20", "-1", "full", "", "e123s1", "9" * 99]
)
def test_unknown_action_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        SHIPPED.parse(text)


def test_sparse_exits_and_splits_give_their_pairs() -> None:
    names = [a.name for a in THREE_OF_FOUR.actions]
    assert names == ["e1s0", "e1s1", "e3s0", "e3s2", "e3s3", "e4s0", "e4s2", "e4s4"]
    assert [a.name for a in NO_FRAME.actions] == ["e2s1", "e2s2", "e3s1", "e3s3"]
    assert [len(t.actions) for t in (TWO, SEVEN)] == [2 + 3, 2 + 3 + 4 + 5 + 6 + 7 + 8]
    for wrong in ((2, 0), (4, 1), (3, 1)):
        with pytest.raises(ConfigError, match="expected"):
            THREE_OF_FOUR.action(*wrong)
    assert "dec2" in THREE_OF_FOUR.segments
    assert "exit2" not in THREE_OF_FOUR.segments


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    n = draw(st.integers(1, 12))
    exits = tuple(sorted({n, *draw(st.sets(st.integers(1, n)))}))
    splits = tuple(sorted(draw(st.sets(st.integers(0, n - 1)))))
    sides = st.integers(1, 9)
    shapes = tuple(draw(st.tuples(sides, sides, sides)) for _ in splits)
    return Topology(n, exits, splits, shapes)


@given(topologies())
def test_arrays_actions_and_files_agree(topology: Topology) -> None:
    actions = topology.actions
    assert list(actions) == sorted(actions)
    expected = {(e, s) for e in topology.exits for s in topology.splits if s < e}
    assert {(a.exit, a.split) for a in actions} == expected | {(e, e) for e in topology.exits}
    for i, a in enumerate(actions):
        assert topology.action_at(i) == topology.parse(a.name) == topology.parse(str(i)) == a
        assert (topology.exit_of[i], topology.split_of[i]) == (a.exit, a.split)
        assert bool(topology.is_local[i]) == (a.exit == a.split)
        sent = 0 if a.is_local else int(np.prod(topology.payload_shape(a.split)))
        assert topology.payload_bytes[i] == sent
    back = Topology.from_json(json.loads(json.dumps(topology.to_json())))
    assert back == topology
    assert back.hash == topology.hash


def test_another_topology_has_another_hash() -> None:
    others = (
        replace(SHIPPED, exits=(1, 2, 3, 5)),
        replace(SHIPPED, payload_shapes=(*SHIPPED.payload_shapes[:-1], (24, 3, 3))),
        *OTHERS,
    )
    assert len({t.hash for t in (SHIPPED, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_blocks": 0},
        {"n_blocks": 10**6},
        {"exits": (1, 2)},
        {"exits": (2, 1, 5)},
        {"exits": (0, 5)},
        {"exits": (1, 1.5, 5)},
        {"splits": (0, 1, 2, 3, 5)},
        {"splits": (0, 1, 2, 3)},
        {"payload_shapes": ((1, 1, 1),)},
        {"payload_shapes": ((48, 48, 3), *[(1, 1)] * 4)},
        {"payload_shapes": ((48, 48, 3), *[(0, 1, 1)] * 4)},
        {"payload_shapes": ((2**12, 2**12, 3), *[(1, 1, 1)] * 4)},
    ],
)
def test_impossible_topologies_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a topology with"):
        replace(SHIPPED, **wrong)


@pytest.mark.parametrize(
    "raw",
    [None, [], {}, {"blocks": 2, "exits": 2, "payloads": {}}, {"payloads": {"x": [1, 1, 1]}}],
)
def test_what_is_no_topology_is_not_read(raw: Any) -> None:
    with pytest.raises(ConfigError, match="topology"):
        Topology.from_json(raw)


def frames(n_tracks: int, size: int, n_classes: int) -> ImageSet:
    rng = np.random.default_rng(size)
    n = 3 * n_tracks
    label = np.repeat(np.arange(n_tracks) % n_classes, 3).astype(np.int16)
    return ImageSet(
        images=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        label=label,
        track=np.repeat(np.arange(n_tracks), 3).astype(np.int32),
        frame=np.tile(np.arange(3), n_tracks).astype(np.int16),
        width_px=np.full(n, 40, np.int16),
        height_px=np.full(n, 42, np.int16),
    )


@pytest.mark.parametrize("topology", OTHERS, ids=lambda t: f"{len(t.exits)}-exits")
def test_other_networks_pass_through_bundle_runtime_and_table(
    tiny_bundle: Callable[..., Bundle], tmp_path: Path, topology: Topology
) -> None:
    bundle = tiny_bundle(topology)
    assert bundle.topology == topology
    device, server = SplitRuntime(bundle), SplitRuntime(bundle)
    device.warm(runs=1)
    data = frames(2, 8, 4)
    table = make_table(device, data, "noise", batch=4)
    table.save(tmp_path / "t.npz")
    back = FrameTable.load(tmp_path / "t.npz")
    assert back.topology == topology
    np.testing.assert_array_equal(back.prediction, table.prediction)
    assert table.payload_bytes[0].tolist() == topology.payload_bytes.tolist()
    for a in topology.actions:
        x = device.forward(device.start(data.images[4]), 1, a.split)
        if a.is_local:
            answer = device.answer(x, a.exit, a.split)
        else:
            sent = device.payload(x, a.split)
            assert sent.dtype == np.uint8
            assert sent.shape == (1, *device.wire_shape(a.split))
            predictions, confidences = server.tail(sent, a.exit, a.split)
            answer = int(predictions[0]), float(confidences[0])
        assert answer == device.act(data.images[4], a)
        assert back.prediction[4, a.index] == answer[0]
        assert back.confidence[4, a.index] == pytest.approx(answer[1], abs=1e-3)
    unsplit = topology.exits[-1]
    local = topology.index(unsplit, unsplit)
    assert device.local(data.images[4], unsplit)[0] == table.prediction[4, local]


def test_a_table_of_a_thousand_classes_comes_back(
    tiny_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Its predictions do not wrap: a byte would hold 256 of them."""
    runtime = SplitRuntime(tiny_bundle(TWO, n_classes=1000))
    table = make_table(runtime, frames(40, 8, 1000), "noise")
    expected = runtime.logits(runtime.forward(frames(40, 8, 1000).images, 1, 2), 2).argmax(1)
    assert expected.max() > 255
    table.save(tmp_path / "t.npz")
    back = FrameTable.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(back.prediction[:, TWO.index(2, 2)], expected)


def test_tables_of_other_networks_are_not_mixed(tiny_bundle: Callable[..., Bundle]) -> None:
    two, seven = (
        make_table(SplitRuntime(tiny_bundle(t)), frames(1, 8, 4), "x") for t in (TWO, SEVEN)
    )
    with pytest.raises(DataError, match="2 model bundles"):
        join_tables([two, seven], "both")
    same = replace(seven, bundle_hash=two.bundle_hash)
    with pytest.raises(ConfigError, match=r"7 exits.* expected a network with 2 blocks") as error:
        join_tables([two, same], "both")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="prediction has shape"):
        replace(two, topology=SEVEN)


def test_old_tables_and_bundles_are_of_the_shipped_network(tmp_path: Path) -> None:
    assert "topology" not in load_bundle().manifest
    assert embedded_table("policy-test").topology == SHIPPED


@pytest.mark.parametrize(
    "change",
    [
        {"topology": {"blocks": 2, "exits": [1, 2], "payloads": {}}},
        {"topology": TWO.to_json() | {"blocks": 3, "exits": [1, 3]}},
        {"topology": "two"},
        {"config": {"input_size": 9, "n_classes": 4}},
        {"config": {"input_size": 8, "n_classes": 4, "depth": 1}},
        {"config": {"input_size": 48, "n_classes": 43, "width": 0.5, "latent_channels": [1] * 4}},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tiny_bundle: Callable[..., Bundle], tmp_path: Path, change: dict[str, Any]
) -> None:
    manifest = {**tiny_bundle(TWO).manifest, **change}
    manifest["hash"] = manifest_hash(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="model bundle") as error:
        load_bundle(tmp_path)
    assert "\n" not in str(error.value)
