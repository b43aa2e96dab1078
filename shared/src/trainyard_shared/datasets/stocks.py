"""Daily prices of stocks: from Yahoo Finance or local files, and a generated sample in the same format.

What is kept in the cache are CSV files in Yahoo's columns, one a ticker, and one reader reads them all. Yahoo's open,
high, low, close and volume are adjusted for splits; `Adj Close` is adjusted for dividends as well, so that its ratios
are what a holder earned.
"""

import contextlib
import importlib
import io
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic.dataclasses import dataclass as config_dataclass

from trainyard_shared.config import CONFIG, Day
from trainyard_shared.datasets.entry import DownloadConfig, Entry, File, Place
from trainyard_shared.datasets.fetch import (
    Expected,
    RetryPolicy,
    Source,
    SourceError,
    building,
    cache_dir,
    fetch,
    is_offline,
    locked,
    say,
)
from trainyard_shared.datasets.tables import DECOMPRESS, GENERATED, listing, read_origin, read_text, write_origin
from trainyard_shared.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd

LICENCE = "Yahoo Finance: personal use only; Quandl WIKI: public domain"
CITATION = "Yahoo Finance, historical prices; Quandl WIKI end-of-day stock prices (2018)"
"""Yahoo's terms forbid passing the prices on. The WIKI table was kept up by its community and ended in March 2018."""

# Names of the columns, ours after those of the files.
PRICES = {"Open": "open", "High": "high", "Low": "low", "Close": "close"}
YAHOO = {**PRICES, "Adj Close": "adjusted_close", "Volume": "volume"}
QUANDL = {**PRICES, "Adj. Close": "adjusted_close", "Volume": "volume"}
COLUMNS = tuple(YAHOO.values())
MISSING = ("", "nan", "null", "none", "na", "n/a")

EARLIEST = date(1900, 1, 1)
# Yahoo's limit on the rate of requests lasts longer than the failures of most servers.
YAHOO_RETRY = RetryPolicy(attempts=5, first_wait_s=4.0)
_TICKER = re.compile(r"[A-Z0-9^][A-Z0-9.^=-]{0,19}")
_ADVICE = "save its history as <ticker>.csv in Yahoo's columns (Date,{}) and pass the folder as --data-dir".format(
    ",".join(YAHOO)
)

# Part of the name of cached samples: raise it whenever the same seed gives other prices.
SAMPLE_VERSION = 1


@dataclass(frozen=True)
class PriceDataset:
    """Daily prices of one or more stocks, whole in memory.

    `prices` holds a table for each ticker, in the order of their names. Its index `date` is ascending and unique,
    without a time zone. Its columns are float64: open, high, low, close (adjusted for splits), adjusted_close (for
    splits and dividends), all above 0, and volume (in shares), at least 0. `kind` says whether they are real or
    generated, `source` where they come from, for people, and `notes` which rules were applied to them.
    """

    name: str
    kind: Literal["real", "sample"]
    source: str
    notes: tuple[str, ...]
    prices: dict[str, "pd.DataFrame"]


@dataclass
class _Findings:
    """How often each rule was applied, by ticker."""

    incomplete: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)

    def notes(self) -> tuple[str, ...]:
        rules = {
            "rows without a price or volume dropped": self.incomplete,
            "repeated rows dropped": self.repeated,
            "trading days of the others missing, not filled: a return across a gap counts as one": self.absent,
        }
        return tuple(f"{counts.total():,} {rule} ({_most(counts)})" for rule, counts in rules.items() if counts.total())


@dataclass(frozen=True)
class YahooHistory(Source):
    """The daily prices of one ticker at Yahoo Finance, from `start` to `end`, both included."""

    ticker: str
    start: date
    end: date

    @property
    def address(self) -> str:
        """The page of the history."""
        return f"https://finance.yahoo.com/quote/{self.ticker}/history"

    def download(self, part: Path, want: Expected, retry: RetryPolicy) -> None:
        """Download with yfinance; wait and try again after passing failures."""
        _require("yfinance")
        failures = 0
        while True:
            try:
                history = self._ask(part.parent, retry.timeout_s)
                break
            except Exception as error:  # yfinance hands on the errors of its HTTP and JSON libraries
                reason = self._passing_reason(error)
            failures += 1
            if failures >= retry.attempts:
                raise SourceError(f"{reason} (tried {failures} times)")
            wait_s = retry.wait_s(failures, None)
            say(f"{self.ticker}: {reason}; trying again in {wait_s:.1f} s")
            time.sleep(wait_s)
        history.to_csv(part, columns=list(YAHOO), index_label="Date", date_format="%Y-%m-%d")

    def _ask(self, folder: Path, timeout_s: float) -> "pd.DataFrame":
        import yfinance
        from yfinance.data import YfData

        # What it remembers of tickers, their time zones, stays with our files.
        yfinance.set_tz_cache_location(str(folder / "yfinance"))
        # It also remembers answers about the past, and would repeat a refusal to us.
        YfData.cache_get.cache_clear()
        with _raising_yfinance():
            return yfinance.Ticker(self.ticker).history(
                start=self.start,
                end=self.end + timedelta(days=1),  # which it leaves out
                auto_adjust=False,
                actions=False,
                keepna=True,  # for the reader, which counts them
                timeout=timeout_s,
            )

    def _passing_reason(self, error: Exception) -> str:
        """Say what went wrong if it may be gone in a moment; raise SourceError if it will not."""
        from yfinance.exceptions import YFDataException, YFRateLimitError, YFTickerMissingError

        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, YFRateLimitError) or status == 429:
            return "429, Yahoo limits the rate of requests"
        if isinstance(error, YFTickerMissingError) or status == 404:
            raise SourceError(
                f"Yahoo has no prices of {self.ticker} from {self.start} to {self.end}: it is unknown or delisted, or "
                f"was not traded then ({_one_line(error)})"
            ) from error
        if isinstance(error, OSError | ValueError | YFDataException):  # no connection, or something else than JSON
            return _one_line(error)
        raise SourceError(f"the answer is not understood: {error!r}") from error


def load_prices(
    folder: Path | None = None,
    tickers: Sequence[str] | None = None,
    start: date | None = None,
    end: date | None = None,
    *,
    offline: bool = False,
) -> PriceDataset:
    """Return the daily prices of some stocks.

    Rows without all six numbers are dropped, and so are rows that occur twice; two different rows for one day are an
    error. Days on which a stock was not traded, but others were, are not filled. `notes` gives the counts. Files may
    be in any order of days.

    Args:
        folder: A folder with CSV files in Yahoo's columns, one a ticker and named after it, or with Quandl's WIKI table
            of many tickers (each may be compressed: .bz2, .gz, .xz); or one such file. By default Yahoo Finance, with a
            cache.
        tickers: Which stocks, in Yahoo's spelling; by default all that are in `folder`.
        start: First day wanted; by default as early as there are prices.
        end: Last day wanted; by default the last in `folder`, or yesterday at Yahoo, since today's prices may change
            until the exchange closes.
        offline: Do not use the network (also TRAINYARD_OFFLINE=1).

    Raises:
        UsageError: the tickers or days make no sense.
        DataError: prices cannot be had, or a file is not of the expected form.
    """
    _require("pandas")
    wanted = None if tickers is None else _checked(tickers)
    if start is not None and end is not None and start > end:
        raise UsageError(f"The first day {start} is after the last day {end}.")
    if folder is not None:
        return _load_local(Path(folder), wanted, start, end)
    if wanted is None:
        raise UsageError("Name the tickers that are wanted from Yahoo Finance, such as SPY.")
    return _load_yahoo(wanted, start or EARLIEST, end, offline)


def make_sample(folder: Path, *, seed: int, num_tickers: int, num_days: int) -> Path:
    """Write generated prices into the new folder `folder`, in Yahoo's form.

    Total returns are martingale differences: no forecast of them is better than zero. As in markets, their volatility
    comes in clusters (GARCH(1, 1), Bollerslev 1986) and they have a common factor. All but every third stock pay
    dividends, and the first splits in the middle, which Yahoo's columns show in finer fractions of a cent only.
    """
    import pandas as pd

    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it or choose another folder.")
    if num_tickers < 1 or num_days < 2:
        raise DataError(f"A sample needs at least 1 ticker and 2 days, not {num_tickers} and {num_days}.")
    days = pd.bdate_range("2010-01-04", periods=num_days, name="Date")
    columns = _simulate(np.random.default_rng(seed), num_tickers, num_days)
    with building(folder) as draft:
        for i in range(num_tickers):
            table = pd.DataFrame({name: values[:, i] for name, values in columns.items()}, index=days)
            table.to_csv(draft / f"GEN{i:02d}.csv", float_format="%.6f", date_format="%Y-%m-%d")
        write_origin(
            draft,
            f"{GENERATED}, seed {seed}: {num_tickers} tickers on {num_days:,} days in the form of Yahoo Finance",
            "Random walks: nothing in them can be forecast but the size of the moves.",
        )
    return folder


def load_sample(seed: int = 0, num_tickers: int = 10, num_days: int = 2_000) -> PriceDataset:
    """Return generated prices, written in the cache by whichever process comes first."""
    _require("pandas")
    folder = cache_dir() / "samples" / f"stocks-v{SAMPLE_VERSION}-seed{seed}-{num_tickers}-{num_days}" / "prices"
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(folder, seed=seed, num_tickers=num_tickers, num_days=num_days)
    try:
        return load_prices(folder)
    except DataError as error:
        raise DataError(f"The cached sample is damaged. Remove the folder {folder.parent}. ({error})") from error


def _checked(tickers: Sequence[str]) -> list[str]:
    """Return the tickers in capitals, each once and sorted."""
    if not tickers:
        raise UsageError("No tickers are named.")
    found = sorted({ticker.strip().upper() for ticker in tickers})
    for ticker in found:
        # They become names of files.
        if not _TICKER.fullmatch(ticker):
            raise UsageError(f"{ticker!r} is no ticker: expected up to 20 letters, digits and . - = ^, such as BRK-B.")
    return found


def _load_yahoo(tickers: list[str], start: date, end: date | None, offline: bool) -> PriceDataset:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    end = min(end or yesterday, yesterday)
    if start > end:
        raise UsageError(f"The first day {start} is after {end}, the last day whose prices are settled.")
    folder = cache_dir() / "stocks"
    findings, prices = _Findings(), {}
    for i, ticker in enumerate(tickers, start=1):
        path = folder / f"{ticker}_{start}_{end}.csv"
        if not path.exists() and not is_offline(offline):
            say(f"Prices of {ticker} from Yahoo Finance ({i} of {len(tickers)})")
        source = YahooHistory("Yahoo Finance", ticker, start, end)
        fetch([source], path, offline=offline, retry=YAHOO_RETRY, advice=_ADVICE)
        try:
            prices[ticker] = _between(ticker, _read(path, findings, as_ticker=ticker)[ticker], start, end)
        except DataError as error:
            raise DataError(f"{error} Remove {path} to download it again.") from error
    return _finish("real", f"Yahoo Finance, {start} to {end} ({folder})", prices, findings)


def _load_local(folder: Path, tickers: list[str] | None, start: date | None, end: date | None) -> PriceDataset:
    files = sorted(path for path in folder.glob("*.csv*") if path.suffix in (".csv", *DECOMPRESS))
    if folder.is_file():
        files = [folder]
    findings = _Findings()
    found: dict[str, tuple[Path, pd.DataFrame]] = {}
    for path in files:
        for ticker, table in _read(path, findings, tickers).items():
            if ticker in found:
                raise DataError(f"{ticker} is both in {found[ticker][0]} and in {path}. Remove one of them.")
            found[ticker] = (path, table)
    lacking = [ticker for ticker in tickers or () if ticker not in found]
    if lacking or not found:
        what = ", ".join(lacking) or "prices"
        raise DataError(f"No {what} in {folder}, which {listing(folder)}. What to do: {_ADVICE}.")
    prices = {ticker: _between(ticker, found[ticker][1], start, end) for ticker in sorted(found)}
    origin = read_origin(folder)
    is_sample = origin is not None and origin.startswith(GENERATED)
    return _finish("sample" if is_sample else "real", f"{origin or 'local files'} ({folder})", prices, findings)


def _finish(
    kind: Literal["real", "sample"], source: str, prices: dict[str, "pd.DataFrame"], findings: _Findings
) -> PriceDataset:
    import pandas as pd

    calendar = pd.DatetimeIndex(sorted(set().union(*(table.index for table in prices.values()))))
    for ticker, table in prices.items():
        num_days = len(calendar[(calendar >= table.index[0]) & (calendar <= table.index[-1])])
        findings.absent[ticker] = num_days - len(table)
    return PriceDataset("stocks", kind, source, findings.notes(), prices)


def _between(ticker: str, table: "pd.DataFrame", start: date | None, end: date | None) -> "pd.DataFrame":
    chosen = table.truncate(before=start, after=end)
    if chosen.empty:
        raise DataError(
            f"{ticker} has no trading days from {start or 'the beginning'} to {end or 'the end'}: its prices go from "
            f"{table.index[0].date()} to {table.index[-1].date()}."
        )
    return chosen


def _read(
    path: Path, findings: _Findings, tickers: Sequence[str] | None = None, as_ticker: str | None = None
) -> dict[str, "pd.DataFrame"]:
    """Read the tickers that one file has, or those of them that are wanted."""
    text = read_text(path)
    columns = [name.strip() for name in text.split("\n", 1)[0].split(",")]
    if "Ticker" in columns:
        return _read_quandl(path, text, findings, tickers)
    ticker = as_ticker or path.name.split(".csv")[0].upper()
    if tickers is not None and ticker not in tickers:
        return {}
    table = _parse(path, text, ["Date", *YAHOO])
    rows = _numbers(path, table, YAHOO)
    rows.insert(0, "date", _dates(path, table["Date"]))
    return {ticker: _series(path, ticker, _distinct(path, ticker, rows, findings), findings)}


def _read_quandl(
    path: Path, text: str, findings: _Findings, tickers: Sequence[str] | None
) -> dict[str, "pd.DataFrame"]:
    """Read Quandl's WIKI table, whose prices are as traded, and adjust them for later splits, as Yahoo's are."""
    table = _parse(path, text, ["Ticker", "Date", *QUANDL, "Split Ratio"])
    table["Ticker"] = table["Ticker"].str.strip().str.upper()
    if (table["Ticker"] == "").any():
        raise DataError(f"{path}, line {(table['Ticker'] == '').idxmax()}: Ticker is empty.")
    if tickers is not None:
        table = table[table["Ticker"].isin(tickers)]
    everything = _numbers(path, table, {**QUANDL, "Split Ratio": "split_ratio"})
    everything.insert(0, "date", _dates(path, table["Date"]))
    series = {}
    for ticker, unordered in everything.groupby(table["Ticker"]):
        rows = _distinct(path, ticker, unordered, findings)
        # The ratio stands on the first day after the split, and concerns the days before it.
        split = rows["split_ratio"].fillna(1.0)[::-1].cumprod()[::-1].shift(-1, fill_value=1.0)
        rows[list(PRICES.values())] = rows[list(PRICES.values())].div(split, axis=0)
        rows["volume"] *= split
        series[ticker] = _series(path, ticker, rows, findings)
    return series


def _parse(path: Path, text: str, columns: Sequence[str]) -> "pd.DataFrame":
    """Return these columns as text, with the numbers of the lines as index."""
    import pandas as pd

    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, na_filter=False, skip_blank_lines=False)
    except pd.errors.ParserError as error:
        raise DataError(f"{path} is no sound CSV file: {_one_line(error)}.") from error
    table.columns = table.columns.str.strip()
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        raise DataError(
            f"{path} lacks the column {lacking[0]}: it has {', '.join(table.columns)[:200]}, expected "
            f"{', '.join(columns)}."
        )
    if not isinstance(table.index, pd.RangeIndex):
        raise DataError(f"{path}: its rows have more fields than its header.")
    table.index = pd.RangeIndex(2, len(table) + 2)
    table = table[list(columns)].fillna("")
    return table[(table != "").any(axis=1)]


def _numbers(path: Path, table: "pd.DataFrame", columns: dict[str, str]) -> "pd.DataFrame":
    """Return columns of text as float64 under their new names; NaN where a number is missing."""
    import pandas as pd

    numbers = {}
    for name, new_name in columns.items():
        text = table[name].str.strip()
        missing = text.str.lower().isin(MISSING)
        values = pd.to_numeric(text.mask(missing), errors="coerce").astype(np.float64)
        wrong = ~np.isfinite(values) & ~missing
        if wrong.any():
            line = wrong.idxmax()
            raise DataError(f"{path}, line {line}: {name} is {text[line][:40]!r}, expected a number.")
        bad = values < 0 if name == "Volume" else values <= 0
        if bad.any():
            line = bad.idxmax()
            raise DataError(
                f"{path}, line {line}: {name} is {text[line][:40]}, expected "
                f"{'at least 0' if name == 'Volume' else 'more than 0'}."
            )
        numbers[new_name] = values
    return pd.DataFrame(numbers)


def _dates(path: Path, text: "pd.Series") -> "pd.Series":
    import pandas as pd

    # Some write the time of day, with the time zone of the exchange; the day is what counts.
    days = pd.to_datetime(text.str.strip().str[:10], format="%Y-%m-%d", errors="coerce")
    if days.isna().any():
        line = days.isna().idxmax()
        raise DataError(f"{path}, line {line}: Date is {text[line][:40]!r}, expected a day such as 2024-12-31.")
    return days


def _distinct(path: Path, ticker: str, rows: "pd.DataFrame", findings: _Findings) -> "pd.DataFrame":
    """Return the rows in the order of their days, each once."""
    distinct = rows.drop_duplicates().sort_values("date", kind="stable")
    findings.repeated[ticker] += len(rows) - len(distinct)
    same_day = distinct["date"].duplicated(keep=False)
    if same_day.any():
        first, second = distinct.index[same_day][:2]
        raise DataError(
            f"{path}, lines {first} and {second}: two different rows of {ticker} for "
            f"{distinct.loc[first, 'date'].date()}. Keep one of them."
        )
    return distinct


def _series(path: Path, ticker: str, rows: "pd.DataFrame", findings: _Findings) -> "pd.DataFrame":
    series = rows.set_index("date")[list(COLUMNS)].dropna()
    findings.incomplete[ticker] += len(rows) - len(series)
    if series.empty:
        raise DataError(f"{path} holds no complete row of {ticker}.")
    return series


def _simulate(rng: np.random.Generator, num_tickers: int, num_days: int) -> dict[str, np.ndarray]:
    """Return Yahoo's columns, each of shape (num_days, num_tickers)."""
    shape = (num_days, num_tickers)
    market, market_variance = _garch(rng, np.array([0.009]), num_days)
    own, own_variance = _garch(rng, rng.uniform(0.008, 0.018, num_tickers), num_days)
    exposure = rng.uniform(0.6, 1.4, num_tickers)
    variance = exposure**2 * market_variance + own_variance
    # With normal shocks, the second term makes the expected growth exactly one.
    total_return = exposure * market + own - variance / 2

    is_ex_date = (np.arange(num_days)[:, None] + rng.integers(0, 63, num_tickers)) % 63 == 62
    dividend_yield = np.where(is_ex_date & (np.arange(num_tickers) % 3 != 2), 0.006, 0.0)
    split = np.ones(shape)
    split[: num_days // 2, 0] = 4.0
    unrounded = rng.uniform(40, 200, num_tickers) * np.exp(np.cumsum(total_return + np.log1p(-dividend_yield), axis=0))
    # Overnight comes a fifth of the variance: the path is that of a Brownian bridge from close to close.
    overnight = 0.2 * total_return + np.sqrt(0.16 * variance) * rng.standard_normal(shape)
    opening = unrounded * np.exp(overnight - total_return)
    reach = np.exp(0.4 * np.sqrt(variance) * np.abs(rng.standard_normal((2, *shape))))
    quotes = {
        "Open": opening,
        "High": np.maximum(opening, unrounded) * reach[0],
        "Low": np.minimum(opening, unrounded) / reach[1],
        "Close": unrounded,
    }
    # Traded in cents, before the split at four times the price.
    columns = {name: np.maximum(np.round(values * split, 2), 0.01) / split for name, values in quotes.items()}
    later_dividends = np.cumsum(np.log1p(-dividend_yield)[::-1], axis=0)[::-1] - np.log1p(-dividend_yield)
    columns["Adj Close"] = columns["Close"] * np.exp(later_dividends)
    activity = np.abs(total_return) / np.sqrt(variance)
    columns["Volume"] = np.round(np.exp(rng.normal(14 + 0.3 * activity, 0.3))).astype(np.int64)
    return columns


def _garch(rng: np.random.Generator, volatility: np.ndarray, num_days: int) -> tuple[np.ndarray, np.ndarray]:
    """Return shocks with clustered variance, and the variances known on the eve; both of shape (num_days, N).

    Args:
        rng: The only source of chance.
        volatility: Long-run standard deviation, shape (N,).
        num_days: How many.
    """
    reaction, persistence = 0.09, 0.89
    variance = np.empty((num_days, len(volatility)))
    shocks = np.empty_like(variance)
    current = volatility**2
    for day in range(num_days):
        variance[day] = current
        shocks[day] = np.sqrt(current) * rng.standard_normal(len(volatility))
        current = (1 - reaction - persistence) * volatility**2 + reaction * shocks[day] ** 2 + persistence * current
    return shocks, variance


@contextlib.contextmanager
def _raising_yfinance() -> Iterator[None]:
    """Let yfinance raise what goes wrong: left to itself, it prints that and returns an empty table."""
    import yfinance

    logger = logging.getLogger("yfinance")
    level, hide = logger.level, yfinance.config.debug.hide_exceptions
    logger.setLevel(logging.CRITICAL)
    yfinance.config.debug.hide_exceptions = False
    try:
        yield
    finally:
        logger.setLevel(level)
        yfinance.config.debug.hide_exceptions = hide


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise SourceError(f"needs the package {error.name}: pip install 'trainyard-shared[yahoo]'") from error


def _most(counts: Counter[str]) -> str:
    shown = ", ".join(f"{ticker} {count:,}" for ticker, count in (+counts).most_common(5))
    return f"{shown}, ..." if len(+counts) > 5 else shown


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@config_dataclass(frozen=True, kw_only=True, config=CONFIG)
class PricesConfig(DownloadConfig):
    """Which prices to download."""

    tickers: tuple[str, ...] = ()
    """stocks, in Yahoo's spelling, such as AAPL BRK-B"""
    start: Day | None = None
    """first day; default: as early as there are prices"""
    end: Day | None = None
    """last day; default: yesterday, since today's prices may still change"""


def _download(config: PricesConfig) -> str:
    if not config.tickers:
        raise UsageError("error: --tickers: name the stocks to download, such as AAPL MSFT")
    data = load_prices(None, config.tickers, config.start, config.end, offline=config.offline)
    return "; ".join([data.source, f"{len(data.prices)} tickers", *data.notes])


def _check(path: Path) -> str:
    (table,) = load_prices(path).prices.values()
    return f"{len(table):,} days from {table.index[0].date()} to {table.index[-1].date()}"


ENTRIES = (
    Entry(
        name="stocks",
        title="daily prices of stocks",
        task="forecasting of time series",
        size="open, high, low, close, adjusted close and volume of each day, for the tickers and days asked for",
        licence=LICENCE,
        terms="Yahoo's prices are for your own use: do not pass them on",
        citation=CITATION,
        places=(Place("Yahoo Finance", (File(YahooHistory("Yahoo Finance", "TICKER", EARLIEST, EARLIEST)),)),),
        verified="nobody publishes checksums: every row is read and checked when it arrives, and sealed with a sha256",
        folder="stocks",
        contents=("*.csv",),
        download=_download,
        check=_check,
        options=PricesConfig,
    ),
)
