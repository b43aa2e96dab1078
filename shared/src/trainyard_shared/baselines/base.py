"""What all forecasters have in common: the interface, and what they say about series they cannot take."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import NormalDist
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.errors import DataError


class FitError(Exception):
    """No parameters could be estimated for this series, though there is nothing wrong with its values."""


class Forecaster(Protocol):
    """Forecasts one series at a time, as float64, from its past values alone.

    Attributes:
        name: how tables and pictures call it.
        num_warnings: what the library that does the fitting had to say; counted instead of printed.
    """

    name: str
    num_warnings: int = 0

    def fit(self, history: ArrayLike) -> Self:
        """Estimate parameters from `history`, shape (T,), oldest value first. What was fitted before is forgotten.

        Raises:
            DataError: the series is too short, or holds NaN or infinity.
            FitError: the estimation failed.
        """
        ...

    def predict(self, horizon: int) -> NDArray[np.float64]:
        """Return the forecast of the `horizon` values that follow the newest known one, shape (horizon,)."""
        ...

    def update(self, values: ArrayLike) -> Self:
        """Append observed values, shape (n,), to the known ones. No parameter is estimated again.

        Raises:
            DataError: the values hold NaN or infinity.
        """
        ...


class IntervalForecaster(Forecaster, Protocol):
    """A forecaster that can say how sure it is."""

    def predict_interval(self, horizon: int, coverage: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the bounds, (horizon,) each, between which each value lies with probability `coverage`.

        This takes the errors to be normal and the model to be right, so that it is on the narrow side.
        """
        ...


@runtime_checkable
class RollingForecaster(Protocol):
    """A forecaster with a quicker way than to predict and to update in turn."""

    def predict_rolling(self, future: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
        """Return what `predict` gives before and after updates with each value of `future`, shape (F,).

        Row i is the forecast made when the first i values of `future` are known: shape (F - horizon + 1, horizon). The
        forecaster itself is not updated.
        """
        ...


def as_series(values: ArrayLike, name: str = "", min_length: int = 0) -> NDArray[np.float64]:
    """Return `values` as float64 of shape (T,).

    Args:
        values: What a user's file may hold.
        name: Whose minimum length it is, for the message.
        min_length: What is too short.

    Raises:
        DataError: There are too few values, or one is NaN or infinite.
        ValueError: The values are not one row.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"a series must be one row of values, found shape {series.shape}")
    if not (finite := np.isfinite(series)).all():
        position = int(finite.argmin())
        raise DataError(
            f"The series holds {series[position]} at position {position} (counted from 0): values must be finite. "
            "Drop or fill what is missing first."
        )
    if len(series) < min_length:
        raise DataError(f"{name} needs a series of at least {min_length} values, found {len(series)}.")
    return series


@contextmanager
def counting_warnings(forecaster: Forecaster) -> Iterator[None]:
    """Add the warnings of the block to the forecaster's number, instead of printing them for each of many series."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    forecaster.num_warnings += len(caught)


def normal_interval(
    forecast: NDArray[np.float64], std: NDArray[np.float64], coverage: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds of the central interval of normal distributions with these means and standard deviations."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, found {coverage}")
    half_width = NormalDist().inv_cdf((1 + coverage) / 2) * std
    return forecast - half_width, forecast + half_width
