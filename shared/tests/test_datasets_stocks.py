"""Prices of stocks: Yahoo's answers and refusals on a local server, files good and broken, and generated prices."""

import csv
import importlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.datasets import catalogue, fetch, stocks
from trainyard_shared.datasets.stocks import load_prices, load_sample, make_sample
from trainyard_shared.errors import DataError, UsageError

pd = pytest.importorskip("pandas")
yfinance = pytest.importorskip("yfinance")

HEADER = "Date,Open,High,Low,Close,Adj Close,Volume"
DAYS = ["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"]


def row(day: str, close: float = 10.0) -> str:
    return f"{day},{close - 1},{close + 2},{close - 2},{close},{close / 2},1000"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two tickers in Yahoo's form."""
    made = tmp_path / "prices"
    made.mkdir()
    (made / "ABC.csv").write_text("\n".join([HEADER, *(row(day, 10 + i) for i, day in enumerate(DAYS))]))
    (made / "xyz.csv").write_text("\n".join([HEADER, *(row(day, 20 + i) for i, day in enumerate(DAYS[1:]))]))
    return made


# Local files


def test_a_folder_of_yahoos_files(folder):
    data = load_prices(folder)
    assert (data.name, data.kind, list(data.prices), data.notes) == ("stocks", "real", ["ABC", "XYZ"], ())
    table = data.prices["ABC"]
    assert list(table.columns) == ["open", "high", "low", "close", "adjusted_close", "volume"]
    assert (table.dtypes == np.float64).all()
    assert table.index.name == "date"
    assert table.index.tz is None
    assert [str(day.date()) for day in table.index] == DAYS
    assert table.iloc[1].tolist() == [10.0, 13.0, 9.0, 11.0, 5.5, 1000.0]


def test_tickers_and_days_can_be_chosen(folder):
    data = load_prices(folder, [" abc", "ABC"], date(2020, 1, 3), date(2020, 1, 6))
    assert list(data.prices) == ["ABC"]
    assert [str(day.date()) for day in data.prices["ABC"].index] == DAYS[1:3]
    assert list(load_prices(folder / "xyz.csv").prices) == ["XYZ"]


def test_an_unwanted_file_may_be_broken(folder):
    (folder / "xyz.csv").write_text("no prices")
    assert list(load_prices(folder, ["ABC"]).prices) == ["ABC"]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], *reversed(lines[1:])],
        lambda lines: [line + "\r" for line in lines],
        lambda lines: ["\ufeff" + lines[0], *lines[1:], "", ""],
        lambda lines: [lines[0], *(line.replace(",", " 00:00:00-05:00,", 1) for line in lines[1:])],
        lambda lines: [lines[0] + ",Dividends", *(line + ",0.0" for line in lines[1:])],
        lambda lines: [", ".join(line.split(",")) for line in lines],
    ],
    ids=["newest first", "windows", "byte order mark and blank lines", "time of day", "another column", "spaces"],
)
def test_other_spellings_of_the_same_prices(folder, change):
    expected = load_prices(folder).prices["ABC"]
    path = folder / "ABC.csv"
    path.write_text("\n".join(change(path.read_text().split("\n"))))
    pd.testing.assert_frame_equal(load_prices(folder).prices["ABC"], expected)


def test_compressed_files(folder):
    expected = load_prices(folder).prices["ABC"]
    (folder / "ABC.csv.xz").write_bytes(lzma.compress((folder / "ABC.csv").read_bytes()))
    with pytest.raises(DataError, match=r"ABC is both in .*ABC\.csv and in .*ABC\.csv\.xz\. Remove one"):
        load_prices(folder)
    (folder / "ABC.csv").unlink()
    pd.testing.assert_frame_equal(load_prices(folder).prices["ABC"], expected)


def test_rules_are_applied_and_counted(folder):
    lines = [HEADER, *(row(day, 10) for day in DAYS), row(DAYS[1], 10), f"{DAYS[2][:-1]}8,1,1,1,null,,5"]
    lines.append("2020-01-09,9.0,12.0")  # cut off
    (folder / "ABC.csv").write_text("\n".join(lines))
    (folder / "xyz.csv").write_text("\n".join([HEADER, row(DAYS[0]), row(DAYS[3])]))
    data = load_prices(folder)
    assert data.notes == (
        "2 rows without a price or volume dropped (ABC 2)",
        "1 repeated rows dropped (ABC 1)",
        "2 trading days of the others missing, not filled: a return across a gap counts as one (XYZ 2)",
    )
    assert len(data.prices["ABC"]) == 4


BROKEN = {
    "empty file": (b"", r"ABC\.csv is empty"),
    "header only": (HEADER.encode(), r"ABC\.csv holds no complete row of ABC"),
    "no row is complete": (f"{HEADER}\n2020-01-02,1,1,1,null,1,1".encode(), r"ABC\.csv holds no complete row of ABC"),
    "missing column": (
        b"Date,Open,High,Low,Close,Volume\n",
        r"ABC\.csv lacks the column Adj Close: it has Date, Open, .* expected Date, Open, High, Low, Close, Adj Close",
    ),
    "a word": (
        f"{HEADER}\n{row(DAYS[0])}\n2020-01-03,9,11,8,ten,5,1000".encode(),
        r"ABC\.csv, line 3: Close is 'ten', expected a number",
    ),
    "infinity": (f"{HEADER}\n2020-01-03,9,11,8,inf,5,1000".encode(), r"line 2: Close is 'inf', expected a number"),
    "negative price": (f"{HEADER}\n2020-01-03,9,11,-8,9,5,1000".encode(), r"line 2: Low is -8, expected more than 0"),
    "zero price": (
        f"{HEADER}\n2020-01-03,9,11,8,9,0.0,1000".encode(),
        r"line 2: Adj Close is 0\.0, expected more than 0",
    ),
    "negative volume": (f"{HEADER}\n2020-01-03,9,11,8,9,5,-1".encode(), r"line 2: Volume is -1, expected at least 0"),
    "no date": (
        f"{HEADER}\n\n03/01/2020,9,11,8,9,5,1".encode(),
        r"line 3: Date is '03/01/2020', expected a day such as",
    ),
    "two rows for a day": (
        f"{HEADER}\n{row(DAYS[0])}\n{row(DAYS[1])}\n{row(DAYS[0], 11)}".encode(),
        r"ABC\.csv, lines 2 and 4: two different rows of ABC for 2020-01-02\. Keep one",
    ),
    "too many fields": (
        f"{HEADER}\n{row(DAYS[0])}\n{row(DAYS[1])},1,2".encode(),
        r"no sound CSV file: .* line 3, saw 9",
    ),
    "too many in all": (f"{HEADER}\n{row(DAYS[0])},1".encode(), r"its rows have more fields than its header"),
    "latin-1": (
        f"{HEADER}\n2020-01-0é".encode("latin-1"),
        r"ABC\.csv, line 2: the byte 0xe9 at offset 51 is not UTF-8",
    ),
    "open quote": (f'{HEADER}\n"{row(DAYS[0])}\n'.encode(), r"no sound CSV file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_with_the_place(folder, case):
    content, message = BROKEN[case]
    (folder / "ABC.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_prices(folder)


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"No DEF, GHI in .*prices, which holds ABC\.csv, xyz\.csv\. What to do: save"):
        load_prices(folder, ["ABC", "GHI", "DEF"])
    with pytest.raises(DataError, match=r"No prices in .* which does not exist"):
        load_prices(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"XYZ has no trading days from the beginning to 2020-01-02: .* from 2020-01-03"
    ):
        load_prices(folder, end=date(2020, 1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tickers": []}, "No tickers"),
        ({"tickers": ["ABC", ""]}, "'' is no ticker"),
        ({"tickers": ["../ABC"]}, r"'\.\./ABC' is no ticker"),
        ({"tickers": ["ABC"], "start": date(2020, 2, 1), "end": date(2020, 1, 1)}, "2020-02-01 is after .* 2020-01-01"),
        ({}, "Name the tickers"),
        ({"tickers": ["ABC"], "start": date(2999, 1, 1)}, "2999-01-01 is after .*, the last day whose prices"),
    ],
)
def test_requests_that_make_no_sense(cache, arguments, message):
    with pytest.raises(UsageError, match=message):
        load_prices(**arguments)


QUANDL = "Ticker,Date,Open,High,Low,Close,Volume,Ex-Dividend,Split Ratio,Adj. Close"


def test_the_table_of_quandl_is_adjusted_for_splits(tmp_path):
    path = tmp_path / "wiki.csv.xz"
    lines = [
        QUANDL,
        "SPL,2020-01-07,26,28,24,27,80,0,1.0,27",
        "SPL,2020-01-02,100,110,90,102,10,0,1.0,25.5",
        "SPL,2020-01-03,102,112,92,104,10,0,1.0,26",
        "SPL,2020-01-06,26,28,24,25,40,0,4.0,25",
        "one,2020-01-02,5,6,4,5,10,0.1,1.0,4.9",
    ]
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    data = load_prices(tmp_path)
    assert list(data.prices) == ["ONE", "SPL"]
    assert data.prices["SPL"]["close"].tolist() == [25.5, 26.0, 25.0, 27.0]
    assert data.prices["SPL"]["volume"].tolist() == [40.0, 40.0, 40.0, 80.0]
    assert data.prices["SPL"]["adjusted_close"].tolist() == [25.5, 26.0, 25.0, 27.0]
    assert list(load_prices(path, ["ONE"]).prices) == ["ONE"]
    path.write_bytes(lzma.compress("\n".join([*lines, ",2020-01-02,5,6,4,5,10,0.1,1.0,4.9"]).encode()))
    with pytest.raises(DataError, match=r"wiki\.csv\.xz, line 7: Ticker is empty"):
        load_prices(path)


# Yahoo


class Yahoo:
    """Answers in the form of Yahoo's chart API."""

    def __init__(self, web, cache):
        self.web, self.cache = web, cache
        self.days = [date(2020, 1, 2) + timedelta(days=i) for i in range(30) if (3 + i) % 7 < 5]

    def serve(self, ticker: str, **changes: list) -> bytes:
        # New York's opening time
        stamps = [int(datetime(d.year, d.month, d.day, 14, 30, tzinfo=UTC).timestamp()) for d in self.days]
        closes = [100.0 + i for i in range(len(stamps))]
        quote = {
            "open": [close - 1 for close in closes],
            "high": [close + 2 for close in closes],
            "low": [close - 2 for close in closes],
            "close": closes,
            "volume": [1000 + i for i in range(len(stamps))],
        }
        adjusted = [close and close * 0.9 for close in changes.get("close", closes)]
        meta = {
            "symbol": ticker,
            "currency": "USD",
            "instrumentType": "EQUITY",
            "exchangeTimezoneName": "America/New_York",
            "timezone": "EST",
            "gmtoffset": -18000,
            "dataGranularity": "1d",
            "range": "",
            "validRanges": ["1d", "max"],
            "priceHint": 2,
            "regularMarketTime": stamps[-1],
            "firstTradeDate": stamps[0],
        }
        result = {
            "meta": meta,
            "timestamp": stamps,
            "indicators": {"quote": [{**quote, **changes}], "adjclose": [{"adjclose": adjusted}]},
        }
        return self.answer(ticker, {"chart": {"result": [result], "error": None}})

    def refuse(self, ticker: str, description: str) -> bytes:
        return self.answer(
            ticker, {"chart": {"result": None, "error": {"code": "Not Found", "description": description}}}
        )

    def answer(self, ticker: str, content: dict) -> bytes:
        return self.web.files.setdefault(f"/v8/finance/chart/{ticker}", json.dumps(content).encode())


@pytest.fixture
def yahoo(web, cache, monkeypatch):
    for name in ("base", "scrapers.history", "scrapers.quote"):
        module = importlib.import_module(f"yfinance.{name}")
        for constant, value in vars(module).items():
            if isinstance(value, str) and re.match(r"https://query\d\.finance\.yahoo\.com", value):
                monkeypatch.setattr(module, constant, re.sub("https://[^/]+", web.url, value))
    monkeypatch.setattr(yfinance.data.YfData, "_get_cookie_and_crumb", lambda self, timeout=30: (None, "basic"))
    monkeypatch.setattr(stocks, "YAHOO_RETRY", fetch.RetryPolicy(attempts=3, first_wait_s=0.01, timeout_s=5))
    return Yahoo(web, cache)


START, END = date(2020, 1, 2), date(2020, 1, 31)


def load(*tickers: str, **options):
    return load_prices(None, tickers, options.pop("start", START), options.pop("end", END), **options)


def test_prices_are_downloaded_once_and_kept(yahoo, web, cache, capsys):
    yahoo.serve("ABC")
    yahoo.serve("DEF")
    data = load("DEF", "ABC")
    assert list(data.prices) == ["ABC", "DEF"]
    assert data.source.startswith("Yahoo Finance, 2020-01-02 to 2020-01-31")
    table = data.prices["ABC"]
    assert [day.date() for day in table.index] == yahoo.days
    assert table["close"].tolist() == [100.0 + i for i in range(len(yahoo.days))]
    assert table["adjusted_close"].tolist() == pytest.approx([90 + 0.9 * i for i in range(len(yahoo.days))])
    assert "Prices of ABC from Yahoo Finance (1 of 2)" in capsys.readouterr().err
    num_gets = web.num_gets
    again = load("ABC", "DEF", offline=True)
    assert web.num_gets == num_gets
    pd.testing.assert_frame_equal(again.prices["ABC"], table)
    kept = {path.name for path in (cache / "stocks").glob("*.*") if not path.name.startswith(".")}
    assert kept == {"ABC_2020-01-02_2020-01-31.csv", "DEF_2020-01-02_2020-01-31.csv"}
    entry = catalogue.entry("stocks")
    path, other = entry.cached()
    assert {path.name, other.name} == kept
    assert entry.check(path) == f"{len(yahoo.days):,} days from {yahoo.days[0]} to {yahoo.days[-1]}"
    assert fetch.changed_files(path) == []
    path.write_text(path.read_text().replace("1", "2", 1))
    assert len(fetch.changed_files(path)) == 1


def test_todays_prices_are_not_asked_for(yahoo, cache):
    yahoo.serve("ABC")
    load("ABC", start=None, end=None)
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    assert [path.name for path in (cache / "stocks").glob("ABC*.csv")] == [f"ABC_1900-01-01_{yesterday}.csv"]


def test_days_without_a_price_are_dropped_and_counted(yahoo):
    gap = [None if i == 3 else 100.0 + i for i in range(len(yahoo.days))]
    yahoo.serve("ABC", open=gap, high=gap, low=gap, close=gap, volume=gap)
    data = load("ABC")
    assert data.notes == ("1 rows without a price or volume dropped (ABC 1)",)
    assert len(data.prices["ABC"]) == len(yahoo.days) - 1


def test_a_limit_on_the_rate_is_waited_out(yahoo, web, capsys):
    yahoo.serve("ABC")
    web.refusals = [(429, {})] * 4  # yfinance asks twice each time
    assert len(load("ABC").prices["ABC"]) == len(yahoo.days)
    assert capsys.readouterr().err.count("429, Yahoo limits the rate of requests; trying again") == 2


def test_a_limit_that_lasts_is_said(yahoo, web):
    yahoo.serve("ABC")
    web.refusals = [(429, {})] * 99
    with pytest.raises(DataError) as caught:
        load("ABC")
    for part in ("429, Yahoo limits", "tried 3 times", "quote/ABC/history", "as <ticker>.csv", "--data-dir"):
        assert part in str(caught.value)
    assert web.num_gets == 6


def test_a_cut_connection_is_tried_again(yahoo, web, capsys):
    content = yahoo.serve("ABC")
    web.cuts = [len(content) // 2, len(content), 10]
    assert len(load("ABC").prices["ABC"]) == len(yahoo.days)
    assert "trying again" in capsys.readouterr().err


def test_a_server_in_trouble_is_tried_again(yahoo, web):
    yahoo.serve("ABC")
    web.refusals = [(503, {})] * 2  # an answer that yfinance would remember
    assert len(load("ABC").prices["ABC"]) == len(yahoo.days)


def test_a_page_instead_of_prices_is_tried_again(yahoo, web):
    web.files["/v8/finance/chart/ABC"] = b"<html>Will be right back</html>"
    with pytest.raises(DataError, match="tried 3 times"):
        load("ABC")


def test_an_unknown_ticker_is_named_at_once(yahoo, web, capsys):
    yahoo.serve("ABC")
    yahoo.refuse("GONE", "No data found, symbol may be delisted")
    with pytest.raises(DataError, match="Yahoo has no prices of GONE from 2020-01-02 to 2020-01-31: it is unknown or"):
        load("ABC", "GONE")
    assert "trying again" not in capsys.readouterr().err


def test_no_network_is_said_after_some_tries(yahoo, monkeypatch):
    for module in (yfinance.base, yfinance.scrapers.history):
        monkeypatch.setattr(module, "_BASE_URL_", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"Failed to (connect|perform).* \(tried 3 times\)"):
        load("ABC")


def test_no_trading_in_the_range(yahoo, capsys):
    yahoo.days = yahoo.days[:1]
    empty = json.loads(yahoo.serve("ABC"))
    result = empty["chart"]["result"][0]
    del result["timestamp"]
    result["indicators"] = {"quote": [{}], "adjclose": [{}]}
    yahoo.web.files["/v8/finance/chart/ABC"] = json.dumps(empty).encode()
    with pytest.raises(DataError, match="Yahoo has no prices of ABC from 2020-01-02"):
        load("ABC")
    assert "trying again" not in capsys.readouterr().err


def test_an_answer_in_another_form(yahoo, capsys):
    content = json.loads(yahoo.serve("ABC"))
    del content["chart"]["result"][0]["timestamp"]
    yahoo.web.files["/v8/finance/chart/ABC"] = json.dumps(content).encode()
    with pytest.raises(DataError, match="the answer is not understood: KeyError"):
        load("ABC")
    assert "trying again" not in capsys.readouterr().err


def test_offline_without_prices(yahoo, web):
    with pytest.raises(
        DataError, match=r"ABC_2020-01-02_2020-01-31\.csv is missing, and offline mode .*What to do: save"
    ):
        load("ABC", offline=True)
    assert web.num_gets == 0


def test_a_damaged_cache_is_named(yahoo, cache):
    yahoo.serve("ABC")
    load("ABC")
    path = next((cache / "stocks").glob("ABC*.csv"))
    path.write_text(HEADER + "\nnonsense")
    with pytest.raises(DataError, match=rf"line 2: Date is 'nonsense', .* Remove {path} to download it again"):
        load("ABC")


def test_yfinance_keeps_its_settings(yahoo):
    yahoo.serve("ABC")
    load("ABC")
    assert yfinance.config.debug.hide_exceptions is True


# Samples


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "prices"
    return load_prices(make_sample(folder, seed=0, num_tickers=12, num_days=2500))


def test_a_sample_says_what_it_is(cache):
    data = load_sample(seed=3, num_tickers=2, num_days=50)
    assert data.kind == "sample"
    assert data.source.startswith("generated sample, seed 3: 2 tickers on 50 days in the form of Yahoo Finance")
    assert list(data.prices) == ["GEN00", "GEN01"]
    made = next(cache.glob("samples/*/prices"))
    assert (made / "GEN00.csv").read_text().startswith(HEADER + "\n2010-01-04,")
    (made / "GEN00.csv").write_text("")
    with pytest.raises(DataError, match=rf"The cached sample is damaged\. Remove the folder {made.parent}"):
        load_sample(seed=3, num_tickers=2, num_days=50)


def test_the_seed_alone_decides_the_sample(tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    made = [make_sample(tmp_path / name, seed=seed, num_tickers=1, num_days=9) for name, seed in seeds.items()]
    first, second, third = ((folder / "GEN00.csv").read_text() for folder in made)
    assert first == second != third
    with pytest.raises(DataError, match="exists already"):
        make_sample(made[0], seed=1, num_tickers=1, num_days=9)


@pytest.mark.parametrize("sizes", [(0, 10), (1, 1)])
def test_a_sample_needs_a_size(tmp_path, sizes):
    with pytest.raises(DataError, match=f"not {sizes[0]} and {sizes[1]}"):
        make_sample(tmp_path / "a", seed=0, num_tickers=sizes[0], num_days=sizes[1])


def returns(data) -> np.ndarray:
    return np.stack([np.diff(np.log(table["adjusted_close"])) for table in data.prices.values()])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_generated_days_look_like_trading_days(sample):
    for table in sample.prices.values():
        assert len(table) == 2500
        assert (table.index.day_of_week < 5).all()
        assert (table["low"] <= table[["open", "close"]].min(axis=1)).all()
        assert (table["high"] >= table[["open", "close"]].max(axis=1)).all()
        overnight = np.log(table["open"] / table["close"].shift(1)).var()
        assert overnight / np.log(table["close"]).diff().var() == pytest.approx(0.2, abs=0.05)
    assert 0.008 < returns(sample).std() < 0.03


def test_generated_returns_cannot_be_forecast_but_their_size_can(sample):
    found = returns(sample)
    scaled = (found - found.mean(axis=1, keepdims=True)) / found.std(axis=1, keepdims=True)
    for lag in (1, 2, 5):
        # Common shocks make the stocks less than independent: a wide bound, and far below what could be used.
        assert abs(correlation(scaled[:, lag:], scaled[:, :-lag])) < 0.04
        assert correlation(scaled[:, lag:] ** 2, scaled[:, :-lag] ** 2) > 0.08
    momentum = np.stack([np.convolve(row, np.ones(20), "valid")[:-1] for row in scaled])
    assert abs(correlation(momentum, scaled[:, 20:])) < 0.04
    assert 0.2 < np.corrcoef(found)[np.triu_indices(12, 1)].mean() < 0.8


def test_the_expected_growth_of_a_generated_price_is_one(monkeypatch):
    garch = stocks._garch
    # Moves so large that their convexity cannot hide.
    monkeypatch.setattr(stocks, "_garch", lambda rng, volatility, num_days: garch(rng, 5 * volatility, num_days))
    # One stock of each market: stocks of the same one rise and fall together.
    rng = np.random.default_rng(0)
    growth, within_a_day = [], []
    for _ in range(1500):
        columns = stocks._simulate(rng, 1, 30)
        growth.append(columns["Adj Close"][-1, 0] / columns["Adj Close"][0, 0])
        within_a_day.append(columns["Close"][20, 0] / columns["Open"][20, 0])
    for ratios in (growth, within_a_day):
        assert abs(np.mean(ratios) - 1) < 4 * np.std(ratios) / np.sqrt(1500)


def test_nothing_is_gained_by_holding_a_stock_for_its_dividend():
    columns = stocks._simulate(np.random.default_rng(0), 3000, 64)
    gains = np.diff(np.log(columns["Adj Close"]), axis=0)
    gains -= gains.mean(axis=1, keepdims=True)  # of all stocks on that day
    is_ex_date = np.diff(np.log(columns["Adj Close"] / columns["Close"]), axis=0) > 0.003
    assert is_ex_date.sum() > 1500
    assert abs(gains[is_ex_date].mean()) < 0.0015  # a quarter of the dividend


def test_dividends_part_adjusted_from_plain_prices(sample):
    ratios = {ticker: table["adjusted_close"] / table["close"] for ticker, table in sample.prices.items()}
    assert sum((ratio < 0.9).any() for ratio in ratios.values()) == 8  # all but every third
    jumps = ratios["GEN00"].pct_change().dropna()
    ex_dates = jumps[jumps > 1e-4]
    assert len(ex_dates) in (39, 40)
    assert ex_dates.to_numpy() == pytest.approx(np.full(len(ex_dates), 1 / 0.994 - 1), abs=1e-5)
    assert ratios["GEN00"].iloc[-1] == pytest.approx(1)


def test_a_split_shows_in_finer_prices_only(sample):
    close = sample.prices["GEN00"]["close"]
    before, after = close.iloc[:1250], close.iloc[1250:]
    assert (np.abs(after * 100 - np.round(after * 100)) < 1e-3).all()
    assert (np.abs(before * 400 - np.round(before * 400)) < 1e-3).all()
    assert (np.abs(before * 100 - np.round(before * 100)) > 0.2).any()
    assert abs(np.log(after.iloc[0] / before.iloc[-1])) < 0.2


# The real data, where they are at hand


@pytest.fixture(scope="module")
def real() -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (data / "stocks" / "quandl_wiki_40.csv.xz").is_file():
        pytest.skip(f"no real prices in {data}: set TRAINYARD_TEST_DATA to the folder that holds stocks/")
    return data / "stocks"


@pytest.fixture(scope="module")
def quandl(real):
    return load_prices(real)


def test_all_forty_tickers_of_quandl(quandl):
    lengths = {ticker: len(table) for ticker, table in quandl.prices.items()}
    assert (len(lengths), sum(lengths.values())) == (40, 96_269)
    assert [lengths[ticker] for ticker in ("AA", "KRFT", "GM", "V", "AAPL")] == [75, 698, 1573, 2245, 2551]
    assert sum(length > 2200 for length in lengths.values()) == 37
    assert quandl.kind == "real"
    assert "TRV 16" in quandl.notes[0]


def test_quandls_prices_are_adjusted_as_yahoos_are(quandl, real, tmp_path):
    subprocess.run([sys.executable, real.parent / "unpack.py", "stocks", tmp_path], check=True, capture_output=True)
    unpacked = load_prices(tmp_path)
    assert list(unpacked.prices) == list(quandl.prices)
    for ticker, table in unpacked.prices.items():
        np.testing.assert_allclose(quandl.prices[ticker].iloc[:, :5], table.iloc[:, :5], atol=1e-6)
        np.testing.assert_allclose(quandl.prices[ticker]["volume"], table["volume"], atol=0.5)


def test_a_split_leaves_no_jump(quandl):
    apple = quandl.prices["AAPL"]["close"]
    around = apple.loc["2014-06-05":"2014-06-10"]
    assert np.abs(np.diff(np.log(around))).max() < 0.05


def test_quandl_and_yahoo_agree_but_for_later_splits_and_dividends(quandl, real):
    yahoo = load_prices(real / "yahoo")
    assert {ticker: len(table) for ticker, table in yahoo.prices.items()} == {
        ticker: sum(1 for _ in csv.reader(io.StringIO((real / "yahoo" / f"{ticker}.csv").read_text()))) - 1
        for ticker in ("AAPL", "GLD", "GOOG", "IBM", "SPY")
    }
    for ticker in ("AAPL", "IBM"):
        one, other = yahoo.prices[ticker], quandl.prices[ticker]
        common = one.index.intersection(other.index)
        assert len(common) == 1436
        moves = [np.diff(np.log(table.loc[common, "adjusted_close"])) for table in (one, other)]
        difference = np.abs(moves[0] - moves[1])
        # Both have a few wrong prices, each on days of its own.
        assert difference.max() < 0.005
        assert (difference < 1e-4).mean() > 0.97
