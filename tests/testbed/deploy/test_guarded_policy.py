"""The pilot: an action for every frame, whatever the policies inside do."""

from __future__ import annotations

import numpy as np
import pytest

from cnn.action import Action
from testbed.deploy.guarded_policy import MAX_SHADOW_ERRORS, REMEMBERED, Pilot
from testbed.policy.observer import OBS_DIM
from testbed.policy.policies import Policy, RandomPolicy, StaticPolicy

SAFE = Action(5, 5).index
OBSERVATION = np.linspace(-1, 1, OBS_DIM, dtype=np.float32)


class Wrong(StaticPolicy):
    """Answers nonsense, or raises."""

    def __init__(self, answer: object) -> None:
        super().__init__(Action(1, 1), "wrong")
        self.answer = answer

    def decide(self, observation: np.ndarray) -> int:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


def make(policy: Policy, shadow: Policy | None = None) -> Pilot:
    return Pilot(policy, "policy-1", "bundle-1", SAFE, shadow)


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
    pilot = make(Wrong(answer))
    assert pilot.decide(OBSERVATION) == SAFE
    note = pilot.take(0)
    assert note is not None
    assert (note.policy_action, note.decided_by) == (None, "safe")
    assert pilot.errors == 1


def test_a_policy_that_fails_is_replaced_within_the_frame_if_it_can_be() -> None:
    pilot = make(Wrong(ValueError("new")))

    def roll_back(reason: str) -> bool:
        pilot.use(StaticPolicy(Action(2, 1)), "policy-0", "bundle-0", None)
        return True

    pilot.roll_back = roll_back
    assert pilot.decide(OBSERVATION) == Action(2, 1).index
    note = pilot.take(0)
    assert note is not None
    assert (note.decided_by, note.policy_hash) == ("policy", "policy-0")


def test_a_shadow_that_fails_costs_nothing_and_is_dropped() -> None:
    pilot = make(StaticPolicy(Action(2, 1)), Wrong(ValueError("shadow")))
    for frame in range(10):
        pilot.begin(frame)
        assert pilot.decide(OBSERVATION) == Action(2, 1).index
        note = pilot.take(frame)
        assert note is not None
        assert note.shadow_action is None
    assert pilot.shadow is None
    assert pilot.shadow_errors == MAX_SHADOW_ERRORS


def test_a_policy_that_is_not_trusted_is_asked_but_not_followed() -> None:
    pilot = make(StaticPolicy(Action(2, 1)))
    pilot.trusted = lambda: False
    assert pilot.decide(OBSERVATION) == SAFE
    note = pilot.take(0)
    assert note is not None
    assert (note.policy_action, note.action, note.decided_by) == (Action(2, 1).index, SAFE, "guard")


def test_the_last_observations_are_kept_and_no_more() -> None:
    pilot = make(StaticPolicy(Action(2, 1)))
    assert len(pilot.observations()) == 0
    for i in range(REMEMBERED + 5):
        pilot.decide(np.full(OBS_DIM, i, np.float32))
    seen = pilot.observations()
    assert sorted(seen[:, 0]) == list(range(5, REMEMBERED + 5))
