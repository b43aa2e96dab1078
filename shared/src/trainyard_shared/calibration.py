"""Whether a classifier is right as often as it says: expected calibration error and the bins behind it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Calibration:
    """Predictions sorted into bins of equal width by their confidence.

    Attributes:
        edges: (M + 1,) bounds of the bins, from 0 to 1.
        counts: (M,) predictions in each bin.
        confidence: (M,) mean confidence in each bin, NaN where it is empty.
        accuracy: (M,) share of right predictions, likewise.
        error: expected calibration error: the gap between the two, weighted by counts.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    error: float


def calibration(confidences: ArrayLike, correct: ArrayLike, num_bins: int = 15) -> Calibration:
    """Compare how certain predictions were with how often they were right (Guo et al. 2017, arXiv 1706.04599).

    Args:
        confidences: (N,) probability of each predicted class.
        correct: (N,) whether the prediction was right.
        num_bins: M, bins of equal width; a confidence on a bound belongs to the bin below.

    Raises:
        ValueError: nothing given, shapes differ, or a confidence is no probability.
    """
    certain, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=bool)
    if certain.ndim != 1 or certain.shape != right.shape or not len(certain):
        raise ValueError(f"confidences and correct must be (N,) with N > 0, found {certain.shape} and {right.shape}")
    if not ((certain >= 0) & (certain <= 1 + 1e-6)).all():
        raise ValueError(f"confidences must lie between 0 and 1, found {certain.min()} to {certain.max()}")
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.ceil(certain * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, certain, num_bins) / counts
        accuracy = np.bincount(bins, right, num_bins) / counts
    error = float(np.nansum(counts * np.abs(accuracy - confidence)) / len(certain))
    return Calibration(edges, counts, confidence, accuracy, error)
