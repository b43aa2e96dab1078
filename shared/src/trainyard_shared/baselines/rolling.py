"""Walk-forward forecasts of one series or many: fitted once on the history, then made from one origin after another."""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.baselines.base import FitError, Forecaster, RollingForecaster, as_series
from trainyard_shared.baselines.simple import Naive
from trainyard_shared.console import TrainingProgress
from trainyard_shared.errors import DataError

# Numerical libraries read them once, when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What came of one series.

    Attributes:
        forecasts: As of `rolling_forecast`, shape (origins, horizon).
        failure: Why the fit failed; the forecasts are then those of `Naive`. None: it did not.
        num_warnings: Warnings of the library that did the fitting.
        wall_time_s: For fitting and forecasting.
    """

    forecasts: NDArray[np.float64]
    failure: str | None
    num_warnings: int
    wall_time_s: float


def rolling_forecast(
    forecaster: Forecaster, history: ArrayLike, future: ArrayLike, horizon: int
) -> NDArray[np.float64]:
    """Fit on the history once, then forecast from each origin, with one more observed value each time.

    Args:
        forecaster: Fitted here; fit it again before other use.
        history: Shape (T,).
        future: The values after the history, shape (F,). The last `horizon` of them are not looked at.
        horizon: How many values to forecast from each origin, 1 to F.

    Returns:
        Shape (F - horizon + 1, horizon). Row 0 is forecast from the history alone; row i goes with the observed values
        `future[i : i + horizon]`.

    Raises:
        DataError: The history is too short, or there are NaN or infinity among the values.
        FitError: No parameters could be estimated.
    """
    observed = as_series(future)
    if not 1 <= horizon <= len(observed):
        raise ValueError(f"horizon must be between 1 and the {len(observed)} future values, found {horizon}")
    forecaster.fit(history)
    if isinstance(forecaster, RollingForecaster):
        return forecaster.predict_rolling(observed, horizon)
    forecasts = [forecaster.predict(horizon)]
    for origin in range(len(observed) - horizon):
        forecasts.append(forecaster.update(observed[origin : origin + 1]).predict(horizon))
    return np.stack(forecasts)


def forecast_all(
    make: Callable[[], Forecaster],
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    horizon: int,
    *,
    processes: int = 1,
    show: bool = False,
) -> dict[str, Outcome]:
    """Make walk-forward forecasts of many series, each with a forecaster of its own.

    Where the fit of a series fails, the naive forecast stands in, and the outcome says so: count these before you
    compare.

    Args:
        make: Gives a new forecaster; for more than one process it is pickled: a class, or a `functools.partial` of one.
        series: History and future of each by name, as for `rolling_forecast`.
        horizon: How many values to forecast from each origin.
        processes: How many series at a time, each in a process with one thread. The processes are new ones, which take
            over nothing of the caller's (torch, CUDA, locks), so a script that asks for them needs its
            `if __name__ == "__main__"`.
        show: Show progress; on rank 0 only.

    Returns:
        The outcomes in the order of `series`.

    Raises:
        DataError: A series is too short or holds NaN or infinity; the message names it.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, found {processes}")
    outcomes: dict[str, Outcome] = {}
    num_failed = 0
    with TrainingProgress(len(series), show=show) as progress:
        for name, outcome in _outcomes(make, series, horizon, processes):
            outcomes[name] = outcome
            num_failed += outcome.failure is not None
            progress.update(len(outcomes), {"series": f"{len(outcomes)}/{len(series)}", "failed": f"{num_failed}"})
    return {name: outcomes[name] for name in series}


def _outcomes(
    make: Callable[[], Forecaster], series: Mapping[str, tuple[ArrayLike, ArrayLike]], horizon: int, processes: int
) -> Iterator[tuple[str, Outcome]]:
    """Yield name and outcome of each series as soon as it is there."""
    if processes == 1:
        for name, (history, future) in series.items():
            yield name, _forecast(make, name, history, future, horizon)
        return
    context = multiprocessing.get_context("spawn")
    with _one_thread_each():
        pool = ProcessPoolExecutor(min(processes, len(series) or 1), context, initializer=_end_with_parent)
        try:
            names = {
                pool.submit(_forecast, make, name, history, future, horizon): name
                for name, (history, future) in series.items()
            }
            for done in as_completed(names):
                yield names[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, what has not begun is not begun


def _forecast(
    make: Callable[[], Forecaster], name: str, history: ArrayLike, future: ArrayLike, horizon: int
) -> Outcome:
    start, failure, forecaster = time.monotonic(), None, make()
    try:
        try:
            forecasts = rolling_forecast(forecaster, history, future, horizon)
            if not np.isfinite(forecasts).all():
                raise FitError(f"{forecaster.name} gave forecasts that are not finite")
        except FitError as error:
            failure = str(error)
            forecasts = rolling_forecast(Naive(), history, future, horizon)
    except DataError as error:
        raise DataError(f"Series {name}: {error}") from error
    return Outcome(forecasts, failure, forecaster.num_warnings, time.monotonic() - start)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that are started meanwhile compute with one thread, rather than each with one for each core."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """End this process when the one that started it has died, which would otherwise leave it waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
