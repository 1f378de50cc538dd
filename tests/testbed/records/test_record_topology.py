"""Records of other networks than the shipped one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from networks import NETWORKS, SEVEN_EXITS, THREE_EXITS, network_id
from rows import FINISHED

from cnn.common.errors import DataError
from cnn.topology import SHIPPED, Topology
from testbed.deploy.record_rotation import RotatingRecords
from testbed.records.measurement import Measurement
from testbed.records.record_file import METADATA_KEY, RecordWriter, provenance, read_all
from testbed.records.record_file import read_records as read

EXTRA = {"policy_action": pa.int64(), "shadow_action": pa.int64()}


def write(path: Path, topology: Topology, *rows: Measurement, **extra: int) -> Path:
    columns = {name: EXTRA[name] for name in extra}
    with RecordWriter(path, provenance(topology), columns) as writer:
        for row in rows:
            writer.write(row, **extra)
    return path


def of(topology: Topology) -> list[Measurement]:
    """A row of every action that looked at all exits up to its own."""
    return [
        replace(
            FINISHED,
            action=action.index,
            exit_used=action.exit,
            looks=sum(2 ** (e - 1) for e in topology.exits if e <= action.exit),
        )
        for action in topology.actions
    ]


@pytest.mark.parametrize("topology", [*NETWORKS, SHIPPED], ids=network_id)
def test_rows_of_every_action_come_back_with_their_network(
    topology: Topology, tmp_path: Path
) -> None:
    path = write(tmp_path / "r.parquet", topology, *of(topology))
    records = read(path)
    assert records.topology == topology
    assert list(records.rows()) == of(topology)
    assert (b'"topology"' in pq.read_schema(path).metadata[METADATA_KEY]) == (topology != SHIPPED)
    with RotatingRecords(tmp_path / "folder", provenance(topology)) as writer:
        for row in of(topology):
            writer.write(row)
    (run,) = read_all(tmp_path / "folder", columns=["action"])
    assert (writer.dropped, run.topology) == (0, topology)
    assert run.table["action"].to_pylist() == list(range(topology.n_actions))


@pytest.mark.slow(2)
@pytest.mark.parametrize("topology", [*NETWORKS, SHIPPED], ids=network_id)
@pytest.mark.parametrize("name", ["action", "exit_used", "looks", *EXTRA])
def test_every_number_that_the_network_lacks_is_refused_and_no_other(
    name: str, topology: Topology, tmp_path: Path
) -> None:
    blocks = {e - 1 for e in topology.exits}
    sound = {
        "exit_used": {0, *topology.exits},
        "looks": {
            mask
            for mask in range(2**topology.n_blocks)
            if all(bit in blocks for bit in range(topology.n_blocks) if mask >> bit & 1)
        },
    }.get(name, set(range(topology.n_actions)))
    row = of(topology)[0]
    known = {-1, 0, 1, 2, topology.n_blocks, topology.n_blocks + 1, topology.n_actions - 1}
    for number in known | {topology.n_actions, 2**topology.n_blocks - 1, 2**topology.n_blocks}:
        extra = {name: number} if name in EXTRA else {}
        changed = row if extra else replace(row, **{name: number})
        path = write(tmp_path / f"{number}.parquet", topology, changed, **extra)
        if number in sound:
            assert read(path).table[name].to_pylist() == [number]
        else:
            with pytest.raises(DataError, match=f"row 0: impossible {name} {number}"):
                read(path)


@pytest.mark.parametrize("other", [SEVEN_EXITS, SHIPPED], ids=network_id)
def test_files_of_two_networks_are_not_read_together(other: Topology, tmp_path: Path) -> None:
    rows = [FINISHED] * 10
    write(tmp_path / "a.parquet", THREE_EXITS, *rows)
    write(tmp_path / "b.parquet", THREE_EXITS, *rows)
    assert [run.topology for run in read_all(tmp_path)] == [THREE_EXITS] * 2
    write(tmp_path / "c.parquet", other, *rows)
    with pytest.raises(DataError, match=r"c\.parquet of .*; expected records of one network") as it:
        read_all(tmp_path)
    assert THREE_EXITS.hash[:12] in str(it.value)
    assert other.hash[:12] in str(it.value)
    assert len(read_all(tmp_path, max_rows=19)) == 1  # the newest alone are of one network


@pytest.mark.parametrize("told", ["two", {"blocks": 2, "exits": [1], "payloads": {}}, [1]])
def test_a_topology_that_is_none_is_refused(told: object, tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    with RecordWriter(path, {"topology": told}) as writer:
        writer.write(FINISHED)
    with pytest.raises(DataError, match="topology"):
        read(path)
