"""Prophet (Taylor & Letham, 2018, Forecasting at Scale): a trend with bends and the seasons of the calendar."""

import logging
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.baselines.base import FitError, Forecaster, as_series, counting_warnings
from trainyard_shared.errors import DataError

MIN_LENGTH = 10


class Prophet(Forecaster):
    """Prophet's curve through the history, continued.

    It is a function of time alone: `update` moves the origin, and the observed values change nothing until it is fitted
    again. Its intervals are not given, because they are drawn at random from NumPy's global generator.

    Args:
        dates: Days, shape (N,), of the history and of all that is forecast. Without them there is a trend and no
            season, since nobody knows which values are Mondays.
    """

    name = "Prophet"

    def __init__(self, dates: ArrayLike | None = None) -> None:
        self.dates = None if dates is None else np.asarray(dates, dtype="datetime64[D]")

    def fit(self, history: ArrayLike) -> Self:
        """Fit the curve."""
        values = as_series(history, self.name, MIN_LENGTH)
        self._num_known = len(values)
        logging.getLogger("prophet.plot").setLevel(logging.CRITICAL)  # it complains that there is no plotly
        import cmdstanpy
        import pandas
        import prophet

        seasons = {f"{name}_seasonality": "auto" if self.dates is not None else False for name in ("weekly", "yearly")}
        self._model: Any = prophet.Prophet(uncertainty_samples=0, daily_seasonality=False, **seasons)
        self.num_warnings = 0
        try:
            with cmdstanpy.disable_logging(), counting_warnings(self):
                self._model.fit(pandas.DataFrame({"ds": self._days(0, len(values)), "y": values}), seed=0)
        except RuntimeError as error:  # Stan's optimizer gave up
            raise FitError(f"{self.name}: {error}") from error
        return self

    def predict(self, horizon: int) -> NDArray[np.float64]:
        """Return the curve after the origin."""
        import pandas

        days = self._days(self._num_known, self._num_known + horizon)
        with counting_warnings(self):
            forecast = self._model.predict(pandas.DataFrame({"ds": days}))
        return forecast["yhat"].to_numpy(np.float64)

    def update(self, values: ArrayLike) -> Self:
        """Move the origin of the forecasts."""
        self._num_known += len(as_series(values))
        return self

    def predict_rolling(self, future: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
        """Forecast from each origin within `future`; see `RollingForecaster`."""
        return np.lib.stride_tricks.sliding_window_view(self.predict(len(future)), horizon)

    def _days(self, start: int, stop: int) -> NDArray[np.datetime64]:
        if self.dates is None:
            return np.datetime64("2000-01-01", "D") + np.arange(start, stop)
        if stop > len(self.dates):
            raise DataError(
                f"{self.name} got {len(self.dates)} dates and needs {stop}: also those of what it forecasts."
            )
        return self.dates[start:stop]
