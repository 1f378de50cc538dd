"""The canonical numbering of actions."""

import pytest

from cnn.common.errors import ConfigError
from cnn.topology import ACTIONS, Action, action_from_index, action_index


def test_numbering_lists_every_legal_pair_once() -> None:
    pairs = [(e, s) for e in range(1, 6) for s in range(e + 1)]
    assert [(a.exit, a.split) for a in ACTIONS] == pairs
    assert [a.index for a in ACTIONS] == list(range(20))
    assert [action_index(e, s) for e, s in pairs] == list(range(20))


def test_names_and_numbers_read_back() -> None:
    for a in ACTIONS:
        assert Action.parse(a.name) == Action.parse(str(a.index)) == action_from_index(a.index)


def test_local_and_offload_are_the_two_ends() -> None:
    assert [a.name for a in ACTIONS if a.is_local] == ["e1s1", "e2s2", "e3s3", "e4s4", "e5s5"]
    assert sum(a.is_full_offload for a in ACTIONS) == 5


@pytest.mark.parametrize("text", ["e2s3", "e0s0", "e6s1", "20", "-1", "full", ""])
def test_unknown_action_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Action.parse(text)
