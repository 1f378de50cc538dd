"""The observation: scaling, estimators against independent solutions, and its limits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnn.common.errors import ConfigError
from cnn.frame_table import FEATURES
from cnn.topology import SHIPPED
from testbed.policy import estimators
from testbed.policy.observation_fields import (
    N_LOG,
    NEVER_S,
    Field,
    scaled_bounds,
    schema_hash,
    schema_of,
)
from testbed.policy.observer import Observer
from testbed.policy.task_settings import Settings

SCHEMA = schema_of(SHIPPED)

SETTINGS = Settings(radio_5g=True, accuracy_floor=0.95, delay_share=0.5, full_local_ms=50.0)
RELAXED = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
CROP = [0.4, 0.2, 0.1, 40.0, 42.0, 3.0]


def test_fields_are_numbered_and_cover_the_frame_features() -> None:
    assert [f.index for f in SCHEMA.staged_fields] == list(range(SCHEMA.staged_obs_dim))
    assert len({f.name for f in SCHEMA.staged_fields}) == SCHEMA.staged_obs_dim
    at = SCHEMA.features_at
    assert tuple(f.name for f in SCHEMA.fields[at : at + len(FEATURES)]) == FEATURES
    assert all(f.scale == "log" for f in SCHEMA.fields[:N_LOG])
    assert SCHEMA.fields[N_LOG].scale == "linear"
    assert SCHEMA.fields[SCHEMA.constants_at].name == "radio_5g"
    json.dumps([f.name for f in SCHEMA.fields])


def test_schema_hash_changes_with_any_field() -> None:
    changed = list(SCHEMA.fields)
    f = changed[3]
    changed[3] = Field(f.index, f.name, f.unit, f.low, f.high * 2, f.scale, f.source)
    assert schema_hash(changed) != SCHEMA.hash
    assert schema_hash(SCHEMA.fields) == SCHEMA.hash


@RELAXED
@given(st.lists(st.floats(-1e6, 1e6), min_size=SCHEMA.obs_dim, max_size=SCHEMA.obs_dim))
def test_normalise_is_clipped_and_equals_the_scalar_path(raw: list[float]) -> None:
    scaled = SCHEMA.normalise(raw)
    assert scaled.dtype == np.float32
    low, high = scaled_bounds(SCHEMA.fields)
    assert np.all((low <= scaled) & (scaled <= high))
    one = [SCHEMA.scale_one(i, v) for i, v in enumerate(raw)]
    np.testing.assert_allclose(scaled, np.array(one, np.float32), atol=2e-7)


def test_normalise_maps_low_middle_high() -> None:
    for field in SCHEMA.fields:
        log = field.scale == "log"
        middle = math.sqrt(field.low * field.high) if log else (field.low + field.high) / 2
        values = [SCHEMA.scale_one(field.index, v) for v in (field.low, middle, field.high)]
        np.testing.assert_allclose(values, [-1, 0, 1], atol=1e-9)


@RELAXED
@given(st.lists(st.floats(0, 1), min_size=SCHEMA.staged_obs_dim, max_size=SCHEMA.staged_obs_dim))
def test_what_policies_learnt_is_where_it_was(where: list[float]) -> None:
    """Bit for bit the formula of the shipped policies' training, from low to high."""
    for field, u in zip(SCHEMA.staged_fields, where, strict=True):
        log = field.scale == "log"
        low, high = (math.log(v) if log else v for v in (field.low, field.high))
        value = min(field.high, max(field.low, field.low + u * (field.high - field.low)))
        expected = ((math.log(value) if log else value) - low) * (2.0 / (high - low)) - 1.0
        expected = {field.low: -1.0, field.high: 1.0}.get(value, expected)
        assert SCHEMA.scale_one(field.index, value) == expected


def test_the_schema_of_the_shipped_policies_is_this_one() -> None:
    assert (SCHEMA.hash, SCHEMA.staged_hash) == ("3bd5dd8bd57107e1", "fe1554fcfdcefa9f")


def test_a_reach_goes_on_along_the_scale() -> None:
    at = {f.name: f.index for f in SCHEMA.staged_fields}
    assert SCHEMA.scale_one(at["accuracy_floor"], 0.5) == pytest.approx(-4)
    assert SCHEMA.scale_one(at["full_local_ms"], 1e5) == pytest.approx(7 / 3)  # 10^3 is 1, 1 is -1
    assert SCHEMA.scale_one(at["full_local_ms"], 0.1) == pytest.approx(-5 / 3)
    assert SCHEMA.scale_one(at["stage_spent_ms"], 1e4) == pytest.approx(1.5)  # 0.1 is -1, 10^3 is 1


@RELAXED
@given(st.floats(0, 0.999), st.floats(0.01, 9e4), st.floats(0, 0.999))
def test_any_two_settings_look_different(floor: float, full_ms: float, share: float) -> None:
    told = Settings(True, floor, share, full_ms)
    more = Settings(True, floor + 1e-3, share + 1e-3, full_ms * 1.001)
    for less, greater in zip(told.scaled()[1:], more.scaled()[1:], strict=True):
        assert np.float32(less) < np.float32(greater)


@pytest.mark.parametrize("name", ["rtt_ms", "transfer_mean_ms", "full_local_ms", "stage_spent_ms"])
def test_times_above_a_second_look_different(name: str) -> None:
    field = next(f for f in SCHEMA.staged_fields if f.name == name)
    seen = [SCHEMA.scale_one(field.index, v) for v in (999.0, 1000.0, 1100.0, 5000.0, 99_000.0)]
    assert seen == sorted(set(seen))
    batch = [float(SCHEMA.normalise([v], field.index)[0]) for v in (999.0, 1000.0, 1100.0, 5000.0)]
    assert batch == sorted(set(batch))


def test_normalise_refuses_too_many_values() -> None:
    with pytest.raises(ConfigError, match="at most 43"):
        SCHEMA.normalise(np.zeros(SCHEMA.staged_obs_dim + 1))


@RELAXED
@given(
    st.lists(
        st.tuples(st.floats(100, 20000), st.floats(1, 500), st.floats(0.01, 20)),
        min_size=1,
        max_size=20,
    )
)
def test_link_fit_equals_weighted_ridge_least_squares(
    transfers: list[tuple[float, float, float]],
) -> None:
    observer = Observer(SETTINGS)
    now, weights, last = 0.0, [], -NEVER_S
    for sent, took, pause in transfers:
        now += pause
        weights = [w * float(estimators.forget(now - last)) for w in weights] + [1.0]
        observer.record_transfer(now, sent, took)
        last = now
    x = np.array([t[0] * 1e-3 for t in transfers])
    y = np.array([t[1] for t in transfers])
    rows = np.concatenate(
        [
            np.stack([np.ones_like(x), x], 1) * np.sqrt(weights)[:, None],
            np.diag(np.sqrt([estimators.PRIOR_RTT_WEIGHT, estimators.PRIOR_SLOPE_WEIGHT])),
        ]
    )
    target = np.concatenate(
        [
            y * np.sqrt(weights),
            np.sqrt([estimators.PRIOR_RTT_WEIGHT, estimators.PRIOR_SLOPE_WEIGHT])
            * [estimators.PRIOR_RTT_MS, estimators.PRIOR_MS_PER_KB],
        ]
    )
    solution = np.linalg.lstsq(rows, target, rcond=None)[0]
    np.testing.assert_allclose(
        [observer.rtt_ms, observer.ms_per_kb], solution, rtol=1e-6, atol=1e-6
    )


def test_estimates_converge_to_the_true_link_and_follow_a_change() -> None:
    observer, rng = Observer(SETTINGS), np.random.default_rng(3)
    for mbps, rtt in ((10.0, 30.0), (40.0, 80.0)):
        for i in range(60):
            sent = float(rng.choice([600, 1200, 7100]))
            now = 0.1 * i + (0 if mbps == 10 else 6.0)
            observer.record_transfer(now, sent, rtt + 8e-3 * sent / mbps + rng.normal(0, 0.2))
        assert observer.uplink_mbps == pytest.approx(mbps, rel=0.3)  # the prior pulls
        assert observer.rtt_ms == pytest.approx(rtt, rel=0.05)


def test_updates_on_arrays_equal_updates_on_floats_exactly() -> None:
    rng = np.random.default_rng(0)
    sums = rng.uniform(0.1, 50, (5, 64))
    sums[2] += sums[1] ** 2  # a possible second moment
    a, b = estimators.fit_link(*sums)
    m, s = estimators.smooth(sums[0], sums[1], sums[2])
    for k in range(64):
        column = [float(v) for v in sums[:, k]]
        assert estimators.fit_link(*column) == (a[k], b[k])
        assert estimators.smooth(*column[:3]) == (m[k], s[k])
        assert estimators.forget(column[0]) == estimators.forget(sums[0])[k]


def test_ages_failures_and_tracks() -> None:
    observer = Observer(SETTINGS)
    names = [f.name for f in SCHEMA.fields]

    def known(now_s: float) -> dict[str, float]:
        return dict(zip(names, observer.raw(now_s, CROP, 0.0, 0.0), strict=True))

    assert known(0.0)["transfer_age_s"] >= NEVER_S
    observer.record_failure(1.0)
    observer.record_failure(2.0)
    assert known(2.5)["failures"] == 2
    assert known(2.5)["failure_age_s"] == pytest.approx(0.5)
    observer.record_transfer(3.0, 1000, 40)
    observer.record_server(3.0, 7.5)
    now = known(4.0)
    assert now["failures"] == 0
    assert now["transfer_age_s"] == now["server_age_s"] == pytest.approx(1.0)
    assert now["server_wait_ms"] == 7.5
    for prediction in (4, 4, 9, 4):
        observer.record_answer(2, prediction, 0.8)
    now = known(4.0)
    assert now["agreement"] == 0.75
    assert now["confidence_exit2"] == now["last_confidence"] == 0.8
    assert now["answers_on_track"] == 4
    assert now["accuracy_credit"] == pytest.approx(0.8 - 0.95)
    observer.new_track()
    now = known(4.0)
    assert now["confidence_exit2"] == now["agreement"] == now["answers_on_track"] == 0
    assert now["accuracy_credit"] == pytest.approx(0.8 - 0.95)
    observer.record_skipped()
    assert known(4.0)["accuracy_credit"] == pytest.approx(0.8 * 4 / 5 - 0.95)


def test_observe_equals_normalised_raw_and_reset_forgets() -> None:
    observer = Observer(SETTINGS)
    fresh = observer.observe(0.0, CROP, 0.0, 0.0)
    observer.record_transfer(0.1, 7000, 300)
    observer.record_answer(5, 3, 0.7)
    seen = observer.observe(0.4, CROP, 12.0, 800.0)
    np.testing.assert_allclose(
        seen, SCHEMA.normalise(observer.raw(0.4, CROP, 12.0, 800.0)), atol=1e-7
    )
    assert not np.array_equal(fresh, seen)
    observer.reset(0.0)
    assert np.array_equal(fresh, observer.observe(0.0, CROP, 0.0, 0.0))


def test_energy_budget_is_seen() -> None:
    observer = Observer(Settings(False, 0.9, 0.5, 50.0, energy_budget_mj=200.0))
    observer.record_energy(50.0)
    assert observer.energy_left == 0.75


def test_staged_observation_extends_the_frame_observation() -> None:
    observer = Observer(SETTINGS)
    base = observer.observe(0.0, CROP, 0.0, 0.0)
    names = [f.name for f in SCHEMA.staged_fields]
    start = dict(zip(names, observer.observe_stage(base, [], 0, 0.0), strict=True))
    assert start["stands_at_0"] == 1
    assert start["stage_confidence"] == -1
    observer.record_answer(1, 7, 0.9)
    after = observer.observe_stage(base, [(1, 7, 0.5), (3, 2, 0.75)], 3, 10.0)
    seen = dict(zip(names, after, strict=True))
    assert np.array_equal(after[: SCHEMA.obs_dim], base)
    assert seen["stands_at_3"] == 1
    assert seen["stands_at_0"] == -1
    assert seen["stage_confidence"] == pytest.approx(0.5)
    assert seen["stage_agrees_track"] == -1
    assert seen["stage_agrees_frame"] == -1
    assert seen["stage_gave_up"] == -1
    # Sent from block 4 after a look at exit 3, in vain.
    after = observer.observe_stage(base, [(1, 7, 0.5), (3, 2, 0.75)], 4, 60.0, timed_out=True)
    later = dict(zip(names, after, strict=True))
    assert (later["stands_at_4"], later["stands_at_3"], later["stage_gave_up"]) == (1, -1, 1)
    assert later["stage_confidence"] == seen["stage_confidence"]
    assert later["stage_spent_ms"] > seen["stage_spent_ms"]


@pytest.mark.parametrize(
    "bad",
    [
        {"accuracy_floor": 1.2},
        {"accuracy_floor": -0.1},
        {"accuracy_floor": math.nan},
        {"delay_share": -0.1},
        {"full_local_ms": 0.0},
        {"full_local_ms": 100_001.0},
        {"full_local_ms": math.nan},
        {"full_local_ms": math.inf},
        {"energy_budget_mj": -1.0},
        {"energy_budget_mj": math.nan},
        {"energy_budget_mj": math.inf},
    ],
)
def test_settings_refuse_what_cannot_be_shown(bad: dict[str, float]) -> None:
    good = {"radio_5g": True, "accuracy_floor": 0.9, "delay_share": 0.5, "full_local_ms": 9.0}
    (name,) = bad
    with pytest.raises(ConfigError, match=name.split("_")[0]):
        Settings(**{**good, **bad})  # type: ignore[arg-type]
