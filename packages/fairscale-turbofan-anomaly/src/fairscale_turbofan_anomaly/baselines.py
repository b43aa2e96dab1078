"""What a network has to beat: four detectors that know healthy engines only, each smoothed and cut like the network.

z-score           how far the sensors are from a healthy engine's, on average over a window
CUSUM             the same deviations, summed up as long as they last (Page, 1954)
ARIMA residual    how badly the wear of an engine follows a forecast from its own past
isolation forest  how few cuts set a window's mean readings apart (Liu, Ting & Zhou, 2008)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from trainyard_shared.baselines import Arima, FitError
from trainyard_shared.datasets.cmapss import Fleet

from fairscale_turbofan_anomaly.data import Windows

NAMES = ("z-score", "CUSUM", "ARIMA residual", "isolation forest")
ARIMA_HISTORY = 40  # cycles of an engine that its ARIMA model is fitted to


def scores(name: str, train: Windows, healthy: NDArray[np.bool_], others: list[Windows], window: int) -> list[Any]:
    """Fit a baseline on healthy cycles of training engines and score other engines: one array (R,) for each.

    Args:
        name: one of `NAMES`.
        train: training engines.
        healthy: (R,) which of their cycles are.
        others: engines to score.
        window: cycles that are averaged, as many as the network sees at most.
    """
    values = train.values.numpy().astype(np.float64)
    mean, std = values[healthy].mean(axis=0), values[healthy].std(axis=0)
    std = np.where(std > 0, std, 1.0)

    def deviations(windows: Windows) -> NDArray[np.float64]:
        return (windows.values.numpy() - mean) / std  # (R, C)

    if name == "z-score":
        return [np.abs(rolling_mean(deviations(part), part.fleet, window)).mean(axis=1) for part in others]
    if name == "CUSUM":
        return [cusum(deviations(part), part.fleet).mean(axis=1) for part in others]
    if name == "isolation forest":
        from sklearn.ensemble import IsolationForest

        forest = IsolationForest(n_estimators=200, random_state=0)
        forest.fit(rolling_mean(deviations(train), train.fleet, window)[healthy])
        return [-forest.score_samples(rolling_mean(deviations(part), part.fleet, window)) for part in others]
    # The direction in which readings vary most over lives is that of wear: its first principal component.
    _, _, directions = np.linalg.svd(deviations(train), full_matrices=False)
    return [arima_residual(deviations(part) @ directions[0], part.fleet, window) for part in others]


def rolling_mean(values: NDArray[np.float64], fleet: Fleet, window: int) -> NDArray[np.float64]:
    """Return the mean over the last cycles of the same engine, up to `window` of them: (R, C) -> (R, C)."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    rows = np.arange(len(values))
    first = np.maximum(rows - window + 1, np.repeat(fleet.offsets[:-1], fleet.lengths))
    return (sums[rows + 1] - sums[first]) / (rows + 1 - first)[:, None]


def cusum(values: NDArray[np.float64], fleet: Fleet, slack: float = 0.5) -> NDArray[np.float64]:
    """Return the larger of the upward and downward sums of deviations beyond `slack`: (R, C) -> (R, C)."""
    up, down = np.zeros_like(values), np.zeros_like(values)
    starts = set(fleet.offsets[:-1].tolist())
    for row in range(len(values)):
        high, low = (0.0, 0.0) if row in starts else (up[row - 1], down[row - 1])
        up[row] = np.maximum(0, high + values[row] - slack)
        down[row] = np.maximum(0, low - values[row] - slack)
    return np.maximum(up, down)


def arima_residual(wear: NDArray[np.float64], fleet: Fleet, window: int) -> NDArray[np.float64]:
    """Return the mean absolute error of forecasts of the next cycle, in deviations of the errors in the first cycles.

    Each engine has a model of its own, fitted to its first cycles. An engine with no more cycles than these, or whose
    model cannot be estimated, is compared with the mean of what it has flown: nothing then sets it apart.

    Args:
        wear: (R,) one number for each cycle.
        fleet: the engines.
        window: cycles over which errors are averaged.
    """
    errors = np.zeros(len(wear))
    for start, end in zip(fleet.offsets[:-1], fleet.offsets[1:], strict=True):
        own = wear[start:end]
        known = own[:ARIMA_HISTORY]
        errors[start:end] = np.abs(own - known.mean()) / (known.std() or 1.0)
        if len(own) <= ARIMA_HISTORY:
            continue
        try:
            # Stationary: in its first cycles an engine shows no wear, and a drift fitted there would explain it away.
            model = Arima(max_p=1, max_q=1, max_d=0).fit(known)
        except FitError:
            continue
        # Not updated: a model that is told of the wear follows it, and is surprised by nothing.
        ahead = model.predict(len(own) - ARIMA_HISTORY)
        errors[start + ARIMA_HISTORY : end] = np.abs(own[ARIMA_HISTORY:] - ahead) / (known.std() or 1.0)
    return rolling_mean(errors[:, None], fleet, window)[:, 0]
