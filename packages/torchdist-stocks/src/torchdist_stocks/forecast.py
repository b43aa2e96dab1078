"""Forecasts of days that have not come yet, by the network of a run's last fold; one process is enough."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import torch
from trainyard_shared import plotting
from trainyard_shared.config import load_preset
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.results import read_json, write_atomically

from torchdist_stocks import data
from torchdist_stocks.config import ForecastConfig, TrainConfig
from torchdist_stocks.evaluate import load_weights, predict
from torchdist_stocks.model import build_model
from torchdist_stocks.opponents import LAST_VALUE

PAST_DAYS = 60


def forecast(run: Path, config: ForecastConfig) -> None:
    """Write forecast/<ticker>.png for each stock and one forecast/forecast.csv into the run folder.

    Raises:
        UsageError: a ticker is none of the run.
        DataError: there is no trained network, or the prices cannot be had.
    """
    trained = load_preset(TrainConfig, run / "config.yaml")
    known = read_json(run / "summary.json").get("tickers", [])
    wanted = [ticker.upper() for ticker in config.tickers] or known
    if unknown := [ticker for ticker in wanted if ticker not in known]:
        raise UsageError(f"error: --tickers: {', '.join(unknown)}: the run knows {', '.join(known)}")
    # The newest prices, of the same stocks: the network may know them by their numbers.
    trained = dataclasses.replace(
        trained,
        data_dir=config.data_dir or trained.data_dir,
        end=config.end,
        tickers=tuple(known) if trained.data == "real" else (),
    )
    dataset = data.load(trained)
    panel = data.make_panel(dataset.prices, trained.window, trained.horizon)
    model = build_model(trained, len(panel.tickers))
    model.load_state_dict(load_weights(run, trained, panel.tickers)[-1])
    newest = panel.newest()
    low, middle, high = predict(model, panel, newest, torch.device("cpu")).log_price.exp().numpy().transpose(2, 0, 1)

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["ticker", "known_until", "days_ahead", "weekday", "last_value", "forecast", "low", "high"])
    note = "generated sample data" if dataset.kind == "sample" else ""
    for ticker in dict.fromkeys(wanted):
        number = panel.tickers.index(ticker)
        row = int(newest[number])
        past = panel.log_price[max(row - PAST_DAYS + 1, 0) : row + 1][
            panel.ticker[max(row - PAST_DAYS + 1, 0) : row + 1] == number
        ]
        known_days = panel.dates[panel.day[row - len(past) + 1 : row + 1].numpy()]
        # Weekdays; on which of them the exchange is closed is not known here.
        coming = np.busday_offset(known_days[-1], np.arange(1, trained.horizon + 1), roll="backward")
        last = float(past[-1].exp())
        for ahead, day in enumerate(coming):
            figures = (
                f"{value:.4f}" for value in (last, middle[number, ahead], low[number, ahead], high[number, ahead])
            )
            writer.writerow([ticker, known_days[-1], ahead + 1, day, *figures])
        # All curves begin at the last known day.
        gap = np.full(len(past) - 1, np.nan)
        curves = [np.concatenate([gap, [last], values[number]]) for values in (low, middle, high)]
        plotting.forecast(
            np.concatenate([known_days, coming]),
            np.concatenate([past.exp().numpy(), np.full(trained.horizon, np.nan)]),
            {trained.model.upper(): curves[1], LAST_VALUE: np.concatenate([gap, np.full(trained.horizon + 1, last)])},
            run / "forecast" / f"{ticker}.png",
            interval=(curves[0], curves[2]),
            interval_label=f"{trained.interval:.0%} interval",
            y_label="adjusted price",
            title=f"{ticker}, {trained.horizon} days ahead",
            subtitle=f"prices known until {known_days[-1]}",
            note=note,
        )
    write_atomically(run / "forecast" / "forecast.csv", table.getvalue())
    say(table.getvalue().rstrip())
    for sentence in read_json(run / "summary.json").get("conclusions", []):
        say(f"In the test of this run: {sentence}")
    if dataset.kind == "sample":
        say("these prices are generated random walks: the forecasts say nothing about real ones")
    say(f"pictures and table: {run / 'forecast'}")
