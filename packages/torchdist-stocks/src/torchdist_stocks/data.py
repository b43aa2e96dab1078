"""From prices to walk-forward folds of windows. The same windows, in the same order, for any number of processes.

The rows of all stocks lie below each other in one table (`Panel`). A sample is the number of one row, its origin: the
features of the `window` days up to the origin go in, the log prices of the `horizon` days after it are to be forecast.
The windows of neighbouring origins overlap, and are views into the table until a batch is gathered from them.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from trainyard_shared.datasets.stocks import PriceDataset, load_prices, load_sample
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.tensors.images import BatchOrder

from torchdist_stocks.config import TrainConfig
from torchdist_stocks.features import FEATURES, MIN_VOLATILITY, indicators

if TYPE_CHECKING:
    from pandas import DataFrame


def load(config: TrainConfig) -> PriceDataset:
    """Return generated prices or real ones; raises DataError or UsageError if they cannot be had."""
    if config.data == "sample":
        return load_sample(seed=0, num_tickers=config.num_sample_tickers, num_days=config.num_sample_days)
    folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
    if not folder and not config.tickers:
        raise UsageError("error: --tickers: name the stocks to download, such as AAPL MSFT, or pass --data-dir")
    return load_prices(Path(folder) if folder else None, config.tickers or None, config.start, config.end)


@dataclasses.dataclass(frozen=True)
class Panel:
    """The days of all stocks, one below the other: R rows in all, of K stocks, over the D days of a common calendar."""

    tickers: tuple[str, ...]
    """K names"""
    dates: NDArray[np.datetime64]
    """(D,) days on which any of the stocks was traded, without the days needed to warm up the features"""
    features: Tensor
    """(R, F) float32"""
    log_price: Tensor
    """(R,) float64, natural logarithm of the adjusted close"""
    ticker: Tensor
    """(R,) int64, number of the stock"""
    day: Tensor
    """(R,) int64, number of the day in `dates`"""
    window: int
    horizon: int

    def windows(self, origins: Tensor) -> Tensor:
        """Return the features (N, window, F) of the days up to and including each origin (N,)."""
        views = self.features.unfold(0, self.window, 1)  # (R - window + 1, F, window), no copy
        return views[origins - self.window + 1].transpose(1, 2)

    def levels(self, origins: Tensor) -> Tensor:
        """Return the log prices (N, window) of the days up to and including each origin (N,)."""
        return self.log_price.unfold(0, self.window, 1)[origins - self.window + 1]

    def future(self, origins: Tensor) -> Tensor:
        """Return the log prices (N, horizon) of the days after each origin (N,)."""
        return self.log_price.unfold(0, self.horizon, 1)[origins + 1]

    def moves(self, origins: Tensor) -> Tensor:
        """Return how far a random walk with the recent volatility moves within 1, 2, ... days: (N, horizon) float64."""
        volatility = self.features[origins, FEATURES.index("volatility_20")].double().clamp(min=MIN_VOLATILITY)
        return volatility[:, None] * torch.arange(1, self.horizon + 1, device=volatility.device).double().sqrt()

    def origins(self) -> Tensor:
        """Return all rows with a whole window before them and a whole horizon behind them, of the same stock."""
        rows = torch.arange(self.window - 1, len(self.day) - self.horizon)
        return rows[self.ticker[rows - self.window + 1] == self.ticker[rows + self.horizon]]

    def newest(self) -> Tensor:
        """Return the last row of each stock (K,), from which the days that are not known yet are forecast."""
        return torch.bincount(self.ticker, minlength=len(self.tickers)).cumsum(0) - 1

    def to(self, device: torch.device) -> "Panel":
        """Return the panel with its tensors on a device."""
        fields = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return dataclasses.replace(self, **fields)


def make_panel(prices: Mapping[str, "DataFrame"], window: int, horizon: int) -> Panel:
    """Compute the features of all stocks and put them into one table.

    [dist] Each process computes those of its share of the stocks; then all get those of all.

    Args:
        prices: by ticker, as in `PriceDataset`.
        window: days that a forecast looks back on.
        horizon: days ahead to forecast.

    Raises:
        DataError: a stock has too few days.
    """
    tickers = sorted(prices)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    own = {ticker: _rows(ticker, prices[ticker], window + horizon) for ticker in tickers[rank::world_size]}
    shares: list = [own]
    if world_size > 1:
        shares = [None] * world_size
        dist.all_gather_object(shares, own)
    rows = {ticker: columns for share in shares for ticker, columns in share.items()}
    short = sorted(ticker for ticker, columns in rows.items() if isinstance(columns, str))
    if short:
        raise DataError("\n".join(f"error: {rows[ticker]}" for ticker in short))
    dates = np.unique(np.concatenate([rows[ticker][0] for ticker in tickers]))
    return Panel(
        tickers=tuple(tickers),
        dates=dates,
        features=torch.from_numpy(np.concatenate([rows[ticker][1] for ticker in tickers])),
        log_price=torch.from_numpy(np.concatenate([rows[ticker][2] for ticker in tickers])),
        ticker=torch.from_numpy(np.repeat(np.arange(len(tickers)), [len(rows[ticker][0]) for ticker in tickers])),
        day=torch.from_numpy(np.concatenate([np.searchsorted(dates, rows[ticker][0]) for ticker in tickers])),
        window=window,
        horizon=horizon,
    )


def _rows(ticker: str, prices: "DataFrame", min_days: int) -> tuple[NDArray, NDArray, NDArray] | str:
    """Return dates, features and log prices of a stock without its first days; or what is wrong with it."""
    features = indicators(prices)
    warm = ~np.isnan(features).any(axis=1)
    # An error is handed on, not raised: a process that ends here would leave the others waiting.
    if warm.sum() < min_days:
        return (
            f"{ticker}: {len(prices)} days of prices are too few: {(~warm).sum()} go into the first features, and "
            f"window and horizon need {min_days} more; leave the stock out or use longer prices"
        )
    dates = prices.index.to_numpy().astype("datetime64[D]")
    log_price = np.log(prices["adjusted_close"].to_numpy(np.float64))
    return dates[warm], features[warm].astype(np.float32), log_price[warm]


@dataclasses.dataclass(frozen=True)
class Fold:
    """One step of the walk forward. No day is in a sample of two parts: windows and targets are kept apart, too."""

    number: int
    train: Tensor
    """(N,) origins to train on"""
    val: Tensor
    """(N,) origins to choose the weights and the ensembles on; they lie behind those of `train`"""
    test: Tensor
    """(N,) origins to test on; they lie behind those of `val`"""
    train_rows: Tensor
    """rows of the days of the training part: what scalers and baselines may be fitted on"""
    test_dates: tuple[str, str]
    """first and last day of the test origins"""


def make_folds(panel: Panel, config: TrainConfig) -> list[Fold]:
    """Return the walk-forward folds, the oldest first.

    The test origins of all folds together are the last num_folds x test_days days before the last horizon. From the
    last origin of one part to the first of the next it is window + horizon days, so that no target of the one is a day
    in a window of the other. Features reach back further than the window; inputs of the past do no harm.

    Raises:
        UsageError: the prices do not span enough days.
    """
    window, horizon = panel.window, panel.horizon
    origins = panel.origins()
    first, last, at = panel.day[origins - window + 1], panel.day[origins + horizon], panel.day[origins]
    folds = []
    for number in range(config.num_folds):
        # Bounds in numbers of days. A part owns the days from its own bound up to the next.
        test_end = len(panel.dates) - horizon - (config.num_folds - 1 - number) * config.test_days
        test_begin = test_end - config.test_days
        val_end = test_begin - window + 1
        train_end = val_end - (window + config.val_days - 1 + horizon)
        train_begin = 0 if config.train_days is None else train_end - config.train_days
        inside = (panel.day >= train_begin) & (panel.day < train_end)
        train = origins[(first >= train_begin) & (last < train_end)]
        val = origins[(first >= train_end) & (last < val_end)]
        test = origins[(first >= val_end) & (at >= test_begin) & (at < test_end)]
        if train_begin < 0 or not (len(train) and len(val) and len(test)):
            needed = len(panel.dates) - (train_begin if config.train_days else train_end - window - horizon)
            raise UsageError(
                f"error: num_folds x test_days = {config.num_folds} x {config.test_days}, val_days = "
                f"{config.val_days}, train_days = {config.train_days}, window = {window} and horizon = {horizon} need "
                f"at least {needed:,} days, but there are {len(panel.dates):,} ({panel.dates[0]} to {panel.dates[-1]}, "
                "without the first ones, which go into the features)"
            )
        span = (str(panel.dates[test_begin]), str(panel.dates[test_end - 1]))
        folds.append(Fold(number, train, val, test, inside.nonzero()[:, 0], span))
    return folds


class TrainBatches:
    """Micro-batches of one process, gathered from the panel on the device.

    Args:
        panel: on the device.
        origins: (N,) training samples of a fold.
        order: which of them each process takes for each micro-batch.
    """

    def __init__(self, panel: Panel, origins: Tensor, order: BatchOrder) -> None:
        self.panel, self.order = panel, order
        self.origins = origins.to(panel.features.device)

    def epoch(self, epoch: int, used: int = 0) -> Iterator[Tensor]:
        """Yield this process's micro-batches of origins (B,) of what is left of an epoch."""
        micro_batches, _ = self.order.epoch(epoch, used)
        for index in micro_batches.to(self.origins.device):
            yield self.origins[index]
