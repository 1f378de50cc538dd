"""The certificate's monitor on the device: what it looks at, when it hands over, until when."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from cnn.bundle import load_bundle
from cnn.common.errors import BundleError
from cnn.topology import SHIPPED
from testbed.deploy.assembly import preflight
from testbed.deploy.deployment import Sources, load
from testbed.deploy.device_file import parse_device_file
from testbed.deploy.device_service import DeviceService
from testbed.deploy.guarded_policy import Decision
from testbed.deploy.loss_monitor import (
    EVIDENCE,
    LossMonitor,
    MonitorTerms,
    PictureTerms,
    doubt,
)
from testbed.deploy.picture_reference import PictureReference
from testbed.deploy.policy_monitor import PolicyMonitor
from testbed.deploy.record_folder import record_files
from testbed.device.frame_sources import CameraFrame, rendered_frames
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import PolicyBundle
from testbed.records.measurement import Measurement
from testbed.records.record_file import measurement_schema, read_records

WritePolicy = Callable[..., str]
BUNDLE_HASH = load_bundle().hash
EARLY, OTHER, FULL = SHIPPED.action(1, 1), SHIPPED.action(2, 2), SHIPPED.action(5, 5)
TERMS = MonitorTerms(0.25, 20)
LONG = MonitorTerms(0.25, 10**9)
VALUES = {"int64": 0, "double": 1.0, "string": "", "bool": True}
REFERENCE = PictureReference(
    (0.0, 0.0, 0.0), ((25.0, 0.0, 0.0), (0.0, 25.0, 0.0), (0.0, 0.0, 25.0)), 8.0
)
EMPTY = Measurement(**{f.name: VALUES[str(f.type)] for f in measurement_schema()})  # type: ignore[arg-type]
SEEN = np.zeros(schema_of(SHIPPED).obs_dim, np.float32)


def decided(by: str = "policy", policy_hash: str = "p") -> Decision:
    return Decision(EARLY.index, EARLY.index, None, by, policy_hash, "b", SEEN)


def feed(
    monitor: PolicyMonitor,
    confidence: float | None,
    track: int,
    frame: int = 0,
    decision: Decision | None = None,
) -> None:
    row = replace(EMPTY, confidence=confidence, track=track, frame_in_track=frame)
    monitor.observe(row, decision or decided())


def alarmed(terms: MonitorTerms = TERMS, policy_hash: str = "p") -> PolicyMonitor:
    monitor = PolicyMonitor(terms, policy_hash)
    for track in range(40):
        feed(monitor, 0.0, track, decision=decided(policy_hash=policy_hash))
    assert monitor.alarm
    return monitor


def test_doubt_is_the_root_of_what_is_missing_from_certainty() -> None:
    seen = doubt(np.array([1.0, 0.99, 0.75, 0.0, 1.0 + 1e-7], np.float32))
    np.testing.assert_allclose(seen, [0.0, 0.1, 0.5, 1.0, 0.0], atol=1e-6)


def test_a_track_is_bet_on_once_with_the_answers_of_its_own_policy() -> None:
    monitor, expected = PolicyMonitor(LONG, "p"), LossMonitor(LONG.limit, LONG.tracks_between)
    guard, former = decided("guard"), decided(policy_hash="old")
    frames: tuple[tuple[int, float | None, Decision | None], ...] = (
        (0, 0.75, None),
        (0, None, None),  # skipped
        (0, 0.96, None),
        (1, None, None),
        (2, 0.0, guard),
        (2, 0.0, former),
        (2, 0.91, None),
        (3, math.nan, None),  # an answer that is no number
        (4, 0.5, None),
    )
    for k, (track, confidence, decision) in enumerate(frames):
        feed(monitor, confidence, track, k, decision)
    for mean in ((0.5 + 0.2) / 2, 0.3, 1.0):
        expected.add(mean)
    assert monitor.capital == pytest.approx(expected.capital / LONG.tracks_between)


def test_a_camera_without_tracks_is_cut_after_300_frames() -> None:
    monitor, expected = PolicyMonitor(LONG, "p"), LossMonitor(LONG.limit, LONG.tracks_between)
    for frame in range(901):
        feed(monitor, 0.75 if frame < 300 else 0.0, 0, frame)
    for mean in (0.5, 1.0, 1.0):
        expected.add(mean)
    assert monitor.capital == pytest.approx(expected.capital / LONG.tracks_between)


def test_an_alarm_stays_through_sure_answers_and_is_counted_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor = alarmed()
    for track in range(100):
        feed(monitor, 1.0, track)
    assert (monitor.alarm, monitor.alarms) == (True, 1)
    assert monitor.capital >= 1
    (line,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert line.getMessage().startswith("monitor: answers are less sure than")


def test_strange_pictures_raise_the_alarm_whatever_the_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every second track is strange; each monitor must earn twice what one alone must."""
    calm, strange = SEEN.copy(), SEEN.copy()
    at = schema_of(SHIPPED).features_at
    strange[at] = 2.0  # brightness, ten standard deviations away
    terms = MonitorTerms(0.25, 20, PictureTerms(0.1, REFERENCE))
    assert MonitorTerms.of_manifest({"certificate": {"monitor": terms.to_json()}}) == terms
    monitor, expected = PolicyMonitor(terms, "p"), LossMonitor(0.1, 40)
    for track in range(60):
        seen = strange if track % 2 else calm
        feed(monitor, 1.0, track, decision=replace(decided(), observation=seen))
        if track:
            expected.add(float(track % 2 == 0))
        assert monitor.alarm == expected.alarm
    assert monitor.alarm
    assert monitor.capital == expected.capital / 40
    (line,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert line.getMessage().startswith("monitor: pictures are less like those of training than")


def test_another_policy_begins_anew_and_one_that_comes_back_keeps_its_alarm() -> None:
    monitor = alarmed()
    monitor.watch(TERMS, "p")  # another shadow, say
    assert monitor.alarm
    monitor.watch(TERMS, "q")
    assert (monitor.alarm, monitor.capital, monitor.alarms) == (False, 0.0, 1)
    monitor.watch(TERMS, "p")  # rolled back
    assert monitor.alarm
    monitor.watch(None, "r")
    assert (monitor.alarm, monitor.is_on, monitor.alarms) == (False, False, 1)


def test_without_a_certificate_nothing_is_watched() -> None:
    monitor = PolicyMonitor(None, "p")
    for track in range(40):
        feed(monitor, 0.0, track)
    assert (monitor.alarm, monitor.is_on, monitor.alarms, monitor.capital) == (
        *(False, False, None),
        0.0,
    )


def manifest(**changed: Any) -> dict[str, Any]:
    return {"certificate": {"monitor": {**TERMS.to_json(), **changed}}}


def test_terms_read_back_and_may_be_absent() -> None:
    assert MonitorTerms.of_manifest(manifest()) == TERMS
    for absent in ({}, {"certificate": None}, {"certificate": {"level": 0.95}}):
        assert MonitorTerms.of_manifest(absent) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"evidence": "exits that disagree"}, "exits that disagree"),
        ({"evidence": [EVIDENCE]}, "monitor looks at"),
        ({"limit": 0.0}, "limit 0,"),
        ({"limit": math.nan}, "limit nan"),
        ({"limit": 1}, "limit 1,"),
        ({"limit": "0.2"}, "limit .0.2"),
        ({"tracks_between": 1}, "tracks_between 1"),
        ({"tracks_between": 10**13}, "tracks_between"),
        ({"tracks_between": True}, "tracks_between true"),
    ],
)
def test_terms_that_cannot_be_kept_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        MonitorTerms.of_manifest(manifest(**changed))
    for broken in (5, {}, [1], {"limit": 0.5}):
        with pytest.raises(BundleError, match="unusable monitor"):
            MonitorTerms.of_manifest({"certificate": {"monitor": broken}})
    pictures = MonitorTerms(0.25, 20, PictureTerms(0.1, REFERENCE)).to_json()["pictures"]
    for wrong, said in (
        ({"evidence": "colours"}, "colours"),
        ({"limit": 1.0}, "limit 1"),
        ({"edge": -1.0}, "unusable pictures"),
    ):
        with pytest.raises(BundleError, match=said):
            MonitorTerms.of_manifest(manifest(pictures={**pictures, **wrong}))


def certified(path: Path, write_policy: WritePolicy, action: Any = EARLY, **changed: Any) -> str:
    """A policy file that always takes `action`, with a certificate; its hash."""
    write_policy(path, BUNDLE_HASH, action)
    bundle = PolicyBundle.load(path)
    promise = {"level": 0.95, "margin": 0.02, **manifest(**changed)["certificate"]}
    replace(bundle, manifest={**bundle.manifest, "certificate": promise}).save(path)
    return PolicyBundle.load(path).content_hash[:12]


def test_a_device_refuses_a_certificate_that_it_cannot_watch(
    tmp_path: Path, write_policy: WritePolicy
) -> None:
    certified(tmp_path / "a.policy", write_policy, evidence="exits that disagree")
    with pytest.raises(BundleError, match="exits that disagree"):
        load(Sources(policy=tmp_path / "a.policy"))
    certified(tmp_path / "b.policy", write_policy)
    running = load(Sources(policy=tmp_path / "b.policy"))
    assert running.monitor == TERMS
    # As a shadow it makes no answer that anybody relies on.
    assert load(Sources(action="e1s1", shadow=tmp_path / "a.policy")).monitor is None


def test_the_check_names_the_monitor_and_drawing_at_random_switches_it_off(
    tmp_path: Path, write_policy: WritePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    certified(tmp_path / "a.policy", write_policy)
    text = '[bundles]\npolicy = "a.policy"\n'
    file = parse_device_file(text, folder=tmp_path)
    assert "monitor: of the policy's certificate" in preflight(file)
    assert "its monitor is off" not in caplog.text
    unit = DeviceService(parse_device_file(text + "explore = 0.1\n", folder=tmp_path))
    assert not unit._monitor.is_on
    assert "its monitor is off" in caplog.text


TRACKS, FRAMES = 16, 3


@pytest.fixture(scope="module")
def frames() -> list[CameraFrame]:
    """A few frames of each of some tracks, as the network was trained for."""
    drawn = [f for f in rendered_frames(48, 0, TRACKS) if f.frame_in_track % 10 == 9]
    return [replace(f, frame_in_track=f.frame_in_track // 10) for f in drawn]


def blurred(frame: CameraFrame) -> CameraFrame:
    seen = Image.fromarray(frame.image).filter(ImageFilter.GaussianBlur(6))
    return replace(frame, image=np.asarray(seen), track=frame.track + TRACKS)


class Driven(DeviceService):
    """A device that drives past given frames, and whose policy may be replaced on the way."""

    past: list[CameraFrame]
    replacement: Callable[[], object] | None = None
    replaced_at = -1

    def camera(self) -> Iterator[CameraFrame]:
        return iter(self.past)

    def _measured(self, row: Measurement) -> None:
        super()._measured(row)
        if row.frame_id == self.replaced_at and self.replacement is not None:
            self.replacement()
            self._watcher.check()


def driven(folder: Path, past: list[CameraFrame], more: str = "") -> Driven:
    text = (
        '[bundles]\npolicy = "a.policy"\nwatch_s = 0\nprobation_frames = 1\n'
        '[records]\nfolder = "rec"\n[meter]\nname = "none"\n[metrics]\nport = 0\n'
        f"[frames]\nperiod_ms = 0\nmax_queue_ms = 60000\n{more}"
    )
    unit = Driven(parse_device_file(text, folder=folder))
    unit.past = past
    return unit


def rows_of(folder: Path) -> dict[str, list[Any]]:
    (file,) = record_files(folder / "rec")
    return read_records(file).table.to_pydict()


def shown(unit: DeviceService, name: str, **labels: str) -> float | None:
    assert unit._metrics is not None
    return unit._metrics.registry.get_sample_value(f"sliproad_device_{name}", labels)


def capital_of(rows: dict[str, list[Any]], terms: MonitorTerms) -> float:
    """Brute force over all starts: means of tracks, the last one not ended."""
    track, confidence = np.array(rows["track"]), np.array(rows["confidence"])
    _, number = np.unique(track, return_inverse=True)
    means = np.bincount(number, np.sqrt(1 - confidence)) / np.bincount(number)
    stakes = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])[:, None]
    factors = 1 + stakes * (means[:-1] / terms.limit - 1)
    return float(sum(factors[:, k:].prod(1).mean() for k in range(factors.shape[1])))


@pytest.mark.slow(4)
def test_calm_frames_raise_no_alarm(
    tmp_path: Path, write_policy: WritePolicy, frames: list[CameraFrame]
) -> None:
    certified(tmp_path / "a.policy", write_policy)
    unit = driven(tmp_path, frames)
    result = unit.run()
    rows = rows_of(tmp_path)
    assert (result["monitor_alarms"], result["guard_falls"]) == (0, None)
    assert set(rows["decided_by"]) == {"policy"}
    assert set(rows["guard_state"]) == {"policy"}
    expected = capital_of(rows, TERMS) / TERMS.tracks_between
    assert 0 < shown(unit, "monitor_capital") == pytest.approx(expected)  # type: ignore[operator]
    assert shown(unit, "guard_state", state="policy") == 1


@pytest.mark.slow(4)
@pytest.mark.parametrize("guard", [False, True])
def test_blurred_frames_end_the_trust_for_good(
    tmp_path: Path, write_policy: WritePolicy, frames: list[CameraFrame], guard: bool
) -> None:
    certified(tmp_path / "a.policy", write_policy)
    # A guard whose own limit ends the trust soon, and gives it a trial again and again.
    more = "enabled = true\nmin_confidence = 0.9\ncooldown_frames = 2\nwindow = 4\npatience = 1\n"
    safe = '[guard]\nsafe_action = "e3s3"\n'
    past = frames + [blurred(f) for f in frames]
    past += [replace(f, track=f.track + 2 * TRACKS) for f in frames]
    past = past if not guard else past * 3
    unit = driven(tmp_path, past, safe + (more if guard else ""))
    result = unit.run()
    rows = rows_of(tmp_path)
    states = rows["guard_state"]
    first = states.index("alarm")
    assert result["monitor_alarms"] == 1
    assert set(states[first:]) == {"alarm"}
    # The frame after the alarm may have been decided already.
    assert set(rows["decided_by"][first + 1 :]) == {"guard"}
    assert set(rows["action"][first + 1 :]) == {SHIPPED.action(3, 3).index}
    if not guard:
        assert len(frames) < first < 2 * len(frames)
        assert set(rows["decided_by"][:first]) == {"policy"}
    assert shown(unit, "guard_state", state="alarm") == 1
    assert shown(unit, "guard_state", state="policy") == 0
    assert shown(unit, "monitor_alarms") == 1
    assert shown(unit, "monitor_capital") >= 1  # type: ignore[operator]


@pytest.mark.slow(4)
def test_a_swap_ends_the_alarm_and_begins_anew(
    tmp_path: Path, write_policy: WritePolicy, frames: list[CameraFrame]
) -> None:
    path = tmp_path / "a.policy"
    old = certified(path, write_policy)
    shifted = [blurred(f) for f in frames]
    unit = driven(tmp_path, shifted + frames)
    unit.replaced_at = len(shifted) - 1
    unit.replacement = lambda: certified(path, write_policy, OTHER)
    result = unit.run()
    rows = rows_of(tmp_path)
    former = rows["policy_hash"].count(old)
    assert (result["swaps"], result["rollbacks"], result["monitor_alarms"]) == (1, 0, 1)
    # The last frame before a swap is measured when the swap is done.
    assert rows["guard_state"][former - 2] == "alarm"
    assert set(rows["decided_by"][former:]) == {"policy"}
    assert set(rows["guard_state"][former:]) == {"policy"}
    assert set(rows["action"][former:]) == {OTHER.index}
    new = {name: values[former:] for name, values in rows.items()}
    expected = capital_of(new, TERMS) / TERMS.tracks_between
    assert shown(unit, "monitor_capital") == pytest.approx(expected)
    assert shown(unit, "guard_state", state="alarm") == 0


@pytest.mark.slow(2)
def test_a_swap_to_a_certificate_that_cannot_be_watched_changes_nothing(
    tmp_path: Path,
    write_policy: WritePolicy,
    frames: list[CameraFrame],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "a.policy"
    certified(path, write_policy)
    shifted = [blurred(f) for f in frames]
    unit = driven(tmp_path, shifted)
    unit.replaced_at = len(shifted) - 6
    unit.replacement = lambda: certified(path, write_policy, OTHER, evidence="labels")
    result = unit.run()
    assert (result["swaps"], result["swaps_refused"], result["monitor_alarms"]) == (0, 1, 1)
    assert rows_of(tmp_path)["guard_state"][-1] == "alarm"
    assert "labels" in str([r.__dict__.get("fields") for r in caplog.records])
