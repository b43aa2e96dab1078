"""Gradient-boosted trees on lags and rolling features, with XGBoost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.baselines.base import Forecaster, as_series

if TYPE_CHECKING:
    from xgboost import Booster

MIN_SAMPLES = 10


class XGBoost(Forecaster):
    """Regression trees that learn the next value from past ones; further values follow from the forecasts themselves.

    The features are single past values and the mean and standard deviation of the last ones. One thread and a fixed
    seed: the same series gives the same forecasts on every machine of a kind. There are no intervals, because the
    residuals of the training are far too small to tell how wrong the forecasts will be.

    Args:
        lags: Which past values, 1 being the newest.
        windows: Over how many of the newest values mean and standard deviation are taken.
        difference: Learn the changes from value to value. A tree never predicts beyond the values it was trained on: a
            series that wanders off, such as a price, needs this.
        num_rounds: Number of trees.
        learning_rate: Share of each tree's prediction that is added.
        max_depth: Levels of each tree.
        seed: Of XGBoost.
    """

    name = "XGBoost"

    def __init__(
        self,
        lags: Sequence[int] = tuple(range(1, 8)),
        windows: Sequence[int] = (7, 28),
        difference: bool = False,
        num_rounds: int = 200,
        learning_rate: float = 0.05,
        max_depth: int = 4,
        seed: int = 0,
    ) -> None:
        if not lags or min([*lags, *windows]) < 1:
            raise ValueError(f"lags and windows must be whole numbers from 1 on, found {lags} and {windows}")
        self.lags, self.windows, self.difference = list(lags), list(windows), difference
        self.num_rounds = num_rounds
        self.parameters = {
            "objective": "reg:squarederror",
            "learning_rate": learning_rate,
            "max_depth": max_depth,
            "seed": seed,
            "nthread": 1,
        }
        self._num_past = max([*lags, *windows])

    def fit(self, history: ArrayLike) -> Self:
        """Train the trees."""
        import xgboost

        values = as_series(history, self.name, self._num_past + int(self.difference) + MIN_SAMPLES)
        learned = np.diff(values) if self.difference else values
        windows = np.lib.stride_tricks.sliding_window_view(learned[:-1], self._num_past)
        samples = xgboost.DMatrix(self._features(windows), learned[self._num_past :], nthread=1)
        self._booster: Booster = xgboost.train(self.parameters, samples, self.num_rounds)
        self._newest = self._needed(values)
        return self

    def predict(self, horizon: int) -> NDArray[np.float64]:
        """Return the next value and, from it and the past, those that follow."""
        return self._forecast(self._newest[None], horizon)[0]

    def update(self, values: ArrayLike) -> Self:
        """Take these values into the features of the next forecast."""
        self._newest = self._needed(np.concatenate([self._newest, as_series(values)]))
        return self

    def predict_rolling(self, future: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
        """Forecast from each origin within `future`, each step for all origins at once; see `RollingForecaster`."""
        known = np.concatenate([self._newest, future[: len(future) - horizon]])
        return self._forecast(np.lib.stride_tricks.sliding_window_view(known, len(self._newest)), horizon)

    def _needed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values[-self._num_past - int(self.difference) :]

    def _forecast(self, newest: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
        """Return the forecasts, (origins, horizon), that follow the newest values known at each origin."""
        windows = np.diff(newest) if self.difference else newest  # (origins, past values)
        forecasts = np.empty((len(newest), horizon))
        for step in range(horizon):
            forecasts[:, step] = self._booster.inplace_predict(self._features(windows))
            windows = np.concatenate([windows[:, 1:], forecasts[:, step : step + 1]], axis=1)
        return newest[:, -1:] + forecasts.cumsum(axis=1) if self.difference else forecasts

    def _features(self, windows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the features, (samples, features), of windows of past values, newest last."""
        lagged = [windows[:, -lag] for lag in self.lags]
        recent = [windows[:, -window:] for window in self.windows]
        return np.column_stack(
            [*lagged, *(values.mean(axis=1) for values in recent), *(values.std(axis=1) for values in recent)]
        )
