"""The split of a user's images: disjoint, by track, by class, from content and seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.common.errors import DataError
from cnn.data.found_images import FoundImages, Given, ListedImages, listed
from cnn.data.image_set import PARTS, SHARES
from cnn.data.image_split import ImageSplit, same_split, split_images

Row = tuple[bytes, int, str, Given]
"""Content, class, track and given part of an image."""


def listing(rows: list[Row]) -> ListedImages:
    contents = [content for content, *_ in rows]
    return listed(
        FoundImages(
            path=Path("set"),
            label=np.array([label for _, label, *_ in rows], np.int64),
            class_names=("a", "b", "c", "d"),
            track=[track for *_, track, _ in rows],
            frame=np.arange(len(rows)),
            given=[part for *_, part in rows],
            read=lambda numbers: ((int(i), contents[i]) for i in numbers),
            name=str,
        )
    )


def alone(labels: list[int]) -> list[Row]:
    """Images that all differ."""
    return [(b"%d" % i, label, "", "") for i, label in enumerate(labels)]


def by_content(data: ListedImages, split: ImageSplit, rows: list[Row]) -> dict[bytes, int]:
    return {rows[at][0]: int(part) for at, part in zip(data.at, split.part, strict=True)}


labels = st.lists(st.integers(0, 3), min_size=1, max_size=120)
seeds = st.integers(0, 2**31 - 1)


@given(labels, seeds)
def test_every_image_is_in_one_part_and_each_class_has_its_shares(
    classes: list[int], seed: int
) -> None:
    data = listing(alone(classes))
    split = split_images(data, seed)
    parts = [split.rows(part) for part in PARTS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(classes)))
    for c in set(classes):
        n = classes.count(c)
        for part, rows in zip(PARTS, parts, strict=True):
            assert abs((data.label[rows] == c).sum() - n * SHARES[part]) < 1
    for part, rows in zip(PARTS, parts, strict=True):  # rounding is made up for in other classes
        assert abs(len(rows) - len(classes) * SHARES[part]) < 2
    test = [row for part in ("policy-train", "policy-test") for row in split.rows(part)]
    assert split.rows("test").tolist() == sorted(test)
    assert len(split.rows("all")) == len(classes)


def test_parts_of_many_small_classes_are_not_empty() -> None:
    rows = [(b"%d" % i, i // 5, "", "") for i in range(500)]
    data = ListedImages(*_many_classes(rows))
    counts = [len(split_images(data).rows(part)) for part in PARTS]
    np.testing.assert_allclose(counts, [315, 35, 75, 75], atol=2)


def _many_classes(rows: list[Any]) -> list[Any]:
    few = listing([(content, 0, "", "") for content, *_ in rows])
    label = np.array([label for _, label, *_ in rows])[few.at]
    return [few.found, few.at, few.class_names, label, few.track, few.frame, few.key]


@given(labels, seeds, st.randoms(use_true_random=False))
def test_order_and_names_of_files_do_not_matter(classes: list[int], seed: int, mix: Any) -> None:
    rows = alone(classes)
    mixed = rows.copy()
    mix.shuffle(mixed)
    data, other = listing(rows), listing(mixed)
    split, again = split_images(data, seed), split_images(other, seed)
    assert by_content(data, split, rows) == by_content(other, again, mixed)
    assert split.sha256 == again.sha256
    assert split.to_json() == again.to_json()
    np.testing.assert_array_equal(split.part, again.part)
    np.testing.assert_array_equal(data.label, other.label)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80), seeds)
def test_tracks_and_copies_stay_together(drawn: list[tuple[int, int]], seed: int) -> None:
    """Track 0 is none; images of an even number are copies of one image of that number."""
    rows: list[Row] = [
        (b"%d" % (number if number % 2 == 0 else 100 + i), label, f"t{track}" if track else "", "")
        for i, (label, number) in enumerate(drawn)
        for track in (number % 5,)
    ]
    data = listing(rows)
    split = split_images(data, seed)
    parts: dict[object, set[int]] = {}
    for at, part in zip(data.at, split.part, strict=True):
        content, _, track, _ = rows[at]
        parts.setdefault(track or content, set()).add(int(part))
    assert all(len(found) == 1 for found in parts.values())
    assert -1 not in split.part
    # Listed tracks are whole and in the order of their frames.
    tracks = [rows[at][2] or f"alone {at}" for at in data.at]
    starts = [i for i, name in enumerate(tracks) if i == 0 or name != tracks[i - 1]]
    assert len(starts) == len(set(tracks)) == data.track[-1] + 1
    for track in set(data.track.tolist()):
        inside = data.track == track
        assert data.frame[inside].tolist() == list(range(inside.sum()))
        assert (np.diff(data.at[inside]) > 0).all()


@given(seeds, seeds)
def test_another_seed_gives_another_split(seed: int, other: int) -> None:
    data = listing(alone([i % 4 for i in range(120)]))
    split, second = split_images(data, seed), split_images(data, other)
    assert (split.sha256 == second.sha256) == (seed == other)
    assert np.array_equal(split.part, second.part) == (seed == other)


@pytest.mark.parametrize("val", [False, True])
def test_parts_of_the_set_stay_what_they_are(val: bool) -> None:
    given: list[Given] = ["train"] * 200 + (["validation"] if val else ["train"]) * 40
    given += ["test"] * 60
    rows = [(b"%d" % i, i % 4, "", part) for i, part in enumerate(given)]
    data = listing(rows)
    split = split_images(data, 1)
    of = data.given
    assert set(of[split.rows("test")]) == {"test"}
    assert len(split.rows("test")) == 60
    assert abs(len(split.rows("policy-train")) - 30) <= 1
    if val:
        assert set(of[split.rows("cnn-val")]) == {"validation"}
        assert len(split.rows("cnn-fit")) == 200
    else:
        assert abs(len(split.rows("cnn-fit")) - 216) <= 1


def test_what_is_stored_makes_the_same_split_and_no_other() -> None:
    rows = alone([i % 4 for i in range(100)])
    data = listing(rows)
    split = split_images(data, 5)
    stored = split.to_json()
    assert stored["images"] == {"cnn-fit": 63, "cnn-val": 7, "policy-train": 15, "policy-test": 15}
    np.testing.assert_array_equal(same_split(listing(rows[::-1]), stored).part, split.part)
    other_label = [(content, 3 - label, *rest) for content, label, *rest in rows]
    for changed in (rows[1:], [*rows, (b"new", 0, "", "")], other_label):
        with pytest.raises(DataError, match="not those the network was trained with"):
            same_split(listing(changed), stored)
