"""Forecasts without parameters to estimate. A model that does not beat them has learned nothing.

Formulas of forecasts and intervals: Hyndman & Athanasopoulos (2021), Forecasting: Principles and Practice, 5.2 and 5.5.
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.baselines.base import Forecaster, IntervalForecaster, as_series, normal_interval


class _Remembering(Forecaster):
    """A forecaster that computes everything from the values known so far: an update is as good as another fit."""

    min_length = 1

    def fit(self, history: ArrayLike) -> Self:
        """Remember the history."""
        self._values = as_series(history, self.name, self.min_length)
        return self

    def update(self, values: ArrayLike) -> Self:
        """Remember these values, too."""
        self._values = np.concatenate([self._values, as_series(values)])
        return self


class Naive(_Remembering, IntervalForecaster):
    """Repeats the last value: the best forecast of a random walk."""

    name = "naive"

    def predict(self, horizon: int) -> NDArray[np.float64]:
        """Return the last value, `horizon` times."""
        return np.full(horizon, self._values[-1])

    def predict_interval(self, horizon: int, coverage: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return bounds that widen with the square root of the steps; NaN if only one value is known."""
        std = _root_mean_square(np.diff(self._values)) * np.sqrt(np.arange(1, horizon + 1))
        return normal_interval(self.predict(horizon), std, coverage)


class SeasonalNaive(_Remembering, IntervalForecaster):
    """Repeats the last season.

    Args:
        period: Values in a season: 7 for daily values with a weekly rhythm.
    """

    def __init__(self, period: int) -> None:
        if period < 1:
            raise ValueError(f"period must be at least 1, found {period}")
        self.name = f"seasonal naive ({period})"
        self.period = self.min_length = period

    def predict(self, horizon: int) -> NDArray[np.float64]:
        """Return the values one season before those that are forecast, or several."""
        return np.resize(self._values[-self.period :], horizon)

    def predict_interval(self, horizon: int, coverage: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return bounds that widen with every season; NaN if no more than one season is known."""
        seasons_ahead = 1 + np.arange(horizon) // self.period
        std = _root_mean_square(self._values[self.period :] - self._values[: -self.period]) * np.sqrt(seasons_ahead)
        return normal_interval(self.predict(horizon), std, coverage)


class Drift(_Remembering, IntervalForecaster):
    """Goes on along the line from the first value to the last."""

    name = "drift"
    min_length = 2

    def predict(self, horizon: int) -> NDArray[np.float64]:
        """Return the values on the line through the first and the last value known."""
        slope = (self._values[-1] - self._values[0]) / (len(self._values) - 1)
        return self._values[-1] + slope * np.arange(1, horizon + 1)

    def predict_interval(self, horizon: int, coverage: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return bounds that widen faster than the steps' square root; NaN if only two values are known."""
        steps, changes = np.arange(1, horizon + 1), np.diff(self._values)
        # One degree of freedom goes into the slope, the mean of the changes. That it is uncertain widens the interval.
        std = changes.std(ddof=1) if len(changes) > 1 else np.nan
        return normal_interval(self.predict(horizon), std * np.sqrt(steps * (1 + steps / len(changes))), coverage)


class MovingAverage(_Remembering):
    """Repeats the mean of the last values. It names no model, so no interval follows from it.

    Args:
        window: How many values.
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, found {window}")
        self.name = f"moving average ({window})"
        self.window = self.min_length = window

    def predict(self, horizon: int) -> NDArray[np.float64]:
        """Return the mean of the last values, `horizon` times."""
        return np.full(horizon, self._values[-self.window :].mean())


def _root_mean_square(residuals: NDArray[np.float64]) -> float:
    """Return the standard deviation of residuals without a mean; NaN if there are none, since nothing is known then."""
    return float(np.sqrt(np.mean(residuals**2))) if len(residuals) else float("nan")
