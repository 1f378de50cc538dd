"""The three-way split by track."""

from cnn.data.image_set import PARTS, TEST_LEAK_TRACK, load_split, make_split

COUNTS = {0: 7, 1: 74, 2: 75, 14: 26, 19: 7, 42: 8}
NAMES = [f"{c}/{t}" for c, n in COUNTS.items() for t in range(n)]


def test_every_track_is_in_one_part_and_every_class_in_all() -> None:
    split = make_split(NAMES, seed=5)
    assert sorted(n for names in split.values() for n in names) == sorted(NAMES)
    for part in PARTS:
        assert {int(n.split("/")[0]) for n in split[part]} == set(COUNTS)


def test_shares_are_about_seventy_fifteen_fifteen() -> None:
    split = load_split()
    total = sum(map(len, split.values()))
    assert total == 1307
    assert 0.68 <= (len(split["cnn-fit"]) + len(split["cnn-val"])) / total <= 0.72
    assert 0.14 <= len(split["policy-test"]) / total <= 0.16


def test_the_track_in_the_official_test_set_never_fits_the_network() -> None:
    assert [p for p, names in load_split().items() if TEST_LEAK_TRACK in names] == ["policy-train"]


def test_committed_split_is_what_its_seed_gives(data_dir) -> None:  # type: ignore[no-untyped-def]
    import pyarrow.parquet as pq

    table = pq.read_table(data_dir / "gtsrb" / "train.parquet", columns=["label", "track"])
    names = {f"{r['label']}/{r['track']}" for r in table.to_pylist()}
    assert make_split(names, seed=20251123) == load_split()


def test_same_seed_same_split_other_seed_another() -> None:
    assert make_split(NAMES, 1) == make_split(reversed(NAMES), 1)
    assert make_split(NAMES, 1) != make_split(NAMES, 2)


def test_no_track_of_the_committed_split_is_in_two_parts() -> None:
    names = [name for part in load_split().values() for name in part]
    assert len(set(names)) == len(names)
