"""What the network is measured against: simple forecasts, ARIMA and XGBoost; and ensembles of them with the network.

All forecasts are log prices of shape (N, H), N origins and H days ahead.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from trainyard_shared import console, launch
from trainyard_shared.baselines import Arima, Drift, Forecaster, MovingAverage, XGBoost, forecast_all

from torchdist_stocks.config import TrainConfig
from torchdist_stocks.data import Fold, Panel

LAST_VALUE = "last value"
# A stock with fewer days in the training part of a fold gets the last value instead.
MIN_HISTORY = 60
# Of the stacked forecasts, in units of the usual moves. It draws the weights towards nothing, which is the last value:
# a member whose forecasts have a tenth of the size of the moves keeps half of its weight.
RIDGE = 0.01

SIMPLE: dict[str, Callable[[], Forecaster]] = {
    "drift": Drift,
    "moving average (20)": functools.partial(MovingAverage, 20),
}
LEARNED: dict[str, Callable[[], Forecaster]] = {
    "ARIMA": Arima,
    # Changes of the log price: trees cannot follow a level beyond what they have seen.
    "XGBoost": functools.partial(XGBoost, lags=(1, 2, 3, 4, 5, 10, 20), windows=(5, 20), difference=True),
}


@dataclass(frozen=True)
class Forecasts:
    """What one forecaster says about the samples of all folds."""

    val: list[NDArray[np.float64]]
    """for each fold, (N, H)"""
    test: list[NDArray[np.float64]]
    """for each fold, (N, H)"""
    wall_time_s: float = 0.0
    """for fitting and forecasting, added up over the processes"""
    failures: tuple[str, ...] = ()
    """of which stock and fold the fit failed, and why; the last value stands in"""


def last_value(panel: Panel, folds: list[Fold]) -> Forecasts:
    """Tomorrow = today."""
    log_price = panel.log_price.numpy()

    def repeat(origins: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.repeat(log_price[origins][:, None], panel.horizon, axis=1)

    return Forecasts([repeat(fold.val.numpy()) for fold in folds], [repeat(fold.test.numpy()) for fold in folds])


def run_opponents(panel: Panel, folds: list[Fold], config: TrainConfig) -> dict[str, Forecasts]:
    """Fit the baselines to the training days of each fold and stock, and forecast from each origin after them.

    Like the network's, their parameters come from the training days alone; what they forecast from grows by one day
    from origin to origin. [dist] Each process takes its share of the stocks; then all get the results of all.

    Args:
        panel: on the CPU.
        folds: of the panel.
        config: says which baselines.

    Raises:
        Interrupted: the process was asked to stop.
    """
    makers = SIMPLE | (LEARNED if config.baselines == "all" else {})
    naive = last_value(panel, folds)
    found = {
        name: Forecasts([part.copy() for part in naive.val], [part.copy() for part in naive.test]) for name in makers
    }
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    tasks = [(name, fold.number, ticker) for name in makers for fold in folds for ticker in range(len(panel.tickers))]
    own, done = tasks[rank::world_size], []
    with console.TrainingProgress(len(own), show=rank == 0) as progress:
        for name, number, ticker in own:
            done.append((name, number, *_forecast(panel, folds[number], ticker, makers[name])))
            if launch.stop_request().requested:
                raise launch.Interrupted
            progress.update(len(done), {"baseline": name, "fold": f"{number + 1}", "stock": panel.tickers[ticker]})
    shares: list = [done]
    if world_size > 1:
        shares = [None] * world_size
        dist.all_gather_object(shares, done)
    outcomes = [outcome for share in shares for outcome in share]
    for name, number, parts, _, _ in outcomes:
        for whole, (position, values) in zip((found[name].val[number], found[name].test[number]), parts, strict=True):
            whole[position] = values
    return {
        name: Forecasts(
            forecasts.val,
            forecasts.test,
            wall_time_s=sum(outcome[4] for outcome in outcomes if outcome[0] == name),
            failures=tuple(sorted(outcome[3] for outcome in outcomes if outcome[0] == name and outcome[3])),
        )
        for name, forecasts in found.items()
    }


Part = tuple[NDArray[np.int64], NDArray[np.float64]]
NOTHING: Part = (np.empty(0, np.int64), np.empty((0, 1)))


def _forecast(
    panel: Panel, fold: Fold, ticker: int, make: Callable[[], Forecaster]
) -> tuple[tuple[Part, ...], str | None, float]:
    """Return a stock's forecasts for val and test with their positions in the fold; what failed; and the seconds."""
    positions = [(panel.ticker[origins] == ticker).nonzero()[:, 0] for origins in (fold.val, fold.test)]
    origins = [part[position].numpy() for part, position in zip((fold.val, fold.test), positions, strict=True)]
    train_rows = fold.train_rows[panel.ticker[fold.train_rows] == ticker].numpy()
    what = f"{panel.tickers[ticker]}, fold {fold.number + 1}"
    if not sum(map(len, origins)) or len(train_rows) < MIN_HISTORY:
        failure = f"{what}: {len(train_rows)} training days" if sum(map(len, origins)) else None
        return (NOTHING, NOTHING), failure, 0.0
    log_price = panel.log_price.numpy()
    newest, end = train_rows[-1], max(part[-1] for part in origins if len(part)) + panel.horizon + 1
    history, future = log_price[train_rows[0] : newest + 1], log_price[newest + 1 : end]
    outcome = forecast_all(make, {what: (history, future)}, panel.horizon)[what]
    # Row i of the outcome is forecast from i days after the newest training day.
    parts = tuple(
        (position.numpy(), outcome.forecasts[part - newest]) for position, part in zip(positions, origins, strict=True)
    )
    failure = f"{what}: {outcome.failure}" if outcome.failure else None
    return parts, failure, outcome.wall_time_s


def ensemble(
    members: Mapping[str, Forecasts],
    naive: Forecasts,
    val_actual: list[NDArray[np.float64]],
    val_moves: list[NDArray[np.float64]],
) -> tuple[dict[str, Forecasts], dict[str, dict[str, NDArray[np.float64]]]]:
    """Combine forecasts in three ways, with weights that come from the validation windows of each fold alone.

    Each is the last value plus a weighted sum of the changes that the members forecast: all alike; in proportion to
    1 / mean absolute error; or stacked, the non-negative weights that fit the actual changes best (Breiman, "Stacked
    Regressions", 1996), with a ridge that draws them towards the last value.

    Args:
        members: forecasts by name, at least 2.
        naive: the last value.
        val_actual: for each fold, the log prices (N, H) that came.
        val_moves: for each fold, the usual size of the moves (N, H), in whose units stacking counts.

    Returns:
        The ensembles by name; and for each the weights of each member, (folds,).
    """
    weights: dict[str, list[NDArray[np.float64]]] = {"mean": [], "weighted by error": [], "stacking": []}
    for number, (actual, moves) in enumerate(zip(val_actual, val_moves, strict=True)):
        forecasts = np.stack([member.val[number] for member in members.values()])  # (M, N, H)
        inverse = 1 / np.abs(forecasts - actual).mean(axis=(1, 2))
        changes, target = (forecasts - naive.val[number]) / moves, (actual - naive.val[number]) / moves
        weights["mean"].append(np.full(len(members), 1 / len(members)))
        weights["weighted by error"].append(inverse / inverse.sum())
        weights["stacking"].append(stacking_weights(changes.reshape(len(members), -1).T, target.ravel()))

    def combine(kind: str, naive_parts: list[NDArray], member_parts: list[list[NDArray]]) -> list[NDArray[np.float64]]:
        return [
            base + np.einsum("m,mnh->nh", own, np.stack(parts) - base)
            for base, own, *parts in zip(naive_parts, weights[kind], *member_parts, strict=True)
        ]

    combined = {
        f"ensemble, {kind}": Forecasts(
            combine(kind, naive.val, [member.val for member in members.values()]),
            combine(kind, naive.test, [member.test for member in members.values()]),
        )
        for kind in weights
    }
    return combined, {kind: dict(zip(members, np.stack(of_folds).T, strict=True)) for kind, of_folds in weights.items()}


def stacking_weights(changes: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return w >= 0 (M,) that minimises the mean of (target - changes @ w)^2 plus RIDGE * |w|^2.

    Args:
        changes: (N, M) of M members.
        target: (N,)
    """
    from scipy.optimize import nnls

    ridge = np.sqrt(RIDGE * len(target)) * np.eye(changes.shape[1])
    return nnls(np.concatenate([changes, ridge]), np.concatenate([target, np.zeros(changes.shape[1])]))[0]
