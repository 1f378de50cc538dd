"""The pilot: an action for every frame, whatever the policies inside do."""

from __future__ import annotations

import numpy as np
import pytest

from cnn.topology import SHIPPED
from testbed.deploy.guarded_policy import MAX_SHADOW_ERRORS, REMEMBERED, GuardedPolicy
from testbed.policy.decision_points import START
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy, RandomPolicy, StaticPolicy

pair = SHIPPED.action
SCHEMA = schema_of(SHIPPED)

SAFE = pair(5, 5).index
OBSERVATION = np.linspace(-1, 1, SCHEMA.obs_dim, dtype=np.float32)


class Wrong(StaticPolicy):
    """Answers nonsense, or raises."""

    def __init__(self, answer: object) -> None:
        super().__init__(pair(1, 1), "wrong")
        self.answer = answer

    def decide(self, observation: np.ndarray, point: int = START) -> int:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


def make(policy: Policy, shadow: Policy | None = None) -> GuardedPolicy:
    return GuardedPolicy(policy, "policy-1", "bundle-1", SAFE, shadow)


def test_the_shadow_decides_on_every_frame_and_never_acts() -> None:
    alone, shadowed = make(RandomPolicy(1)), make(RandomPolicy(1), RandomPolicy(2))
    expected_shadow = RandomPolicy(2)
    for each in (alone, shadowed, expected_shadow):
        each.reset()
    for frame in range(200):
        alone.begin(frame)
        shadowed.begin(frame)
        assert alone.decide(OBSERVATION) == shadowed.decide(OBSERVATION)
        note = shadowed.take(frame)
        assert note is not None
        assert note.shadow_action == expected_shadow.decide(OBSERVATION)
        assert note.decided_by == "policy"
        assert shadowed.take(frame) is None


@pytest.mark.parametrize("answer", [ValueError("x"), 20, -1, None, float("nan")])
def test_a_policy_that_fails_is_overruled_by_the_safe_action(answer: object) -> None:
    guarded = make(Wrong(answer))
    assert guarded.decide(OBSERVATION) == SAFE
    note = guarded.take(0)
    assert note is not None
    assert (note.policy_action, note.decided_by) == (None, "safe")
    assert guarded.errors == 1


def test_a_policy_that_fails_is_replaced_within_the_frame_if_it_can_be() -> None:
    guarded = make(Wrong(ValueError("new")))

    def roll_back(reason: str) -> bool:
        guarded.use(StaticPolicy(pair(2, 1)), "policy-0", "bundle-0", None)
        return True

    guarded.roll_back = roll_back
    assert guarded.decide(OBSERVATION) == pair(2, 1).index
    note = guarded.take(0)
    assert note is not None
    assert (note.decided_by, note.policy_hash) == ("policy", "policy-0")


def test_a_shadow_that_fails_costs_nothing_and_is_dropped() -> None:
    guarded = make(StaticPolicy(pair(2, 1)), Wrong(ValueError("shadow")))
    for frame in range(10):
        guarded.begin(frame)
        assert guarded.decide(OBSERVATION) == pair(2, 1).index
        note = guarded.take(frame)
        assert note is not None
        assert note.shadow_action is None
    assert guarded.shadow is None
    assert guarded.shadow_errors == MAX_SHADOW_ERRORS


def test_a_policy_that_is_not_trusted_is_asked_but_not_followed() -> None:
    guarded = make(StaticPolicy(pair(2, 1)))
    guarded.trusted = lambda: False
    assert guarded.decide(OBSERVATION) == SAFE
    note = guarded.take(0)
    assert note is not None
    assert (note.policy_action, note.action, note.decided_by) == (pair(2, 1).index, SAFE, "guard")


def test_the_last_observations_are_kept_and_no_more() -> None:
    guarded = make(StaticPolicy(pair(2, 1)))
    assert len(guarded.observations()) == 0
    for i in range(REMEMBERED + 5):
        guarded.decide(np.full(SCHEMA.obs_dim, i, np.float32))
    seen = guarded.observations()
    assert sorted(seen[:, 0]) == list(range(5, REMEMBERED + 5))
