"""The forecasters one by one: values worked out by hand, series of a known model, and series they cannot take."""

import importlib.util
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from trainyard_shared.baselines import (
    Arima,
    Drift,
    FitError,
    Forecaster,
    IntervalForecaster,
    MovingAverage,
    Naive,
    Prophet,
    SeasonalNaive,
    XGBoost,
)
from trainyard_shared.baselines.arima import Order
from trainyard_shared.errors import DataError

HISTORY = [1.0, 2.0, 4.0, 3.0, 5.0]
Z = NormalDist().inv_cdf(0.975)

needs_prophet = pytest.mark.skipif(importlib.util.find_spec("prophet") is None, reason="prophet is not installed")


def noise(num_values: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=num_values)


def autoregression(coefficient: float, num_values: int, seed: int = 0) -> np.ndarray:
    values = noise(num_values, seed)
    for t in range(1, num_values):
        values[t] += coefficient * values[t - 1]
    return values


def every_forecaster() -> list:
    makers = [Naive, lambda: SeasonalNaive(7), Drift, lambda: MovingAverage(5), Arima, XGBoost]
    names = ["naive", "seasonal naive", "drift", "moving average", "arima", "xgboost"]
    differencing = pytest.param(lambda: XGBoost(difference=True), id="xgboost on changes")
    found = [pytest.param(make, id=name) for make, name in zip(makers, names, strict=True)]
    return [*found, differencing, pytest.param(Prophet, id="prophet", marks=needs_prophet)]


# Without parameters


@pytest.mark.parametrize(
    ("forecaster", "name", "forecast"),
    [
        (Naive(), "naive", [5, 5, 5]),
        (SeasonalNaive(2), "seasonal naive (2)", [3, 5, 3]),
        (Drift(), "drift", [6, 7, 8]),  # from 1 to 5 in four steps
        (MovingAverage(2), "moving average (2)", [4, 4, 4]),
    ],
)
def test_forecasts_by_hand(forecaster: Forecaster, name: str, forecast: list[float]):
    assert forecaster.name == name
    predicted = forecaster.fit(HISTORY).predict(3)
    assert predicted.dtype == np.float64
    np.testing.assert_allclose(predicted, forecast)


# The changes are 1, 2, -1 and 2: squares 1 + 4 + 1 + 4 = 10; their mean 1, squared deviations 0 + 1 + 4 + 1 = 6.
@pytest.mark.parametrize(
    ("forecaster", "std"),
    [
        (Naive(), np.sqrt(10 / 4 * np.array([1, 2, 3]))),
        (SeasonalNaive(2), np.sqrt((9 + 1 + 1) / 3 * np.array([1, 1, 2]))),
        (Drift(), np.sqrt(6 / 3 * np.array([1 * (1 + 1 / 4), 2 * (1 + 2 / 4), 3 * (1 + 3 / 4)]))),
    ],
)
def test_intervals_by_hand(forecaster: IntervalForecaster, std: np.ndarray):
    low, high = forecaster.fit(HISTORY).predict_interval(3)
    np.testing.assert_allclose(low, forecaster.predict(3) - Z * std)
    np.testing.assert_allclose(high, forecaster.predict(3) + Z * std)
    narrow_low, narrow_high = forecaster.predict_interval(3, coverage=0.5)
    assert (low < narrow_low).all()
    assert (narrow_high < high).all()


@pytest.mark.parametrize("make", [Naive, lambda: SeasonalNaive(3), Drift, lambda: MovingAverage(4)])
def test_an_update_is_as_good_as_another_fit(make):
    values = noise(40)
    updated, fitted = make().fit(values[:25]).update(values[25:26]).update(values[26:]), make().fit(values)
    np.testing.assert_array_equal(updated.predict(5), fitted.predict(5))
    if hasattr(fitted, "predict_interval"):
        np.testing.assert_array_equal(updated.predict_interval(5), fitted.predict_interval(5))


def test_a_single_value_tells_nothing_of_the_error():
    assert np.isnan(Naive().fit([3.0]).predict_interval(2)).all()
    assert np.isnan(SeasonalNaive(2).fit([3.0, 4.0]).predict_interval(2)).all()
    assert np.isnan(Drift().fit([3.0, 4.0]).predict_interval(2)).all()


# ARIMA


def test_arima_recovers_an_autoregression():
    model = Arima().fit(20 + 5 * autoregression(0.7, 600))
    assert model.order == Order(1, 0, 0, constant=True)
    assert str(model.order) == "ARIMA(1,0,0) with mean"
    coefficients = dict(zip(model.result.model.param_names, model.result.params, strict=True))
    assert coefficients["ar.L1"] == pytest.approx(0.7, abs=0.06)  # two standard errors
    assert model.predict(200)[-1] == pytest.approx(20, abs=2)
    low, high = model.predict_interval(200)
    # Far ahead nothing but the spread of the series is known.
    assert (high - low)[-1] == pytest.approx(2 * Z * 5 / np.sqrt(1 - 0.7**2), rel=0.1)


def test_arima_finds_the_difference_and_the_drift_of_a_random_walk():
    model = Arima().fit(1000 + 0.01 * (noise(500) + 0.5).cumsum())
    assert model.order == Order(0, 1, 0, constant=True)
    forecast = model.predict(100)
    slope = (forecast[-1] - forecast[0]) / 99
    assert slope == pytest.approx(0.005, abs=0.001)
    assert Arima(max_d=0).fit(noise(100).cumsum()).order.d == 0


def test_arima_finds_a_term_behind_others_that_do_not_help():
    values = noise(300, seed=3)
    for t in range(3, 300):
        values[t] -= 0.6 * values[t - 3]
    # From the small orders alone, the steps would end at (0,0,3), which fits less well.
    assert Arima().fit(values).order == Order(3, 0, 0, constant=True)


def test_arima_goes_on_from_updates_without_estimating_again():
    # An AR(1) forecast is mean + coefficient^h times the newest deviation, whatever came before it.
    values = 50 + autoregression(0.7, 300)
    model = Arima(max_q=0).fit(values)
    names = model.result.model.param_names
    coefficient = float(model.result.params[names.index("ar.L1")])
    mean = model.predict(500)[-1]
    for newest in (60.0, 40.0):
        model.update([45.0, newest])
        np.testing.assert_allclose(model.predict(3), mean + coefficient ** np.arange(1, 4) * (newest - mean), rtol=1e-6)
    assert model.result.params[names.index("ar.L1")] == coefficient


def test_arima_is_quiet_and_counts_warnings(recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch):
    from statsmodels.tsa.arima.model import ARIMA

    fit = ARIMA.fit

    def talkative(self: object, *arguments: object, **options: object) -> object:
        warnings.warn("something is odd", RuntimeWarning, stacklevel=2)
        return fit(self, *arguments, **options)

    monkeypatch.setattr(ARIMA, "fit", talkative)
    model = Arima(max_p=1, max_q=0).fit(noise(60))
    model.update(noise(2)).predict(2)
    assert not recwarn.list
    # (0, 0) and (1, 0), each with and without a mean, at least
    assert model.num_warnings >= 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the user has chosen to see changes no count
        assert Arima(max_p=1, max_q=0).fit(noise(60)).num_warnings == model.num_warnings


@pytest.mark.parametrize("how", ["raise", "not converge"])
def test_arima_passes_over_orders_that_fail_and_says_when_none_is_left(monkeypatch: pytest.MonkeyPatch, how: str):
    from statsmodels.tsa.arima.model import ARIMA

    fit, failing = ARIMA.fit, {1, 2, 3}

    def fragile(self: ARIMA, *arguments: object, **options: object) -> object:
        fails = self.model_orders["ar"] in failing
        if fails and how == "raise":
            raise np.linalg.LinAlgError("singular")
        result = fit(self, *arguments, **options)
        result.mle_retvals["converged"] = not fails
        return result

    monkeypatch.setattr(ARIMA, "fit", fragile)
    values = autoregression(0.7, 200)
    assert Arima().fit(values).order.p == 0
    failing.add(0)
    with pytest.raises(FitError, match=r"ARIMA did not converge for any of the \d+ orders"):
        Arima().fit(values)


# XGBoost


def test_xgboost_learns_a_pattern_that_the_naive_forecast_cannot():
    t = np.arange(420)
    values = np.array([3.0, 9, 1, 4, 7])[t % 5] + 0.1 * noise(420)
    history, future = values[:400], values[400:]
    model = XGBoost(lags=range(1, 6), windows=(5,)).fit(history)
    error = np.abs(model.predict(20) - future).mean()
    assert error < 0.3
    assert error < 0.1 * np.abs(Naive().fit(history).predict(20) - future).mean()


def test_xgboost_on_changes_follows_a_trend_beyond_what_it_has_seen():
    line = np.arange(200.0) * 3
    np.testing.assert_allclose(XGBoost(difference=True).fit(line).predict(5), 600 + 3 * np.arange(5), rtol=1e-4)
    assert XGBoost().fit(line).predict(5).max() < 600  # the reason for the option


def test_xgboost_sees_its_features_only():
    # Lag 3 alone: the value three steps back decides, whatever the two newest are.
    values = np.resize([1.0, 5.0, 9.0], 90)
    model = XGBoost(lags=[3], windows=[]).fit(values)
    np.testing.assert_allclose(model.predict(3), [1, 5, 9], atol=0.01)
    np.testing.assert_allclose(model.update([9.0, 0.0, 0.0]).predict(1), [9], atol=0.01)


def test_xgboost_gives_the_same_forecasts_again():
    values = noise(120).cumsum()
    np.testing.assert_array_equal(XGBoost().fit(values).predict(5), XGBoost().fit(values).predict(5))


# Prophet


@needs_prophet
class TestProphet:
    def test_finds_the_days_of_the_week_if_it_knows_them(self):
        dates = np.arange("2024-01-01", "2024-08-01", dtype="datetime64[D]")
        values = np.where(np.arange(len(dates)) % 7 >= 5, 20.0, 5.0)  # 2024-01-01 was a Monday
        history, future = values[:-14], values[-14:]
        np.testing.assert_allclose(Prophet(dates).fit(history).predict(14), future, atol=0.5)
        assert np.abs(Prophet().fit(history).predict(14) - future).mean() > 4
        with pytest.raises(DataError, match=r"got 213 dates and needs 214: also those of what it forecasts"):
            Prophet(dates).fit(history).predict(15)

    def test_an_update_moves_the_origin(self):
        model = Prophet().fit(np.arange(50.0))
        np.testing.assert_allclose(model.predict(3), [50, 51, 52], atol=0.1)
        np.testing.assert_allclose(model.update([7.0, 7.0]).predict(1), [52], atol=0.1)

    def test_is_quiet(self):
        code = "from trainyard_shared.baselines import Prophet; Prophet().fit(range(30)).predict(1)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout + done.stderr == ""

    def test_a_fit_that_the_optimizer_gives_up_is_a_failure(self, monkeypatch: pytest.MonkeyPatch):
        import prophet

        def give_up(*arguments: object, **options: object) -> None:
            raise RuntimeError("Error during optimization!")

        monkeypatch.setattr(prophet.Prophet, "fit", give_up)
        with pytest.raises(FitError, match="Prophet: Error during optimization!"):
            Prophet().fit(noise(30))


# What is true of all


@pytest.mark.parametrize("make", every_forecaster())
@pytest.mark.parametrize("value", [0.0, 7.0, -1e6])
def test_a_constant_series_goes_on(make, value: float):
    model = make().fit(np.full(60, value))
    np.testing.assert_allclose(model.predict(10), value, rtol=1e-5, atol=1e-9)
    if hasattr(model, "predict_interval"):
        low, high = model.predict_interval(10)
        np.testing.assert_allclose(high - low, 0, atol=1e-4)


@pytest.mark.parametrize("make", every_forecaster())
def test_a_fit_forgets_what_was_fitted_before(make):
    first, second = noise(60).cumsum(), 100 + noise(80, seed=1).cumsum()
    again = make().fit(first).update([1.0]).fit(second)
    np.testing.assert_array_equal(again.predict(4), make().fit(second).predict(4))


@pytest.mark.parametrize("make", every_forecaster())
def test_missing_values_are_named_with_their_position(make):
    values = noise(60)
    values[17] = np.nan
    with pytest.raises(DataError, match="holds nan at position 17"):
        make().fit(values)
    with pytest.raises(DataError, match="holds inf at position 1"):
        make().fit(noise(60)).update([0.0, np.inf])
    with pytest.raises(ValueError, match=r"one row of values, found shape \(60, 1\)"):
        make().fit(noise(60)[:, None])


@pytest.mark.parametrize(
    ("make", "needed"),
    [
        (Naive, 1),
        (lambda: SeasonalNaive(7), 7),
        (Drift, 2),
        (lambda: MovingAverage(20), 20),
        (lambda: Arima(max_p=1, max_q=1, max_d=1), 9),
        (Arima, 18),
        (XGBoost, 38),
        (lambda: XGBoost(lags=[1, 12], windows=[5], difference=True), 23),
        pytest.param(Prophet, 10, marks=needs_prophet),
    ],
)
def test_a_short_series_is_told_the_length_it_needs(make, needed: int):
    assert np.isfinite(make().fit(noise(needed)).predict(2)).all()
    with pytest.raises(DataError, match=f"needs a series of at least {needed} values, found {needed - 1}"):
        make().fit(noise(needed - 1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SeasonalNaive(0), "period must be at least 1, found 0"),
        (lambda: MovingAverage(0), "window must be at least 1, found 0"),
        (lambda: Arima(max_d=3), "max_d 0 to 2; found 3, 3 and 3"),
        (lambda: XGBoost(lags=[]), r"found \[\] and"),
        (lambda: XGBoost(windows=[0]), r"from 1 on, found .* and \[0\]"),
        (lambda: Naive().fit(HISTORY).predict_interval(2, coverage=95), "coverage must be between 0 and 1, found 95"),
        (lambda: Arima().fit(noise(30)).predict_interval(2, coverage=95), "between 0 and 1, found 95"),
    ],
)
def test_arguments_that_make_no_sense_are_named(call, words: str):
    with pytest.raises(ValueError, match=words):
        call()


def test_importing_the_forecasters_imports_none_of_the_libraries():
    code = "import sys, trainyard_shared.baselines; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "numpy" in loaded
    for library in ("pandas", "scipy", "statsmodels", "xgboost", "prophet", "matplotlib", "torch"):
        assert f"'{library}'" not in loaded


def test_arima_takes_real_prices_as_a_random_walk_in_seconds():
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    prices = data / "stocks" / "yahoo" / "AAPL.csv"
    if not prices.is_file():
        pytest.skip(f"no real data in {data}: set TRAINYARD_TEST_DATA to the folder that holds unpack.py")
    close = np.loadtxt(prices, delimiter=",", skiprows=1, usecols=5)[-400:]
    start = time.process_time()
    model = Arima().fit(np.log(close))
    low, high = model.predict_interval(5)
    assert time.process_time() - start < 30
    assert model.order.d == 1
    assert ((low < model.predict(5)) & (model.predict(5) < high)).all()
    daily = np.diff(np.log(close)).std()
    assert high[0] - low[0] == pytest.approx(2 * Z * daily, rel=0.1)
    assert high[4] - low[4] == pytest.approx(2 * Z * daily * np.sqrt(5), rel=0.25)
