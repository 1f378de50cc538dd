"""Which frames look as few of training do: against SciPy's distance, and on real blur and fog."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.spatial.distance import mahalanobis

from cnn.common.errors import BundleError
from cnn.frame_table import embedded_table, frame_features
from cnn.topology import SHIPPED
from testbed.deploy.picture_reference import PictureReference
from testbed.device.frame_sources import rendered_frames
from testbed.policy.observation_fields import features_in, schema_of

SCHEMA = schema_of(SHIPPED)
Features = NDArray[np.float32]


def scaled(raw: Any) -> Features:
    return SCHEMA.normalise(raw, SCHEMA.features_at)


@pytest.fixture(scope="module")
def training() -> Features:
    return scaled(embedded_table("policy-train-varied").features)


@pytest.fixture(scope="module")
def reference(training: Features) -> PictureReference:
    found = PictureReference.of(training)
    assert found is not None
    return found


def test_one_in_twenty_training_frames_is_strange(
    training: Features, reference: PictureReference
) -> None:
    assert reference.strange(training).mean() == pytest.approx(0.05, abs=1e-3)


def test_the_distance_is_that_of_mahalanobis(
    training: Features, reference: PictureReference
) -> None:
    """Brightness, log contrast and log sharpness from the raw figures, up to shift and scale."""
    raw = embedded_table("policy-train-varied").features.astype(np.float64)
    contrast = np.minimum(raw[:, 1], 0.4)
    seen = np.column_stack(
        [raw[:, 0], np.log(contrast + 0.001), np.log(np.clip(raw[:, 2], 0.001, 1.0))]
    )
    inverse = np.linalg.inv(np.cov(seen.T))
    centre = seen.mean(0)
    some = np.random.default_rng(0).permutation(len(seen))[:500]
    distance = np.array([mahalanobis(seen[i], centre, inverse) ** 2 for i in some])
    clear = abs(distance / reference.edge - 1) > 0.01  # the least spread moves the edge a little
    assert clear.sum() > 450
    expected = (distance > reference.edge)[clear]
    np.testing.assert_array_equal(reference.strange(training[some][clear]), expected)


def fog(image: Image.Image) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, (225, 225, 225)), 0.9)


def test_blurred_and_foggy_frames_are_strange_and_calm_ones_are_not(
    reference: PictureReference,
) -> None:
    frames = [f for f in rendered_frames(48, 0, 20) if f.frame_in_track % 10 == 9]

    def share(change: Any) -> float:
        features = [
            frame_features(np.asarray(change(Image.fromarray(f.image))), f.width_px, f.height_px, 0)
            for f in frames
        ]
        return float(reference.strange(scaled(features)).mean())

    assert share(lambda image: image) < 0.3
    assert share(lambda image: image.filter(ImageFilter.GaussianBlur(6))) > 0.9
    assert share(fog) > 0.9


def test_features_that_were_not_measured_make_no_reference(training: Features) -> None:
    """An imported table has the same figures for every frame."""
    constant = training.copy()
    constant[:, 2] = constant[0, 2]
    assert PictureReference.of(constant) is None
    assert PictureReference.of(training[:1]) is None


def test_features_of_an_observation_are_found_in_it() -> None:
    observation = np.arange(SCHEMA.obs_dim, dtype=np.float32)
    names = [field.name for field in SCHEMA.fields]
    at = names.index("brightness")
    assert features_in(observation).tolist() == list(range(at, at + 6))


def test_it_reads_back(reference: PictureReference) -> None:
    assert PictureReference.of_json(reference.to_json()) == reference


@pytest.mark.parametrize(
    "changed",
    [
        {"centre": [0.0, 1.0]},
        {"centre": [0.0, 1.0, math.nan]},
        {"precision": [[1.0, 0.0, 0.0]]},
        {"precision": (-np.eye(3)).tolist()},
        {"precision": "1"},
        {"edge": 0.0},
        {"edge": None},
    ],
)
def test_what_cannot_be_a_reference_is_refused(
    reference: PictureReference, changed: dict[str, Any]
) -> None:
    with pytest.raises(BundleError, match="unusable pictures"):
        PictureReference.of_json({**reference.to_json(), **changed})
    with pytest.raises(BundleError, match="unusable pictures"):
        PictureReference.of_json({"edge": 1.0})
