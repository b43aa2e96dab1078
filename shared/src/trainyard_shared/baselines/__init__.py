"""Forecasts that a network has to beat: naive ones, ARIMA, XGBoost and Prophet, behind one small interface.

    forecasts = rolling_forecast(Arima(), history, future, horizon=5)                        # one series
    outcomes = forecast_all(Arima, {"AAPL": (history, future)}, horizon=5, processes=2)      # many, in parallel

Statsmodels, XGBoost and Prophet are imported when they first fit: `trainyard-shared[baselines]` and `[prophet]`.
"""

from trainyard_shared.baselines.arima import Arima
from trainyard_shared.baselines.base import FitError, Forecaster, IntervalForecaster, RollingForecaster
from trainyard_shared.baselines.boosting import XGBoost
from trainyard_shared.baselines.prophet import Prophet
from trainyard_shared.baselines.rolling import Outcome, forecast_all, rolling_forecast
from trainyard_shared.baselines.simple import Drift, MovingAverage, Naive, SeasonalNaive

__all__ = [
    "Arima",
    "Drift",
    "FitError",
    "Forecaster",
    "IntervalForecaster",
    "MovingAverage",
    "Naive",
    "Outcome",
    "Prophet",
    "RollingForecaster",
    "SeasonalNaive",
    "XGBoost",
    "forecast_all",
    "rolling_forecast",
]
