"""From scores to alarms, and how good these are: smoothing, threshold, figures over windows and over engines.

A score is higher the more an engine looks like failing. It is smoothed over an engine's past, never over its future.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trainyard_shared.datasets.cmapss import Fleet

from fairscale_turbofan_anomaly.data import Parts

Scores = NDArray[np.float64]
NUM_THRESHOLDS = 1000


def smooth(scores: Scores, fleet: Fleet, weight: float) -> Scores:
    """Return the exponential moving average of each engine's scores, (R,).

    Args:
        scores: (R,), one for each cycle.
        fleet: says where engines begin.
        weight: of the newest score, above 0; 1 leaves the scores as they are.
    """
    smoothed = scores.astype(np.float64, copy=True)
    for start, end in zip(fleet.offsets[:-1], fleet.offsets[1:], strict=True):
        for row in range(start + 1, end):
            smoothed[row] = weight * smoothed[row] + (1 - weight) * smoothed[row - 1]
    return smoothed


def best_threshold(scores: Scores, labels: NDArray[np.int64]) -> float:
    """Return the threshold with the best F1 on these windows, halfway between two scores.

    Args:
        scores: (N,).
        labels: (N,) 0 or 1, at least one 1.
    """
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(labels[order])  # how many hits if the alarm goes off for the first 1, 2, ... windows
    f1 = 2 * true / (np.arange(1, len(scores) + 1) + labels.sum())
    ranked = scores[order]
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores pass the threshold together
    cut = int(f1.argmax())
    below = ranked[cut + 1] if cut + 1 < len(ranked) else ranked[cut] - 1.0
    return float((ranked[cut] + below) / 2)


@dataclasses.dataclass(frozen=True)
class Figures:
    """How good the alarms of a set of windows are; NaN where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float
    pr_auc: float
    num_windows: int
    num_positive: int


def figures(scores: Scores, labels: NDArray[np.int64], threshold: float) -> Figures:
    """Compare alarms with what is true, window by window.

    PR-AUC is average precision: it does not depend on the threshold.
    """
    from sklearn.metrics import average_precision_score

    alarms = scores > threshold
    hits, positive = int((alarms & (labels == 1)).sum()), int(labels.sum())
    return Figures(
        precision=hits / alarms.sum() if alarms.any() else math.nan,
        recall=hits / positive if positive else math.nan,
        f1=2 * hits / (alarms.sum() + positive) if positive or alarms.any() else math.nan,
        pr_auc=float(average_precision_score(labels, scores)) if positive else math.nan,
        num_windows=len(labels),
        num_positive=positive,
    )


@dataclasses.dataclass(frozen=True)
class Warnings:
    """What alarms mean for engines that run to failure.

    Attributes:
        lead_times: for each engine, how many cycles before failure the alarm went off that led into the last cycles
            before it; NaN for an engine that failed without one.
        false_alarms: for each engine, how many alarms went off and ended again while it was not about to fail.
    """

    lead_times: NDArray[np.float64]
    false_alarms: NDArray[np.int64]


def warnings(scores: Scores, fleet: Fleet, threshold: float, horizon: int) -> Warnings:
    """Follow the alarms of each engine. An alarm lasts as long as the score stays above the threshold.

    Args:
        scores: (R,).
        fleet: engines that run to failure.
        threshold: of the alarm.
        horizon: an engine with at most this many cycles left is about to fail.
    """
    assert fleet.remaining is not None
    lead_times, false_alarms = [], []
    for start, end in zip(fleet.offsets[:-1], fleet.offsets[1:], strict=True):
        lead, false = math.nan, 0
        for first, last in episodes(scores[start:end] > threshold):
            if fleet.remaining[start + last] > horizon:
                false += 1
            elif math.isnan(lead):
                lead = float(fleet.remaining[start + first])
        lead_times.append(lead)
        false_alarms.append(false)
    return Warnings(np.array(lead_times), np.array(false_alarms, dtype=np.int64))


def episodes(alarms: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return first and last index of each run of alarms."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], alarms, [False]]).astype(np.int8)))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]


def last_rows(fleet: Fleet) -> NDArray[np.int64]:
    """Return the row of the last recorded cycle of each engine, (E,)."""
    return fleet.offsets[1:] - 1


def judge(name: str, scores: list[Scores], parts: Parts, horizon: int) -> dict[str, Any]:
    """Set the threshold on validation engines and return all figures on the others.

    Args:
        name: of the detector or baseline.
        scores: (R,) each, of the validation engines, those kept for the test, and those of the test file.
        parts: the engines.
        horizon: cycles.
    """
    val, test, stopped = scores
    threshold = best_threshold(val, parts.val.labels(horizon))
    rows = last_rows(parts.stopped.fleet)
    stopped_labels = parts.stopped.labels(horizon)
    about = warnings(test, parts.test.fleet, threshold, horizon)
    return {
        "name": name,
        "threshold": threshold,
        "val": dataclasses.asdict(figures(val, parts.val.labels(horizon), threshold)),
        "test": dataclasses.asdict(figures(test, parts.test.labels(horizon), threshold)),
        "stopped": dataclasses.asdict(figures(stopped, stopped_labels, threshold)),
        "last": dataclasses.asdict(figures(stopped[rows], stopped_labels[rows], threshold)),
        "lead_times": about.lead_times.tolist(),
        "false_alarms_per_engine": float(about.false_alarms.mean()),
        "missed_engines": int(np.isnan(about.lead_times).sum()),
    }
