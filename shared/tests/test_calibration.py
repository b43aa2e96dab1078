"""Calibration, and the pictures of many classes."""

from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.calibration import calibration
from trainyard_shared.plotting_images import confused_classes, confusion_in_groups, reliability_diagram


def test_error_is_the_gap_weighted_by_how_many_there_are() -> None:
    # 8 of confidence 0.75 of which 4 are right (gap 0.25); 2 of confidence 0.15, both wrong (gap 0.15).
    found = calibration([0.75] * 8 + [0.15] * 2, [True] * 4 + [False] * 6, num_bins=10)
    assert found.error == pytest.approx(0.8 * 0.25 + 0.2 * 0.15)
    assert found.counts.tolist() == [0, 2, 0, 0, 0, 0, 0, 8, 0, 0]
    assert found.accuracy[7] == 0.5
    assert np.isnan(found.accuracy[0])


def test_who_is_always_certain_and_right_is_calibrated() -> None:
    assert calibration([1.0, 1.0], [True, True]).error == 0
    assert calibration([1.0, 0.0], [False, True]).error == 1


def test_a_bound_belongs_to_the_bin_below() -> None:
    assert calibration([0.5, 0.5 + 1e-9, 0.0], [True] * 3, num_bins=2).counts.tolist() == [2, 1]


@pytest.mark.parametrize(("certain", "right"), [([], []), ([0.5], [True, False]), ([1.5], [True])])
def test_what_cannot_be(certain: list, right: list) -> None:
    with pytest.raises(ValueError):
        calibration(certain, right)


def test_pictures_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 30, 300), rng.integers(0, 30, 300)
    certain = rng.random(300)
    names, groups = [f"class {i}" for i in range(30)], np.arange(30) % 4
    matrix = np.zeros((30, 30), int)
    np.add.at(matrix, (labels, predictions), 1)
    images = rng.integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    for path in (
        confusion_in_groups(matrix, names, groups, list("abcd"), tmp_path / "a.png", note="generated"),
        reliability_diagram(calibration(certain, labels == predictions), tmp_path / "b.png"),
        confused_classes(images, labels, predictions, certain, names, tmp_path / "c.png"),
        confused_classes(images, labels, labels, certain, names, tmp_path / "d.png"),
    ):
        assert path.stat().st_size > 2000
