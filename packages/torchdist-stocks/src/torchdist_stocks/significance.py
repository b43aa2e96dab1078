"""Whether a forecaster beats "tomorrow = today" by more than chance.

The errors of one day are alike for all stocks, because the market moves them together, and those of neighbouring days
are alike because their horizons overlap and calm or wild times last for weeks. Formulas for independent samples,
Wilson's interval among them, are then far too sure. Here whole blocks of days are drawn again, with all stocks of a day
together (moving-block bootstrap: Künsch, "The Jackknife and the Bootstrap for General Stationary Observations", 1989).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK_DAYS = 20
MIN_BLOCKS = 4
NUM_RESAMPLES = 4000


def sums_by_day(values: ArrayLike, days: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sums of values (N,) over the samples of each day; `days` (N,) tells whose day is whose.

    Days without a sample are left out.
    """
    _, position = np.unique(days, return_inverse=True)
    return np.bincount(position, weights=np.asarray(values)).astype(np.float64)


def ratio_interval(
    numerator: NDArray[Any], denominator: NDArray[Any], horizon: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of sum(numerator) / sum(denominator) under drawing blocks of days anew.

    Args:
        numerator: (D,) sums of each day, in the order of the days: absolute errors of a forecaster, say, or hits.
        denominator: (D,) of the same days: absolute errors of the last value, or numbers of samples.
        horizon: days over which the samples of neighbouring days overlap; blocks are at least twice as long.
        confidence: of the interval.

    Raises:
        ValueError: there is no day.
    """
    if not len(numerator) or len(numerator) != len(denominator):
        raise ValueError(f"{len(numerator)} and {len(denominator)} days: must be the same number, at least 1")
    # A block as long as the whole series would show no chance at all.
    block = max(1, min(max(BLOCK_DAYS, 2 * horizon), len(numerator) // MIN_BLOCKS))
    above, below = (
        np.lib.stride_tricks.sliding_window_view(part, block).sum(axis=1) for part in (numerator, denominator)
    )
    chosen = np.random.default_rng(0).integers(0, len(above), (NUM_RESAMPLES, -(-len(numerator) // block)))
    ratios = above[chosen].sum(axis=1) / below[chosen].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """The mean absolute error of a forecaster as a share of that of the last value, with its 95 % interval."""

    name: str
    ratio: float
    interval: tuple[float, float]

    @property
    def is_better(self) -> bool:
        """Whether the error is below that of the last value, beyond chance."""
        return self.interval[1] < 1


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Say in one sentence whether anything beats "tomorrow = today", and what, and by how much."""
    better = sorted((c for c in comparisons if c.is_better), key=lambda c: c.ratio)
    if not better:
        closest = min(comparisons, key=lambda c: c.ratio)
        low, high = closest.interval
        return (
            "Nothing here beats 'tomorrow = today': the smallest mean absolute error of the "
            f"{len(comparisons)} others is {closest.ratio:.4f} times that of the last value ({closest.name}; 95 % "
            f"interval {low:.4f} to {high:.4f})."
        )
    winners = ", ".join(
        f"{c.name} by {1 - c.ratio:.2%} ({1 - c.interval[1]:.2%} to {1 - c.interval[0]:.2%})" for c in better
    )
    return (
        f"The mean absolute error is below that of 'tomorrow = today', beyond chance (95 %), for: {winners}. Without "
        f"any skill, each of the {len(comparisons)} that were compared has a chance of 2.5 % to be in this list."
    )
