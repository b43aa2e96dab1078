"""Indicators: right by hand, and blind to the future."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torchdist_stocks import features
from torchdist_stocks.features import FEATURES, bollinger, ema, indicators, macd, rsi, sma, volatility

WALK = 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.02, 120)))


def test_sma_by_hand() -> None:
    np.testing.assert_allclose(sma(np.array([1.0, 2, 6, 3]), 3), [np.nan, np.nan, 3, 11 / 3])


def test_ema_by_hand() -> None:
    # share 2 / (3 + 1) = 1/2: 4, then halfway to 8, then halfway to 0
    np.testing.assert_allclose(ema(np.array([4.0, 8, 0]), 3), [4, 6, 3])


def test_rsi_by_hand() -> None:
    # changes +2, -1 with share 1/2: gains 2, 1; losses 0, 0.5
    np.testing.assert_allclose(rsi(np.array([10.0, 12, 11]), 2), [np.nan, np.nan, 100 * 1 / 1.5])


@pytest.mark.parametrize(
    ("prices", "expected"), [(np.arange(1.0, 30), 100), (np.arange(30.0, 1, -1), 0), (np.full(29, 7.0), 50)]
)
def test_rsi_at_its_ends(prices: np.ndarray, expected: float) -> None:
    assert rsi(prices)[-1] == expected


def test_macd_is_the_difference_of_two_emas() -> None:
    line, histogram = macd(WALK)
    series = pd.Series(WALK)
    fast, slow = (series.ewm(span=days, adjust=False).mean() for days in (12, 26))
    np.testing.assert_allclose(line[26:], (fast - slow)[26:])
    np.testing.assert_allclose(histogram[40:], (fast - slow - (fast - slow).ewm(span=9, adjust=False).mean())[40:])
    assert np.isnan(line[:26]).all()
    assert np.isnan(histogram[:35]).all()


def test_bollinger_is_one_at_the_band() -> None:
    place = bollinger(WALK)
    window = WALK[30:50]
    assert place[49] == pytest.approx((WALK[49] - window.mean()) / (2 * window.std()))
    assert bollinger(np.full(25, 3.3))[-1] == 0, "prices that do not move lie in the middle"


def test_volatility_by_hand() -> None:
    np.testing.assert_allclose(volatility(np.array([0.03, -0.04, 0.0]), 2), [np.nan, 0.05 / 2**0.5, 0.04 / 2**0.5])


def test_all_features_are_finite_after_the_warm_up(make_prices: Callable) -> None:
    table = indicators(make_prices(1)["T0"])
    assert table.shape == (400, len(FEATURES))
    assert np.isfinite(table[49:]).all()
    assert np.isnan(table[:49]).any(axis=1).all()


def test_features_by_hand(make_prices: Callable) -> None:
    prices = make_prices(1)["T0"]
    day, table = 300, dict(zip(FEATURES, indicators(prices)[300], strict=True))
    price, volume = prices["adjusted_close"].to_numpy(), prices["volume"].to_numpy()
    today = prices.iloc[day]
    assert table["return_1"] == pytest.approx(np.log(price[day] / price[day - 1]))
    assert table["return_5"] == pytest.approx(np.log(price[day] / price[day - 5]))
    assert table["return_20"] == pytest.approx(np.log(price[day] / price[day - 20]))
    assert table["above_sma_50"] == pytest.approx(np.log(price[day] / price[day - 49 : day + 1].mean()))
    assert table["rsi_14"] == pytest.approx(rsi(price)[day] / 50 - 1)
    assert table["daily_range"] == pytest.approx(np.log(today["high"] / today["low"]))
    # After the dividend, open and close need no adjustment.
    assert table["overnight_gap"] == pytest.approx(np.log(today["open"] / prices["close"].iloc[day - 1]))
    assert table["volume_20"] == pytest.approx(np.log((volume[day] + 1) / (volume[day - 19 : day + 1].mean() + 1)))
    daily = np.diff(np.log(price))[:day]
    assert table["volatility_20"] == pytest.approx(np.sqrt((daily[-20:] ** 2).mean()))
    assert table["volatility_5_to_20"] == pytest.approx(
        np.log(((daily[-5:] ** 2).mean() / (daily[-20:] ** 2).mean()) ** 0.5)
    )


def test_dividend_is_no_return(make_prices: Callable) -> None:
    # On day 200 the close falls by the dividend, the adjusted close does not.
    prices = make_prices(1)["T0"]
    table = dict(zip(FEATURES, indicators(prices)[200], strict=True))
    adjusted, before = prices["adjusted_close"].to_numpy(), 0.98
    assert table["return_1"] == pytest.approx(np.log(adjusted[200] / adjusted[199]))
    expected = np.log(prices["open"].iloc[200] / (prices["close"].iloc[199] * before))
    assert table["overnight_gap"] == pytest.approx(expected)


def test_prices_that_do_not_move_give_finite_features(make_prices: Callable) -> None:
    prices = make_prices(1)["T0"]
    prices.iloc[:, :5], prices["volume"] = 10.0, 0.0
    assert np.isfinite(indicators(prices)[49:]).all()


def test_no_feature_depends_on_the_level_of_adjusted_prices(make_prices: Callable) -> None:
    # Which factor the adjusted close carries depends on the dividends of the future.
    prices = make_prices(1)["T0"]
    scaled = prices.assign(adjusted_close=prices["adjusted_close"] * 0.37)
    np.testing.assert_allclose(indicators(scaled), indicators(prices), rtol=1e-9, atol=1e-12)


# Every public function of a series, and the whole table: none may look ahead.
FUNCTIONS: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
    "sma": lambda p: sma(p["close"].to_numpy(), 20),
    "ema": lambda p: ema(p["close"].to_numpy(), 20),
    "rsi": lambda p: rsi(p["close"].to_numpy()),
    "macd": lambda p: np.stack(macd(p["close"].to_numpy()), axis=1),
    "bollinger": lambda p: bollinger(p["close"].to_numpy()),
    "volatility": lambda p: volatility(np.diff(np.log(p["close"].to_numpy()), prepend=0.0), 20),
    "indicators": lambda p: indicators(p),
}


def leaks(function: Callable[[pd.DataFrame], np.ndarray], prices: pd.DataFrame, alter: Callable) -> list[int]:
    """Return the days up to which a value changes, by a single bit, when the days after them are altered."""
    before = function(prices)
    found = []
    for day in (60, 61, 127, 250, 398):
        after = function(alter(prices, day))
        if not np.array_equal(before[: day + 1], after[: day + 1], equal_nan=True):
            found.append(day)
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_altered_future_changes_no_value_of_the_past(name: str, make_prices: Callable, alter_future: Callable) -> None:
    assert leaks(FUNCTIONS[name], make_prices(1)["T0"], alter_future) == []


def centred(values: np.ndarray, days: int, statistic: Any) -> np.ndarray:
    """A moving statistic as it is often written by mistake: around the day, half of it in the future."""
    return pd.Series(values).rolling(days, center=True).apply(statistic, raw=True).to_numpy()


def scaled_by_all(values: np.ndarray, share: float) -> np.ndarray:
    """An average of values that were scaled with the maximum of the whole series first."""
    return pd.Series(values / values.max()).ewm(alpha=share, adjust=False).mean().to_numpy()


@pytest.mark.parametrize(("name", "leaky"), [("_over_last", centred), ("_exponential", scaled_by_all)])
def test_a_leak_is_found(
    name: str, leaky: Callable, make_prices: Callable, alter_future: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So the test above can fail: with a leaky building block it does.
    monkeypatch.setattr(features, name, leaky)
    assert leaks(indicators, make_prices(1)["T0"], alter_future) == [60, 61, 127, 250, 398]
