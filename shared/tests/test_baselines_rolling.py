"""Walk-forward forecasts: the same as by hand, blind for the future, and the same in several processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from typing import Self

import numpy as np
import psutil
import pytest
from numpy.typing import ArrayLike
from trainyard_shared.baselines import (
    Arima,
    Drift,
    FitError,
    MovingAverage,
    Naive,
    Prophet,
    SeasonalNaive,
    XGBoost,
    forecast_all,
    rolling_forecast,
)
from trainyard_shared.errors import DataError

WALK = (np.random.default_rng(0).normal(size=90) + 1).cumsum()  # with a drift, which ARIMA has to carry on
HISTORY, FUTURE = WALK[:70], WALK[70:]
HORIZON = 4
MAKERS = {
    "naive": Naive,
    "seasonal naive": partial(SeasonalNaive, 5),
    "drift": Drift,
    "moving average": partial(MovingAverage, 5),
    "arima": Arima,
    "arima of a stationary series": partial(Arima, max_p=2, max_q=2, max_d=0),
    "xgboost": XGBoost,
    "xgboost on changes": partial(XGBoost, difference=True),
    "prophet": Prophet,
}


class Fragile(Naive):
    """Cannot be fitted to series that begin below zero, and warns about the others."""

    name = "fragile"

    def fit(self, history: ArrayLike) -> Self:
        if np.asarray(history)[0] < 0:
            raise FitError("fragile did not converge")
        self.num_warnings = 2
        return super().fit(history)


class Exploding(Naive):
    name = "exploding"

    def predict(self, horizon: int) -> np.ndarray:
        return np.full(horizon, np.inf)


@pytest.mark.parametrize("name", MAKERS)
class TestRolling:
    @pytest.fixture(autouse=True)
    def _only_if_installed(self, name: str) -> None:
        if name == "prophet":
            pytest.importorskip("prophet", reason="prophet is not installed")

    def test_each_row_is_a_forecast_after_updates_by_hand(self, name: str):
        forecasts = rolling_forecast(MAKERS[name](), HISTORY, FUTURE, HORIZON)
        assert forecasts.shape == (len(FUTURE) - HORIZON + 1, HORIZON)
        for row in (0, 1, 9, len(forecasts) - 1):
            by_hand = MAKERS[name]().fit(HISTORY).update(FUTURE[:row]).predict(HORIZON)
            np.testing.assert_allclose(forecasts[row], by_hand, rtol=1e-7, atol=1e-9, err_msg=f"row {row}")
        one_by_one = MAKERS[name]().fit(HISTORY)
        for value in FUTURE[:9]:
            one_by_one.update([value])
        np.testing.assert_allclose(forecasts[9], one_by_one.predict(HORIZON), rtol=1e-7, atol=1e-9)

    def test_no_forecast_looks_ahead(self, name: str):
        forecasts = rolling_forecast(MAKERS[name](), HISTORY, FUTURE, HORIZON)
        altered = FUTURE.copy()
        altered[8:] -= 100  # not +: trees see nothing beyond the top of what they were trained on
        others = rolling_forecast(MAKERS[name](), HISTORY, altered, HORIZON)
        # Row 8 is made after the first eight values; those that follow know altered ones.
        np.testing.assert_array_equal(forecasts[:9], others[:9])
        if name != "prophet":  # whose curve does not change with what is observed
            assert (np.abs(forecasts[9:] - others[9:]) > 1).any()

    def test_one_origin_is_the_forecast_of_a_fit(self, name: str):
        forecasts = rolling_forecast(MAKERS[name](), HISTORY, FUTURE[:HORIZON], HORIZON)
        by_hand = MAKERS[name]().fit(HISTORY).predict(HORIZON)
        np.testing.assert_allclose(forecasts, by_hand[None], rtol=1e-7, atol=1e-9)


def test_naive_rows_by_hand():
    assert rolling_forecast(Naive(), [1, 2], [3, 4, 5], 2).tolist() == [[2, 2], [3, 3]]


@pytest.mark.parametrize("horizon", [0, 21])
def test_a_horizon_beyond_the_future_is_named(horizon: int):
    with pytest.raises(ValueError, match=f"between 1 and the 20 future values, found {horizon}"):
        rolling_forecast(Naive(), HISTORY, FUTURE, horizon)


SERIES = {f"series {i}": (HISTORY[i:] + 10 * i, FUTURE + 10 * i) for i in range(3)}


class TestManySeries:
    def test_processes_give_what_one_gives(self):
        parallel = forecast_all(partial(Arima, max_p=1, max_q=1), SERIES, HORIZON, processes=2)
        serial = forecast_all(partial(Arima, max_p=1, max_q=1), SERIES, HORIZON)
        assert list(parallel) == list(serial) == list(SERIES)
        for name, outcome in serial.items():
            np.testing.assert_array_equal(outcome.forecasts, parallel[name].forecasts)
            assert outcome.num_warnings == parallel[name].num_warnings
            assert outcome.failure is None
            assert outcome.wall_time_s > 0
            alone = rolling_forecast(Arima(max_p=1, max_q=1), *SERIES[name], HORIZON)
            np.testing.assert_array_equal(outcome.forecasts, alone)

    def test_a_failed_fit_falls_back_to_naive_and_is_counted(self, capsys: pytest.CaptureFixture[str]):
        series = {"up": (HISTORY - HISTORY[0] + 1, FUTURE), "down": (HISTORY - HISTORY[0] - 1, FUTURE)}
        outcomes = forecast_all(Fragile, series, HORIZON, show=True)
        assert {name: outcome.failure for name, outcome in outcomes.items()} == {
            "up": None,
            "down": "fragile did not converge",
        }
        np.testing.assert_array_equal(outcomes["down"].forecasts, rolling_forecast(Naive(), *series["down"], HORIZON))
        assert [outcome.num_warnings for outcome in outcomes.values()] == [2, 0]
        assert "series 2/2  failed 1" in capsys.readouterr().out

    def test_forecasts_that_are_not_finite_are_a_failure(self):
        outcome = forecast_all(Exploding, {"a": (HISTORY, FUTURE)}, HORIZON)["a"]
        assert outcome.failure == "exploding gave forecasts that are not finite"
        np.testing.assert_array_equal(outcome.forecasts, rolling_forecast(Naive(), HISTORY, FUTURE, HORIZON))

    @pytest.mark.parametrize("processes", [1, 2])
    def test_a_series_that_cannot_be_taken_is_named(self, processes: int):
        with pytest.raises(DataError, match=r"^Series short: drift needs a series of at least 2 values, found 1\.$"):
            forecast_all(Drift, {"long": (HISTORY, FUTURE), "short": ([1.0], FUTURE)}, HORIZON, processes=processes)
        assert not multiprocessing.active_children()

    def test_progress_is_not_shown_unasked(self, capsys: pytest.CaptureFixture[str]):
        forecast_all(Naive, SERIES, HORIZON)
        assert capsys.readouterr() == ("", "")

    def test_processes_must_be_at_least_one(self):
        with pytest.raises(ValueError, match="processes must be at least 1, found 0"):
            forecast_all(Naive, SERIES, HORIZON, processes=0)


# Worker processes import what they are given to run, so it has to stand in a script.
COUNTER = """
import os
import numpy as np
from trainyard_shared.baselines import Naive, forecast_all

class Counter(Naive):
    def predict(self, horizon):
        return np.array([float(os.environ["OPENBLAS_NUM_THREADS"]), float(os.getpid())])

if __name__ == "__main__":
    outcomes = forecast_all(Counter, {"a": ([1], [2, 3])}, 2, processes=2)
    num_threads, process = outcomes["a"].forecasts[0]
    print(num_threads == 1, process != os.getpid())
    print(os.environ["OPENBLAS_NUM_THREADS"], os.environ.get("MKL_NUM_THREADS"))
"""


def test_processes_have_one_thread_each_and_leave_the_caller_as_it_was(tmp_path):
    script = tmp_path / "counter.py"
    script.write_text(COUNTER)
    environment = {name: value for name, value in os.environ.items() if name != "MKL_NUM_THREADS"}
    environment["OPENBLAS_NUM_THREADS"] = "3"
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True True\n3 None\n", "")


SLEEPER = """
import os, time
from trainyard_shared.baselines import Naive, forecast_all

class Sleeper(Naive):
    def fit(self, history):
        print(os.getpid(), flush=True)
        time.sleep(60)

if __name__ == "__main__":
    forecast_all(Sleeper, {"a": ([1], [2]), "b": ([1], [2])}, 1, processes=2)
"""


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=10)
    for worker in alive:
        worker.kill()
    assert not alive
