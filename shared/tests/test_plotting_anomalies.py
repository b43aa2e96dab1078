"""Pictures of detectors: drawn for ordinary and for extreme input, and refused where there is nothing to draw."""

from pathlib import Path

import numpy as np
import pytest
from trainyard_shared import plotting_anomalies


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("horizon", [30, None])
def test_scores_over_life(tmp_path: Path, count: int, horizon: int | None) -> None:
    scores = {f"engine {i} ($)": np.linspace(0, 1, 40 + i) for i in range(count)}
    assert is_png(plotting_anomalies.scores_over_life(scores, 0.7, horizon, tmp_path / "a.png", note="sample"))
    one = {"engine 1": [0.5]}
    assert is_png(plotting_anomalies.scores_over_life(one, 0.7, horizon, tmp_path / "b.png", log_scale=True))
    with pytest.raises(ValueError, match="no machine"):
        plotting_anomalies.scores_over_life({}, 0.7, horizon, tmp_path / "c.png")


@pytest.mark.parametrize("cycles", [[20.0, 31.0, float("nan")], [float("nan")], [0.0], [250.0, 30.0]])
def test_lead_times(tmp_path: Path, cycles: list[float]) -> None:
    assert is_png(plotting_anomalies.lead_times(cycles, 30, tmp_path / "a.png"))


def test_lead_times_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        plotting_anomalies.lead_times([], 30, tmp_path / "a.png")


@pytest.mark.parametrize("threshold", [0.5, 99.0])
def test_precision_recall(tmp_path: Path, threshold: float) -> None:
    labels, scores = [0, 1, 0, 1], [0.1, 0.9, 0.9, 0.8]
    assert is_png(plotting_anomalies.precision_recall(labels, scores, threshold, tmp_path / "a.png"))


def test_memory_over_length(tmp_path: Path) -> None:
    curves = {"plain": [1e6, 2e6], "checkpointed": [1e5, 1.2e5]}
    assert is_png(plotting_anomalies.memory_over_length([64, 128], curves, tmp_path / "a.png"))
    with pytest.raises(ValueError, match="2 values for each variant"):
        plotting_anomalies.memory_over_length([64, 128], {"plain": [1.0]}, tmp_path / "b.png")
