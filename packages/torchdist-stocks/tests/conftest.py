"""Prices to test with: random walks, small and made on the spot."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

MakePrices = Callable[..., dict[str, pd.DataFrame]]


@pytest.fixture(scope="session")
def make_prices() -> MakePrices:
    """Return a maker of daily prices by ticker: `make_prices(num_tickers, num_days, seed)`."""

    def make(num_tickers: int = 3, num_days: int = 400, seed: int = 0) -> dict[str, pd.DataFrame]:
        rng = np.random.default_rng(seed)
        days = pd.bdate_range("2015-01-01", periods=num_days, name="date")
        tables = {}
        for number in range(num_tickers):
            close = 50 * (number + 1) * np.exp(np.cumsum(rng.normal(0, 0.015, num_days)))
            opening = close * np.exp(rng.normal(0, 0.005, num_days))
            # A dividend of 2 % in the middle: the past before it is adjusted, in the adjusted close only.
            factor = np.where(np.arange(num_days) < num_days // 2, 0.98, 1.0)
            tables[f"T{number}"] = pd.DataFrame(
                {
                    "open": opening,
                    "high": np.maximum(opening, close) * 1.004,
                    "low": np.minimum(opening, close) / 1.004,
                    "close": close,
                    "adjusted_close": close * factor,
                    "volume": rng.integers(10_000, 90_000, num_days).astype(float),
                },
                index=days,
            )
        return tables

    return make


@pytest.fixture(scope="session")
def alter_future() -> Callable[[pd.DataFrame, int], pd.DataFrame]:
    """Return a function that gives prices another course after one day, and leaves those up to it as they are."""

    def alter(prices: pd.DataFrame, day: int) -> pd.DataFrame:
        altered = prices.copy()
        altered.iloc[day + 1 :] *= np.random.default_rng(1).uniform(0.2, 5, (len(prices) - day - 1, 1))
        altered.iloc[day + 1 :, altered.columns.get_loc("volume")] *= 7
        return altered

    return alter
