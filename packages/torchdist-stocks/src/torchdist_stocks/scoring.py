"""How good forecasts are, always beside "tomorrow = today": figures, and tables of them.

Errors are those of the log price, which are relative errors of the price: a stock of 500 dollars counts no more than
one of 5. Prices are adjusted for splits and dividends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trainyard_shared import metrics
from trainyard_shared.metrics import format_value

from torchdist_stocks.data import Fold, Panel
from torchdist_stocks.significance import ratio_interval, sums_by_day


@dataclass(frozen=True)
class TestSet:
    """The test samples of all folds, one below the other: N origins, H days ahead."""

    log_price: NDArray[np.float64]
    """(N, H) what came"""
    last: NDArray[np.float64]
    """(N,) last known log price"""
    moves: NDArray[np.float64]
    """(N, H) how far a random walk with the recent volatility moves"""
    ticker: NDArray[np.int64]
    """(N,) number of the stock"""
    day: NDArray[np.int64]
    """(N,) number of the day of the origin"""
    fold: NDArray[np.int64]
    """(N,) number of the fold"""
    history: Mapping[tuple[int, int], NDArray[np.float64]]
    """prices of the training days, by fold and stock"""


def make_test_set(panel: Panel, folds: list[Fold]) -> TestSet:
    """Put the test samples of all folds together."""
    origins = torch.cat([fold.test for fold in folds])
    return TestSet(
        log_price=panel.future(origins).numpy(),
        last=panel.log_price[origins].numpy(),
        moves=panel.moves(origins).numpy(),
        ticker=panel.ticker[origins].numpy(),
        day=panel.day[origins].numpy(),
        fold=np.repeat([fold.number for fold in folds], [len(fold.test) for fold in folds]),
        history={
            (fold.number, ticker): panel.log_price[fold.train_rows[panel.ticker[fold.train_rows] == ticker]]
            .exp()
            .numpy()
            for fold in folds
            for ticker in range(len(panel.tickers))
        },
    )


def measure(forecast: NDArray[np.float64], test: TestSet, tickers: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures of one forecaster.

    Args:
        forecast: (N, H) log prices.
        test: what came.
        tickers: names of the stocks.
    """
    horizon = forecast.shape[1]
    errors, of_last_value = np.abs(forecast - test.log_price), np.abs(test.last[:, None] - test.log_price)
    by_day, last_value_by_day = (sums_by_day(e.sum(axis=1), test.day) for e in (errors, of_last_value))
    # Tomorrow's direction: how often it was named rightly, and how often at all, on each day. "No change" names none.
    change, said = test.log_price[:, 0] - test.last, forecast[:, 0] - test.last
    directions = np.array(
        [
            metrics.directional_accuracy(change[named], said[named])
            for day in np.unique(test.day)
            if (named := (test.day == day) & (said != 0) & (change != 0)).any()
        ]
    )
    right, total = directions.sum(axis=0).tolist() if len(directions) else (0, 0)
    mase_by_stock = _mase_by_stock(forecast, test, tickers)
    return {
        "mae": metrics.mae(test.log_price, forecast),
        "mae_to_last_value": float(errors.sum() / of_last_value.sum()),
        "mae_to_last_value_interval": list(ratio_interval(by_day, last_value_by_day, horizon)),
        "rmse": metrics.rmse(test.log_price, forecast),
        "mape": metrics.mape(np.exp(test.log_price), np.exp(forecast)),
        "mase": float(np.mean(list(mase_by_stock.values()))),
        "mase_by_stock": mase_by_stock,
        "directional_accuracy": right / total if total else None,
        "directional_accuracy_interval": list(ratio_interval(directions[:, 0], directions[:, 1], 1)) if total else None,
        "directional_accuracy_wilson_interval": list(metrics.wilson_interval(right, total)) if total else None,
        "mae_by_days_ahead": errors.mean(axis=0).tolist(),
        "mae_to_last_value_by_days_ahead": (errors.mean(axis=0) / of_last_value.mean(axis=0)).tolist(),
    }


def measure_interval(bounds: NDArray[np.float64], test: TestSet, promised: float) -> dict[str, float]:
    """Return how well intervals hold what they promise.

    Args:
        bounds: (N, H, 2) log prices, low and high.
        test: what came.
        promised: share of the outcomes that should lie within.
    """
    low, high = bounds[:, :, 0], bounds[:, :, 1]
    # In units of the usual moves: wild days and far horizons count as much as others.
    scaled = [(values - test.last[:, None]) / test.moves for values in (test.log_price, low, high)]
    return {
        "coverage": metrics.coverage(test.log_price, low, high),
        "width": float((high - low).mean()),
        "pinball_loss": (
            metrics.pinball_loss(scaled[0], scaled[1], (1 - promised) / 2)
            + metrics.pinball_loss(scaled[0], scaled[2], (1 + promised) / 2)
        )
        / 2,
    }


def _mase_by_stock(forecast: NDArray[np.float64], test: TestSet, tickers: tuple[str, ...]) -> dict[str, float]:
    """Return the MASE of each stock, its folds in proportion to their samples; without a training day there is none."""
    actual, price = np.exp(test.log_price), np.exp(forecast)
    found: dict[str, float] = {}
    for number, ticker in enumerate(tickers):
        values, weights = [], []
        for fold in np.unique(test.fold):
            rows, history = (test.ticker == number) & (test.fold == fold), test.history[fold, number]
            if rows.any() and len(history) > 1 and np.ptp(history) > 0:
                values.append(metrics.mase(actual[rows], price[rows], history))
                weights.append(rows.sum())
        if values:
            found[ticker] = float(np.average(values, weights=weights))
    return found


# --------------------------------------------------------------------------------------------------------------- tables


def forecaster_table(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One row for each forecaster, for the report."""
    rows = []
    for name, own in figures.items():
        directions = own["directional_accuracy"]
        rows.append(
            [
                name,
                _percent(own["mae"]),
                f"{own['mae_to_last_value']:.4f}",
                _range(own["mae_to_last_value_interval"], "{:.4f}") if own["mae_to_last_value"] != 1 else "–",
                _percent(own["rmse"]),
                _percent(own["mape"]),
                f"{own['mase']:.4f}",
                "–" if directions is None else f"{directions:.1%}",
                "–" if directions is None else _range(own["directional_accuracy_interval"], "{:.1%}"),
                format_value(own["wall_time_s"], "s") if own["wall_time_s"] else "–",
            ]
        )
    columns = ["forecaster", "MAE", "MAE / last value's", "95 % interval", "RMSE", "MAPE", "MASE", "direction right"]
    return {
        "title": "Forecasters",
        "columns": [*columns, "95 % interval", "time"],
        "rows": rows,
        "note": "MAE and RMSE of the log price, MAPE of the price, over all days ahead; MASE against the mean daily "
        "change of each stock in the training days, mean over the stocks. Direction: of tomorrow, where one is "
        "named. Intervals: blocks of days drawn again. Time: to fit, and to forecast, added up over the processes.",
    }


def horizon_table(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean absolute error for each number of days ahead."""
    horizon = len(next(iter(figures.values()))["mae_by_days_ahead"])
    return {
        "title": "MAE / last value's, by days ahead",
        "columns": ["forecaster", *(str(days) for days in range(1, horizon + 1))],
        "rows": [
            [name, *(f"{ratio:.4f}" for ratio in own["mae_to_last_value_by_days_ahead"])]
            for name, own in figures.items()
        ],
    }


def stock_table(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The MASE of each stock."""
    stocks = next(iter(figures.values()))["mase_by_stock"]
    return {
        "title": "MASE by stock",
        "columns": ["stock", *figures],
        "rows": [[stock, *(f"{own['mase_by_stock'][stock]:.4f}" for own in figures.values())] for stock in stocks],
    }


def interval_table(intervals: Mapping[str, Mapping[str, float]], promised: float) -> dict[str, Any]:
    """How well the intervals hold what they promise."""
    return {
        "title": f"Intervals that should hold {promised:.0%} of the outcomes",
        "columns": ["of", "hold", "mean width", "pinball loss"],
        "rows": [
            [name, f"{own['coverage']:.1%}", _percent(own["width"]), f"{own['pinball_loss']:.4f}"]
            for name, own in intervals.items()
        ],
        "note": "Width in log price. The pinball loss of both bounds, in units of the usual moves, rewards intervals "
        "that are narrow and still hold what they should: smaller is better.",
    }


def weight_table(members: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> dict[str, Any]:
    """The weights in each ensemble, mean over the folds."""
    names = list(next(iter(members.values())))
    return {
        "title": "Weights in the ensembles",
        "columns": ["ensemble", *names, "last value"],
        "rows": [
            [kind, *(f"{own[name].mean():.3f}" for name in names), f"{1 - sum(w.mean() for w in own.values()):.3f}"]
            for kind, own in members.items()
        ],
        "note": "Found on the validation windows of each fold; mean over the folds. What the members leave to 1 is "
        "with the last value.",
    }


def fold_table(folds: list[Fold]) -> dict[str, Any]:
    """What each fold was trained, chosen and tested on."""
    return {
        "title": "Walk-forward folds",
        "columns": ["fold", "test days", "training windows", "validation windows", "test windows"],
        "rows": [
            [str(fold.number + 1), " to ".join(fold.test_dates)]
            + [f"{len(part):,}" for part in (fold.train, fold.val, fold.test)]
            for fold in folds
        ],
    }


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3f} %"


def _range(interval: list[float], form: str) -> str:
    return " to ".join(form.format(bound) for bound in interval)
