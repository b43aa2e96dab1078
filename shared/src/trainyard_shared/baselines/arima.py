"""ARIMA with statsmodels, its orders found by the data."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.baselines.base import FitError, IntervalForecaster, as_series, counting_warnings

if TYPE_CHECKING:
    from statsmodels.tsa.arima.model import ARIMAResults

MAX_ITERATIONS = 200
KPSS_LEVEL = 0.05


@dataclass(frozen=True)
class Order:
    """What kind of ARIMA model: autoregressive and moving-average terms, differences, and whether with a constant.

    The constant is the mean of the values for d = 0 and their drift for d = 1; there is none for d = 2.
    """

    p: int
    d: int
    q: int
    constant: bool

    @property
    def trend(self) -> str:
        """The constant as statsmodels calls it: a polynomial in time that is not differenced."""
        return ("c", "t")[self.d] if self.constant else "n"

    def __str__(self) -> str:
        words = (" with mean", " with drift")[self.d] if self.constant else ""
        return f"ARIMA({self.p},{self.d},{self.q}){words}"


class Arima(IntervalForecaster):
    """ARIMA with normal errors, by exact maximum likelihood in statsmodels.

    The orders are found as Hyndman & Khandakar (2008), Automatic time series forecasting, do: d is the number of
    differences after which a KPSS test no longer rejects that the series is stationary. Then p, q and the constant go
    step by step towards a smaller AICc, which can be compared between models of the same d only. Orders for which the
    estimation does not converge are passed over.

    A straight line, such as a series of zeros, leaves nothing to estimate: it is continued.

    Args:
        max_p: Largest number of autoregressive terms.
        max_q: Largest number of moving-average terms.
        max_d: Most differences, at most 2.

    After `fit`, `order` says which model it is and `result` is that of statsmodels, whose series begins at 0 and is
    divided by the standard deviation of its changes.
    """

    name = "ARIMA"
    order: Order
    result: "ARIMAResults"

    def __init__(self, max_p: int = 3, max_q: int = 3, max_d: int = 2) -> None:
        if min(max_p, max_q) < 0 or not 0 <= max_d <= 2:
            raise ValueError(f"max_p and max_q must be at least 0, max_d 0 to 2; found {max_p}, {max_q} and {max_d}")
        self.max_p, self.max_q, self.max_d = max_p, max_q, max_d

    def fit(self, history: ArrayLike) -> Self:
        """Find the orders and estimate their parameters; a few seconds for some thousand values."""
        # Two values for each parameter of the largest model (its terms, constant and variance).
        values = as_series(history, self.name, self.max_d + 2 * (self.max_p + self.max_q + 2))
        self.num_warnings = 0
        with counting_warnings(self):
            if _is_line(values):
                self._fit_line(values)
            else:
                self._search(values)
        return self

    def predict(self, horizon: int) -> NDArray[np.float64]:
        """Return the mean of what the model expects."""
        return self._unscaled(self.result.forecast(horizon))

    def predict_interval(self, horizon: int, coverage: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the bounds of the model, whose parameters count as known."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, found {coverage}")
        low, high = self._unscaled(self.result.get_forecast(horizon).conf_int(alpha=1 - coverage)).T
        return low, high

    def update(self, values: ArrayLike) -> Self:
        """Append observed values and run the Kalman filter with the parameters as they are."""
        if len(observed := as_series(values)):
            self.result = self._appended(observed)
        return self

    def predict_rolling(self, future: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
        """Forecast from each origin within `future`; see `RollingForecaster`.

        One pass of the Kalman filter gives the state that each origin predicts for the next value, from what was known
        at that origin alone. The forecasts follow from these states all at once.
        """
        num_known, num_origins = self.result.nobs, len(future) - horizon + 1
        filtered = self._appended(future)
        space = filtered.model.ssm
        states = filtered.predicted_state[:, num_known : num_known + num_origins]  # (state, origins)
        trend = np.broadcast_to(space["obs_intercept"], (1, num_known + len(future)))[0]
        forecasts = np.empty((num_origins, horizon))
        for step in range(horizon):
            first = num_known + step
            forecasts[:, step] = space["design"][0] @ states + trend[first : first + num_origins]
            states = space["transition"] @ states
        return self._unscaled(forecasts)

    def _search(self, values: NDArray[np.float64]) -> None:
        """Set `order` and `result` to the best that a walk through neighbouring orders finds."""
        d = _num_differences(values, self.max_d)
        # The optimizer wants values and parameters around 1, whatever the unit of the series.
        self._set_scale(values, float(np.diff(values, d).std()) or 1.0)
        results: dict[Order, Any] = {}

        def aicc(order: Order) -> float:
            if order not in results:
                results[order] = self._estimate(values, order)
            return results[order].aicc if results[order] else math.inf

        start = [Order(min(p, self.max_p), d, min(q, self.max_q), d < 2) for p, q in ((0, 0), (1, 0), (0, 1), (2, 2))]
        best, candidate = None, min(start, key=aicc)
        while best is None or aicc(candidate) < aicc(best):
            best = candidate
            candidate = min(self._neighbours(best), key=aicc)
        if not results[best]:
            raise FitError(f"{self.name} did not converge for any of the {len(results)} orders that were tried")
        self.order, self.result = best, results[best]

    def _neighbours(self, order: Order) -> Iterator[Order]:
        for p, q in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1)):
            if 0 <= order.p + p <= self.max_p and 0 <= order.q + q <= self.max_q:
                yield Order(order.p + p, order.d, order.q + q, order.constant)
        yield Order(order.p, order.d, order.q, not order.constant and order.d < 2)

    def _estimate(self, values: NDArray[np.float64], order: Order) -> "ARIMAResults | None":
        """Return the model of this order, or None if its parameters cannot be estimated."""
        try:
            # The covariance of the parameters takes as long again, and nobody asks for it.
            result = self._model(values, order).fit(cov_type="none", method_kwargs={"maxiter": MAX_ITERATIONS})
        except ValueError:  # among them LinAlgError
            return None
        return result if result.mle_retvals["converged"] and math.isfinite(result.aicc) else None

    def _fit_line(self, values: NDArray[np.float64]) -> None:
        slope = (values[-1] - values[0]) / (len(values) - 1)
        self._set_scale(values, abs(slope) or 1.0)
        self.order = Order(0, 1, 0, constant=bool(slope))
        # No noise at all would make the filter divide by zero.
        variance = 1e-12
        self.result = self._model(values, self.order).filter([np.sign(slope), variance] if slope else [variance])

    def _model(self, values: NDArray[np.float64], order: Order) -> Any:
        from statsmodels.tsa.arima.model import ARIMA

        return ARIMA(self._scaled(values), order=(order.p, order.d, order.q), trend=order.trend)

    def _appended(self, values: NDArray[np.float64]) -> "ARIMAResults":
        # Not `extend`, which would be quicker: it forgets the level of a differenced series.
        with counting_warnings(self):
            return self.result.append(self._scaled(values), refit=False)

    def _set_scale(self, values: NDArray[np.float64], scale: float) -> None:
        self._start, self._scale = values[0], scale

    def _scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (values - self._start) / self._scale

    def _unscaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._start + self._scale * values


def _is_line(values: NDArray[np.float64]) -> bool:
    line = np.linspace(values[0], values[-1], len(values))
    return np.allclose(values, line, rtol=0, atol=1e-12 * np.abs(values).max())


def _num_differences(values: NDArray[np.float64], max_d: int) -> int:
    """Return how often to difference until the KPSS test, whose null hypothesis is stationarity, does not reject."""
    from statsmodels.tools.sm_exceptions import InterpolationWarning
    from statsmodels.tsa.stattools import kpss

    with warnings.catch_warnings():
        # The p-value lies outside of the printed table, from 1 % to 10 %: on which side of 5 % is still known.
        warnings.simplefilter("ignore", InterpolationWarning)
        for d in range(max_d):
            changes = np.diff(values, d)
            if np.ptp(changes) == 0 or kpss(changes, nlags="auto", result_object=True).pvalue >= KPSS_LEVEL:
                return d
    return max_d
