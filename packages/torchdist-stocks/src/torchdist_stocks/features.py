"""Technical indicators that only look back: the value of a day is computed from that day and the days before it.

Each indicator is a function of whole series of shape (T,), oldest day first, and has the same shape; days on which
there is not yet enough history are NaN. `indicators` puts them together in a form that does not depend on the level of
the price: an adjusted close carries the dividends of the future as a constant factor, which ratios cancel.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame

Series = NDArray[np.float64]

# What `indicators` returns, in the order of its columns. The model looks up the last one by its name.
FEATURES = (
    "return_1",
    "return_5",
    "return_20",
    "above_sma_20",
    "above_sma_50",
    "above_ema_10",
    "rsi_14",
    "macd",
    "macd_histogram",
    "bollinger_20",
    "daily_range",
    "overnight_gap",
    "volume_20",
    "volatility_5_to_20",
    "volatility_20",
)
# A stock that is suspended or pegged has no volatility; what is divided by it must stay finite.
MIN_VOLATILITY = 1e-3


def sma(values: Series, days: int) -> Series:
    """Simple moving average: the mean of the last `days` values."""
    return _over_last(values, days, np.mean)


def ema(values: Series, days: int) -> Series:
    """Exponential moving average, e[t] = e[t-1] + 2 / (days + 1) * (x[t] - e[t-1]), from e[0] = x[0] on."""
    return _exponential(values, 2 / (days + 1))


def rsi(prices: Series, days: int = 14) -> Series:
    """Relative strength index, 100 * gains / (gains + losses): from 0 (only losses) to 100, 50 if nothing moved.

    Gains and losses are Wilder's averages over `days`, a[t] = a[t-1] + (x[t] - a[t-1]) / days (J. W. Wilder, "New
    Concepts in Technical Trading Systems", 1978), started at the first change instead of at a plain mean.
    """
    change = np.diff(prices)
    gains, losses = (_exponential(np.maximum(part, 0), 1 / days) for part in (change, -change))
    total = gains + losses
    index = 100 * np.divide(gains, total, out=np.full_like(total, 0.5), where=total > 0)
    return _blank(np.concatenate([[np.nan], index]), days)


def macd(prices: Series, fast: int = 12, slow: int = 26, signal: int = 9) -> tuple[Series, Series]:
    """Moving average convergence divergence: EMA(fast) - EMA(slow), and that less its own EMA(signal) (Appel, 1979)."""
    line = ema(prices, fast) - ema(prices, slow)
    histogram = line - ema(line, signal)
    return _blank(line, slow), _blank(histogram, slow + signal)


def bollinger(prices: Series, days: int = 20, width: float = 2.0) -> Series:
    """Place between Bollinger's bands: (p - SMA) / (width * standard deviation), 1 at the upper band, -1 at the lower.

    Prices that have not moved for `days` lie in the middle, at 0 (Bollinger, "Bollinger on Bollinger Bands", 2001).
    """
    band = width * _over_last(prices, days, np.std)
    above = prices - sma(prices, days)
    return np.divide(above, band, out=np.where(np.isnan(band), np.nan, 0.0), where=band > 1e-12 * prices)


def volatility(log_returns: Series, days: int) -> Series:
    """Root mean square of the last `days` daily log returns. Their mean, which is tiny, is not subtracted."""
    return np.sqrt(_over_last(log_returns**2, days, np.mean))


def indicators(prices: "DataFrame") -> Series:
    """Return the features of one stock.

    Args:
        prices: one row a day, oldest first, with the columns open, high, low, close, adjusted_close and volume.

    Returns:
        (T, len(FEATURES)); NaN in the first days (49, for the mean of 50).
    """
    adjusted = prices["adjusted_close"].to_numpy(np.float64)
    raw_open, high, low, close, volume = (
        prices[name].to_numpy(np.float64) for name in ("open", "high", "low", "close", "volume")
    )
    log_price = np.log(adjusted)
    daily = lag_difference(log_price, 1)
    macd_line, macd_histogram = macd(adjusted)
    # The opening price in the currency of the adjusted close: the factor of its own day, known on that day.
    log_open = np.log(raw_open) + log_price - np.log(close)
    short, long = volatility(daily, 5), volatility(daily, 20)
    columns = {
        "return_1": daily,
        "return_5": lag_difference(log_price, 5),
        "return_20": lag_difference(log_price, 20),
        "above_sma_20": np.log(adjusted / sma(adjusted, 20)),
        "above_sma_50": np.log(adjusted / sma(adjusted, 50)),
        "above_ema_10": np.log(adjusted / ema(adjusted, 10)),
        "rsi_14": rsi(adjusted) / 50 - 1,
        "macd": macd_line / adjusted,
        "macd_histogram": macd_histogram / adjusted,
        "bollinger_20": bollinger(adjusted),
        "daily_range": np.log(high / low),
        "overnight_gap": np.concatenate([[np.nan], log_open[1:] - log_price[:-1]]),
        "volume_20": np.log((volume + 1) / (sma(volume, 20) + 1)),
        "volatility_5_to_20": np.log(np.maximum(short, MIN_VOLATILITY) / np.maximum(long, MIN_VOLATILITY)),
        "volatility_20": long,
    }
    return np.stack([columns[name] for name in FEATURES], axis=1)


def lag_difference(values: Series, days: int) -> Series:
    """Return x[t] - x[t - days]; of log prices these are log returns."""
    return np.concatenate([np.full(min(days, len(values)), np.nan), values[days:] - values[:-days]])


def _over_last(values: Series, days: int, statistic: "np.ufunc | object") -> Series:
    # Each window by itself: running sums would carry rounding errors of large old values along.
    result = np.full(len(values), np.nan)
    if len(values) >= days:
        result[days - 1 :] = statistic(np.lib.stride_tricks.sliding_window_view(values, days), axis=1)  # type: ignore[operator]
    return result


def _exponential(values: Series, share: float) -> Series:
    import pandas as pd

    return pd.Series(values).ewm(alpha=share, adjust=False).mean().to_numpy()


def _blank(values: Series, days: int) -> Series:
    """Return the values with those of the first `days` days left out: a recursion has hardly begun there."""
    values = values.copy()
    values[:days] = np.nan
    return values
