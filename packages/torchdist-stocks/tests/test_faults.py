"""What a user may get wrong, and what may break: one clear message, and nothing left that a next run would trust."""

import dataclasses
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from torchdist_stocks import cli, data, evaluate
from torchdist_stocks.config import TrainConfig
from trainyard_shared.config import load_preset
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, run_folder, script

COLUMNS = {"open": "Open", "high": "High", "low": "Low", "close": "Close", "adjusted_close": "Adj Close"}
TINY = ["--num-folds", "1", "--test-days", "40", "--val-days", "20", "--window", "8", "--hidden-size", "8"]
TINY += ["--epochs", "1", "--micro-batch-size", "32", "--log-every", "1", "--nproc", "1", "--baselines", "simple"]


def write(tables: dict[str, pd.DataFrame], folder: Path) -> Path:
    """Write prices in Yahoo's columns."""
    folder.mkdir()
    for ticker, table in tables.items():
        table.rename(columns={**COLUMNS, "volume": "Volume"}).rename_axis("Date").to_csv(folder / f"{ticker}.csv")
    return folder


def test_data_error_ends_the_command_with_one_message(make_prices: Callable, tmp_path: Path) -> None:
    tables = make_prices(2, 250)
    tables["T1"] = tables["T1"].iloc[-55:]
    folder = write(tables, tmp_path / "data")
    flags = ["--data", "real", "--data-dir", str(folder), "--out-dir", "out", *TINY, "--nproc", "2"]
    finished = run([script("train"), *flags], tmp_path)
    assert finished.status == 1, finished
    assert finished.stderr.startswith("error: T1: 55 days of prices are too few: 49 go into the first features")
    assert finished.stderr.count("\n") == 1, "one message from two processes"
    assert not list((tmp_path / "out").glob("*/*")), "a run that never began leaves no folder"


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"tickers": ("",)}, UsageError, "'' is no ticker"),
        ({"tickers": ("GONE",)}, DataError, "No GONE in"),
        (
            {"start": date(1999, 1, 1), "end": date(1999, 12, 31)},
            DataError,
            "T0 has no trading days from 1999-01-01 to 1999-12-31",
        ),
        ({"data_dir": None}, UsageError, "--tickers: name the stocks to download"),
    ],
)
def test_prices_that_cannot_be_had(
    fields: dict, error: type[Exception], words: str, make_prices: Callable, tmp_path: Path
) -> None:
    folder = write(make_prices(1, 250), tmp_path / "data")
    with pytest.raises(error, match=words):
        data.load(dataclasses.replace(TrainConfig(), **{"data": "real", "data_dir": folder, **fields}))


class TestLocalRun:
    """A run on local files, and what may be asked of it afterwards."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, make_prices: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
        tmp_path = tmp_path_factory.mktemp("local")
        tables = make_prices(3, 250)
        tables["T1"] = tables["T1"].drop(tables["T1"].index[100])
        tables["T2"].iloc[77, 0] = float("nan")
        write(tables, tmp_path / "data")
        flags = ["--data", "real", "--data-dir", "data", "--end", "2015-12-11", "--ticker-embedding-size", "2"]
        finished = run([script("train"), *TINY, *flags], tmp_path)
        assert finished.status == 0, finished.stderr
        return tmp_path

    def test_rules_that_were_applied_are_in_the_notes(self, folder: Path) -> None:
        summary = read_json(run_folder(folder / "results") / "summary.json")
        assert summary["data"]["kind"] == "real"
        assert summary["data"]["last_day"] == "2015-12-11"
        notes = " ".join(summary["notes"])
        assert "1 rows without a price or volume dropped (T2 1)" in notes
        assert "2 trading days of the others missing, not filled" in notes

    def test_forecast_of_the_days_to_come(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        run_dir = run_folder(folder / "results")
        here = Path.cwd()
        try:
            os.chdir(folder)
            assert cli.forecast(["--run", str(run_dir), "--tickers", "t2", "T0"]) == 0
            table = pd.read_csv(run_dir / "forecast" / "forecast.csv")
            assert cli.forecast(["--run", str(run_dir), "--tickers", "T0", "--end", "2015-11-30"]) == 0
            earlier = pd.read_csv(run_dir / "forecast" / "forecast.csv")
            assert cli.forecast(["--run", str(run_dir), "--tickers", "T9"]) == 2
        finally:
            os.chdir(here)
        prices = pd.read_csv(folder / "data" / "T2.csv")
        assert table["ticker"].tolist() == ["T2"] * 5 + ["T0"] * 5
        assert table["known_until"].unique().tolist() == [prices["Date"].iloc[-1]], "newer prices than the run knew"
        assert table["last_value"][0] == pytest.approx(prices["Adj Close"].iloc[-1], abs=1e-4)
        assert table["days_ahead"].tolist() == [1, 2, 3, 4, 5] * 2
        assert pd.to_datetime(table["weekday"]).dt.day_of_week.max() < 5
        assert table["weekday"][0] > table["known_until"][0]
        assert (table["low"] < table["forecast"]).all()
        assert (table["forecast"] < table["high"]).all()
        width = (table["high"] - table["low"])[:5]
        assert width.is_monotonic_increasing, "the future grows less certain with every day"
        assert (run_dir / "forecast" / "T2.png").is_file()
        assert earlier["known_until"].unique().tolist() == ["2015-11-30"]
        captured = capsys.readouterr()
        assert "In the test of this run:" in captured.out
        assert "--tickers: T9: the run knows T0, T1, T2" in captured.err

    def test_other_stocks_than_in_training(self, folder: Path) -> None:
        run_dir = run_folder(folder / "results")
        config = load_preset(TrainConfig, run_dir / "config.yaml")
        assert len(evaluate.load_weights(run_dir, config, ("T0", "T1", "T2"))) == 1
        with pytest.raises(DataError, match="trained on T0, T1, T2, but the data hold T0, T1: the same stocks"):
            evaluate.load_weights(run_dir, config, ("T0", "T1"))


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    flags = ["--num-sample-tickers", "2", "--num-sample-days", "250", *TINY, "--learning-rate", "1e36"]
    finished = run([script("train"), *flags, "--max-grad-norm", "none", "--out-dir", "out"], tmp_path)
    assert finished.status == 1
    assert "the training loss is nan at step" in finished.stderr
    assert "try a lower --learning-rate" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert read_json(run_folder(tmp_path / "out") / "summary.json")["state"] == "failed"


def test_real_prices(tmp_path: Path) -> None:
    """Two of Yahoo's own files, over a few years, through the whole command."""
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).parents[4] / "shared" / "data"
    if not (data / "stocks" / "yahoo").is_dir():
        pytest.skip(f"no real prices in {data}: set TRAINYARD_TEST_DATA to the folder that holds stocks/yahoo")
    flags = ["--data", "real", "--data-dir", str(data / "stocks" / "yahoo"), "--tickers", "IBM", "spy"]
    finished = run([script("train"), *TINY, *flags, "--start", "2008-01-01", "--end", "2010-12-31"], tmp_path)
    assert finished.status == 0, finished.stderr
    folder = run_folder(tmp_path / "results")
    summary = read_json(folder / "summary.json")
    assert summary["tickers"] == ["IBM", "SPY"]
    assert summary["data"]["kind"] == "real"
    assert summary["data"]["last_day"] == "2010-12-31"
    assert 0.005 < summary["forecasters"]["last value"]["mae"] < 0.05
    assert "generated" not in (folder / "report.html").read_text().lower()
