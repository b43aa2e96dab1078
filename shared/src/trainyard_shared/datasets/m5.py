"""M5: unit sales of products in Walmart's stores, from Kaggle, copies of its files or a local folder, and generated.

Three files: `calendar.csv` with a row for each day, `sales_train_evaluation.csv` (or `_validation`, 28 days shorter)
with a row for each of 30,490 products in stores and a column `d_1`, `d_2`, ... for each day, and `sell_prices.csv` with
a row for each product, store and week. The organisers' own copies lack the columns `d` and `id` and write NA for no
event; they are read as well. Sales are read into int16 and prices into float32 arrays, a block of the file at a time.
"""

import csv
import datetime
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.datasets import shops
from trainyard_shared.datasets.archives import extract
from trainyard_shared.datasets.entry import DownloadConfig, Entry, File, Place
from trainyard_shared.datasets.fetch import (
    HttpFile,
    HubFile,
    KaggleFile,
    Source,
    SourceError,
    building,
    cache_dir,
    download,
    file_digest,
    is_offline,
    locked,
    record_checksums,
    say,
    try_in_order,
)
from trainyard_shared.datasets.tables import GENERATED, decode, listing, read_origin, read_text, write_origin
from trainyard_shared.errors import DataError
from trainyard_shared.wrmsse import Hierarchy

LICENCE = "the rules of the Kaggle competition m5-forecasting-accuracy: for the competition, research and education"
CITATION = (
    "Makridakis, Spiliotis & Assimakopoulos (2022), The M5 competition: Background, organization, and implementation, "
    "International Journal of Forecasting 38, 1325-1336"
)

TITLE = "M5"
NUM_SERIES = 30_490
NUM_SERIES, NUM_DAYS, HORIZON = 30_490, 1_941, 28
CALENDAR, PRICES = "calendar.csv", "sell_prices.csv"
SALES = {"evaluation": "sales_train_evaluation.csv", "validation": "sales_train_validation.csv"}
STATES = ("CA", "TX", "WI")

# The competition's files: size and sha256.
ORIGINALS = {
    CALENDAR: (103_469, "d12b5914ef03e66649adf5dd9e996e6602251c22b7a6af8f1f7e3aa12f8860f5"),
    SALES["evaluation"]: (121_736_518, "4b4a47c44c38380d2a9168216fea8c9ff2f31b1ddb772f8a0995952a038b8aa0"),
    PRICES: (203_395_785, "9da3ad1f8b8ccacdbdc70612191dd375ec24a4ac6625c24b75b3bc60b0bed2ef"),
}
COMPETITION = "m5-forecasting-accuracy"
KAGGLE = {name: KaggleFile("Kaggle", COMPETITION, name, competition=True) for name in ORIGINALS}
HUB_REPO = "denephew/M5_Forecasting"
HUB = {
    name: HubFile("a copy on the Hugging Face Hub", HUB_REPO, name, "727e8b594ced7825091038cb47823bd3dccdd806")
    for name in ORIGINALS
}
# The organisers' files, where datasetsforecast gets them; what git calls the archive is its checksum.
NIXTLA = HttpFile("Nixtla's copy", "https://github.com/Nixtla/m5-forecasts/raw/main/datasets/m5.zip")
NIXTLA_BLOB = "925e92ee03cdb83c54a1dbbc12260a3b1939753c"
ZENODO = HttpFile("Zenodo", "https://zenodo.org/records/12636070/files/m5-forecasting-accuracy.zip")
ZENODO_MD5 = "86f57416a314197f40a17cc6fc60cbb4"

# Part of the name of cached samples: raise it whenever the same seed gives other sales.
SAMPLE_VERSION = 1
_ADVICE = (
    f"accept the rules at https://www.kaggle.com/competitions/{COMPETITION}/rules, then download and unpack "
    f"{CALENDAR}, {SALES['evaluation']} and {PRICES} by hand and pass their folder as --data-dir"
)
_CALENDAR_COLUMNS = (
    "date",
    "wm_yr_wk",
    "event_name_1",
    "event_type_1",
    "event_name_2",
    "event_type_2",
    *(f"snap_{state}" for state in STATES),
)
_SERIES_COLUMNS = ("item_id", "dept_id", "cat_id", "store_id", "state_id")
_PRICE_COLUMNS = ("store_id", "item_id", "wm_yr_wk", "sell_price")
_NO_EVENT = ("", "NA", "nan")
_DAY = re.compile(r"d_([1-9]\d{0,4})")
_MOST_UNITS = int(np.iinfo(np.int16).max)
_BLOCK_BYTES = 1 << 23


@dataclass(frozen=True)
class Calendar:
    """D days, one after the other: the history and, usually, the 28 days to forecast.

    `dates` (D,) datetime64[D]; `weeks` (D,) int64 are Walmart's numbers of the weeks, which begin on Saturday.
    `events` and `event_types` (D, 2) are strings, empty for no event. `snap` (D, 3) bool says whether food stamps could
    be used, in the order of `STATES`.
    """

    dates: NDArray[np.datetime64]
    weeks: NDArray[np.int64]
    events: NDArray[np.str_]
    event_types: NDArray[np.str_]
    snap: NDArray[np.bool_]

    @cached_property
    def distinct_weeks(self) -> NDArray[np.int64]:
        """The numbers of the W weeks, in order, (W,)."""
        return np.unique(self.weeks)

    @cached_property
    def week_of_day(self) -> NDArray[np.int64]:
        """Position of each day's week among the W weeks, (D,)."""
        return np.searchsorted(self.distinct_weeks, self.weeks)


@dataclass(frozen=True)
class Sales:
    """Units sold of N products in stores on T days: `units` (N, T) int16, beginning with day `first_day` (1 is d_1).

    `item`, `dept`, `cat`, `store` and `state` are N strings each.
    """

    item: tuple[str, ...]
    dept: tuple[str, ...]
    cat: tuple[str, ...]
    store: tuple[str, ...]
    state: tuple[str, ...]
    units: NDArray[np.int16]
    first_day: int

    @property
    def names(self) -> list[str]:
        """Names of the series as in the competition, without `_validation` or `_evaluation`, N of them."""
        return [f"{item}_{store}" for item, store in zip(self.item, self.store, strict=True)]

    @property
    def last_day(self) -> int:
        """Number of the last day."""
        return self.first_day + self.units.shape[1] - 1

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """The 12 levels that the series add up to."""
        return Hierarchy.of(item=self.item, dept=self.dept, cat=self.cat, store=self.store, state=self.state)

    @cached_property
    def first_sale(self) -> NDArray[np.int64]:
        """Column of each series' first sale, (N,); T where nothing was sold. Zeros before it are no demand."""
        sold = self.units != 0
        return np.where(sold.any(axis=1), sold.argmax(axis=1), self.units.shape[1])


@dataclass(frozen=True)
class M5Dataset:
    """Sales, calendar and prices, whole in memory (about 160 MB for M5).

    `prices` (N, W) float32 are those of each series in each week of the calendar, NaN where it has none: the product
    was not on sale. `kind` says whether they are the real data set or a generated sample, `source` where they come
    from, for people, and `notes` what is to be known of them, with counts.
    """

    name: str
    kind: Literal["real", "sample"]
    source: str
    sales: Sales
    calendar: Calendar
    prices: NDArray[np.float32]
    notes: tuple[str, ...]

    def price_of_days(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return the price of each series on the days in columns `begin` to `end` of the calendar, (N, end - begin)."""
        return self.prices[:, self.calendar.week_of_day[begin:end]]


def load_m5(folder: Path | None = None, *, offline: bool = False) -> M5Dataset:
    """Return the data set.

    Args:
        folder: Holds `calendar.csv`, `sell_prices.csv` and `sales_train_evaluation.csv` or, without that one,
            `sales_train_validation.csv`; by default the cache, filled from Kaggle (with the user's credentials) or one
            of the copies of its files.
        offline: Do not use the network (also TRAINYARD_OFFLINE=1).

    Raises:
        DataError: the data cannot be had, a file is not of the expected form, or the three do not go together.
    """
    if folder is not None:
        return _load_local(Path(folder))
    cached = cache_dir() / "m5" / "sales"
    if data := _read_cached(cached):
        return data
    with locked(cached):
        if data := _read_cached(cached):
            return data
        if is_offline(offline) and cached.exists():
            return _load_local(cached)  # which says what is wrong
        shutil.rmtree(cached, ignore_errors=True)
        _obtain(cached, offline)
    return _load_local(cached)


def make_sample(folder: Path, *, seed: int, num_items: int, num_days: int) -> Path:
    """Write generated sales, calendar and prices into the new folder `folder`; see `shops.py`.

    Every product is in 10 stores. 3,049 items and 1,941 days are the size of the real data set.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it or choose another folder.")
    if num_items < len(shops.DEPARTMENTS) or not 2 * HORIZON <= num_days <= NUM_DAYS:
        raise DataError(
            f"A sample needs at least {len(shops.DEPARTMENTS)} items, one a department, and {2 * HORIZON} to "
            f"{NUM_DAYS:,} days, not {num_items} and {num_days:,}."
        )
    _require_pyarrow()
    with building(folder) as draft:
        shops.write(
            draft / CALENDAR, draft / SALES["evaluation"], draft / PRICES, seed=seed, sizes=(num_items, num_days)
        )
        write_origin(
            draft,
            f"{GENERATED}, seed {seed}: {num_items:,} products in {len(shops.STORES)} stores on {num_days:,} days in "
            f"the form of {TITLE}",
            "Made by a simulation, not in a shop: results on them say nothing about the real M5.",
        )
    return folder


def load_sample(seed: int = 0, num_items: int = 21, num_days: int = 760) -> M5Dataset:
    """Return generated sales, written in the cache by whichever process comes first."""
    folder = cache_dir() / "samples" / f"m5-v{SAMPLE_VERSION}-seed{seed}-{num_items}-{num_days}" / "sales"
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(folder, seed=seed, num_items=num_items, num_days=num_days)
    try:
        return _load_local(folder)
    except DataError as error:
        raise DataError(f"The cached sample is damaged. Remove the folder {folder.parent}. ({error})") from error


def carry_forward(prices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill gaps in prices (N, W) with the last one before; before its first price a series keeps NaN."""
    known = ~np.isnan(prices)
    last = np.maximum.accumulate(np.where(known, np.arange(prices.shape[1]), 0), axis=1)
    return np.take_along_axis(prices, last, axis=1)


def read_calendar(path: Path) -> Calendar:
    """Read `calendar.csv`, with or without its column `d`.

    Raises:
        DataError: names the file, the line and the column that are wrong.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        header = next(rows)
        at = _columns(path, header, _CALENDAR_COLUMNS)
        days = []
        for row in rows:
            if row:
                if len(row) != len(header):
                    raise DataError(f"{path}, line {rows.line_num}: {len(row)} columns, expected {len(header)}.")
                days.append((rows.line_num, row))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}.") from error
    if not days:
        raise DataError(f"{path} holds no days.")
    dates, weeks = [], []
    snap = np.zeros((len(days), len(STATES)), bool)
    for index, (line, row) in enumerate(days):
        where = f"{path}, line {line}"
        dates.append(_date(where, row[at["date"]]))
        if index and dates[index] != dates[index - 1] + datetime.timedelta(days=1):
            raise DataError(
                f"{where}: {dates[index]} follows {dates[index - 1]}: days must be one after the other, none left out."
            )
        if "d" in at and row[at["d"]] != f"d_{index + 1}":
            raise DataError(f"{where}: d is {row[at['d']][:20]!r}, expected d_{index + 1}.")
        weeks.append(_whole(where, "wm_yr_wk", row[at["wm_yr_wk"]], 0, 99_999))
        if index and weeks[index] < weeks[index - 1]:
            raise DataError(f"{where}: week {weeks[index]} follows week {weeks[index - 1]}.")
        for state_index, state in enumerate(STATES):
            snap[index, state_index] = _whole(where, f"snap_{state}", row[at[f"snap_{state}"]], 0, 1)
    events, types = (
        np.array(
            [["" if row[at[f"{name}_{i}"]] in _NO_EVENT else row[at[f"{name}_{i}"]] for i in (1, 2)] for _, row in days]
        )
        for name in ("event_name", "event_type")
    )
    return Calendar(np.array(dates, "datetime64[D]"), np.array(weeks, np.int64), events, types, snap)


def read_sales(path: Path) -> Sales:
    """Read a file in the form of `sales_train_evaluation.csv`, with or without its column `id`, from any day on.

    Raises:
        DataError: names the file, the line and the column that are wrong.
    """
    path = Path(path)
    header = _header(path)
    at = _columns(path, header, _SERIES_COLUMNS)
    days = [int(match[1]) for name in header if (match := _DAY.fullmatch(name))]
    if not days:
        raise DataError(f"{path} has no columns d_1, d_2, ...; its columns are {', '.join(header)[:200]}.")
    if unknown := [name for name in header if not _DAY.fullmatch(name) and name not in ("id", *_SERIES_COLUMNS)]:
        raise DataError(
            f"{path} has a column {unknown[0][:40]!r}; expected id, {', '.join(_SERIES_COLUMNS)}, d_1, d_2, ..."
        )
    for before, day in pairwise(days):
        if day != before + 1:
            raise DataError(
                f"{path}: column d_{day} follows d_{before}: days must be one after the other, none left out."
            )
    import pyarrow as pa

    first = header.index(f"d_{days[0]}")
    types = {name: pa.int16() if _DAY.fullmatch(name) else pa.string() for name in header}
    labels: dict[str, list[str]] = {name: [] for name in header if name in at}
    blocks = []
    try:
        for batch in _batches(path, types):
            for name, values in labels.items():
                values += batch.column(at[name]).to_pylist()
            columns = [batch.column(first + index).to_numpy() for index in range(len(days))]
            blocks.append(np.ascontiguousarray(np.stack(columns).T))
            if (blocks[-1] < 0).any():
                raise DataError(f"{path} has negative sales.")
    except (pa.ArrowException, DataError) as error:
        raise _explain(path, error, _sales_check(header)) from error
    if not blocks or not len(labels["item_id"]):
        raise DataError(f"{path} holds no series.")
    item, dept, cat, store, state = (tuple(labels[name]) for name in _SERIES_COLUMNS)
    sales = Sales(item, dept, cat, store, state, np.concatenate(blocks), days[0])
    if "id" in at:
        _check_names(path, labels["id"], sales)
    try:
        sales.hierarchy  # noqa: B018  # checks that the series are distinct and nested
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return sales


def read_prices(path: Path, sales: Sales, calendar: Calendar) -> tuple[NDArray[np.float32], int]:
    """Read `sell_prices.csv`: the price of each series in each week of the calendar, (N, W), NaN where there is none.

    Returns:
        The prices, and how many rows are of products or stores that are not among the sales.

    Raises:
        DataError: names the file, the line and the column that are wrong, or a series without any price.
    """
    path = Path(path)
    header = _header(path)
    _columns(path, header, _PRICE_COLUMNS)
    import pyarrow as pa

    word = pa.dictionary(pa.int32(), pa.string())
    types = {"store_id": word, "item_id": word, "wm_yr_wk": pa.int32(), "sell_price": pa.float32()}
    items, stores = (
        {name: index for index, name in enumerate(dict.fromkeys(names))} for names in (sales.item, sales.store)
    )
    # One row and one column more, all -1: what is not among the sales has the index -1.
    series_of = np.full((len(items) + 1, len(stores) + 1), -1, np.int64)
    series_of[[items[name] for name in sales.item], [stores[name] for name in sales.store]] = np.arange(len(sales.item))
    prices = np.full((len(sales.item), len(calendar.distinct_weeks)), np.nan, np.float32)
    num_rows, num_other = 0, 0
    try:
        for batch in _batches(path, types):
            columns = {name: batch.column(index) for index, name in enumerate(batch.schema.names)}
            series = series_of[_codes(columns["item_id"], items), _codes(columns["store_id"], stores)]
            weeks, price = columns["wm_yr_wk"].to_numpy(), columns["sell_price"].to_numpy()
            week = np.searchsorted(calendar.distinct_weeks, weeks).clip(max=prices.shape[1] - 1)
            if (calendar.distinct_weeks[week] != weeks).any() or not ((price > 0) & (price < np.inf)).all():
                raise DataError(f"{path} has a week or a price that cannot be.")
            known = series >= 0
            prices[series[known], week[known]] = price[known]
            num_rows, num_other = num_rows + int(known.sum()), num_other + int((~known).sum())
        if num_rows != np.isfinite(prices).sum():
            raise DataError(f"{path} has several prices for the same item, store and week.")
    except (pa.ArrowException, DataError) as error:
        raise _explain(path, error, _price_check(header, calendar)) from error
    without = np.flatnonzero(np.isnan(prices).all(axis=1))
    if len(without):
        raise DataError(
            f"{path}: {len(without):,} of the {len(prices):,} series have no price in any week, first "
            f"{sales.item[without[0]]} in {sales.store[without[0]]}; the file has {num_rows + num_other:,} rows."
        )
    return prices, num_other


def read_weights(path: Path, hierarchy: Hierarchy) -> NDArray[np.float64]:
    """Read the organisers' `weights_validation.csv` or `weights_evaluation.csv`: the weights of the S series, (S,).

    Raises:
        DataError: names the file and the line that is wrong, or a series without weight.
    """
    levels = {f"Level{number}": number for number in range(1, 13)}
    of_key = {
        (number, frozenset(key)): index
        for number in levels.values()
        for index, key in enumerate(hierarchy.keys[hierarchy.level(number)], start=hierarchy.level(number).start)
    }
    weights = np.full(hierarchy.num_series, np.nan)
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        header = next(rows)
        at = _columns(path, header, ("Level_id", "Agg_Level_1", "Agg_Level_2", "weight"))
        for row in rows:
            if not row:
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} columns, expected {len(header)}.")
            level, *parts = (row[at[name]] for name in ("Level_id", "Agg_Level_1", "Agg_Level_2"))
            # X stands for nothing more; the order of the two parts is not that of the keys at every level.
            key = (levels.get(level, 0), frozenset(part for part in parts if part not in ("X", "Total")))
            if (index := of_key.get(key)) is None:
                raise DataError(f"{where}: there is no series {', '.join((level, *parts))[:80]} among the sales.")
            try:
                weights[index] = float(row[at["weight"]])
            except ValueError:
                raise DataError(f"{where}: weight is {row[at['weight']][:20]!r}, expected a number.") from None
            if not 0 <= weights[index] <= 1:
                raise DataError(f"{where}: weight is {weights[index]:g}, expected 0 to 1.")
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}.") from error
    if (missing := np.flatnonzero(np.isnan(weights))).size:
        raise DataError(
            f"{path}: {len(missing):,} of {len(weights):,} series have no weight, first "
            f"{', '.join(hierarchy.keys[missing[0]]) or 'the total'}."
        )
    return weights


def write_submission(path: Path, names: Sequence[str], validation: ArrayLike, evaluation: ArrayLike) -> None:
    """Write forecasts as Kaggle wants them: 28 columns F1 to F28, the validation rows of all series, then evaluation.

    Args:
        path: The csv file to write.
        names: Names of the series, N of them; see `Sales.names`.
        validation: Forecasts, or by now the actual values, of d_1914 to d_1941, (N, 28).
        evaluation: Forecasts of d_1942 to d_1969, (N, 28).
    """
    tables = {}
    for phase, values in (("validation", validation), ("evaluation", evaluation)):
        tables[phase] = np.asarray(values, np.float64)
        if tables[phase].shape != (len(names), HORIZON):
            raise ValueError(f"{phase} must have the shape ({len(names)}, {HORIZON}), found {tables[phase].shape}")
        if not (np.isfinite(tables[phase]) & (tables[phase] >= 0)).all():
            raise ValueError(f"{phase} holds NaN, infinite or negative forecasts, which Kaggle does not take")
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(["id", *(f"F{day}" for day in range(1, HORIZON + 1))]) + "\n")
        for phase, table in tables.items():
            for name, row in zip(names, table.tolist(), strict=True):
                file.write(f"{name}_{phase},{','.join(map(_short, row))}\n")


def _short(value: float) -> str:
    """Write a number so that it can be read back exactly, a whole one without its point."""
    return repr(value).removesuffix(".0")


def _read_cached(folder: Path) -> M5Dataset | None:
    if not folder.exists():
        return None
    try:
        return _load_local(folder)
    except DataError as error:
        say(str(error))
        return None


def _load_local(folder: Path) -> M5Dataset:
    sales_file = next((folder / name for name in SALES.values() if (folder / name).is_file()), None)
    missing = [name for name in (CALENDAR, PRICES) if not (folder / name).is_file()]
    if sales_file is None:
        missing.insert(1 if CALENDAR in missing else 0, f"{SALES['evaluation']} (or {SALES['validation']})")
    if sales_file is None or missing:
        raise DataError(
            f"{TITLE} in {folder} is not whole: {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing; "
            f"the folder {listing(folder)}. What to do: {_ADVICE}."
        )
    _require_pyarrow()
    calendar, sales = read_calendar(folder / CALENDAR), read_sales(sales_file)
    num_days = len(calendar.dates)
    if sales.first_day != 1 or sales.last_day > num_days:
        raise DataError(
            f"{sales_file} has the days d_{sales.first_day} to d_{sales.last_day}, which do not match "
            f"{folder / CALENDAR} with d_1 to d_{num_days}: expected d_1 to at most d_{num_days}."
        )
    prices, num_other = read_prices(folder / PRICES, sales, calendar)
    origin = read_origin(folder)
    is_sample = origin is not None and origin.startswith(GENERATED)
    if origin is None:
        used = (CALENDAR, sales_file.name, PRICES)
        same = [name for name in used if _is_original(folder / name)]
        origin = f"local files, {', '.join(same) or 'none'} equal to the competition's"
    what = f"{len(sales.item):,} series, d_1 to d_{sales.last_day} of {sales_file.name}"
    return M5Dataset(
        name="m5",
        kind="sample" if is_sample else "real",
        source=f"{origin} ({folder})" if is_sample else f"{TITLE}, {what}, {origin} ({folder})",
        sales=sales,
        calendar=calendar,
        prices=prices,
        notes=tuple(_notes(sales, calendar, prices, num_other)),
    )


def _notes(sales: Sales, calendar: Calendar, prices: NDArray[np.float32], num_other: int) -> Iterator[str]:
    num_series, num_days = sales.units.shape
    leading = sales.first_sale
    yield (
        f"{(leading > 0).sum():,} of {num_series:,} series begin after d_1; {leading.sum() / sales.units.size:.1%} of "
        "all days are before a first sale"
    )
    if num_never := int((leading == num_days).sum()):
        yield f"{num_never:,} series were never sold"
    known = ~np.isnan(prices)
    begun = np.maximum.accumulate(known, axis=1)
    yield f"{(~begun).mean():.1%} of all weeks are before a first price"
    if num_gaps := int((begun & ~known).sum()):
        yield f"{num_gaps:,} weeks without a price after a first one"
    # One week at a time: the prices of all days would be larger than the sales.
    num_free = 0
    for week, begin in enumerate(np.searchsorted(calendar.week_of_day[:num_days], np.arange(prices.shape[1]))):
        end = np.searchsorted(calendar.week_of_day[:num_days], week, side="right")
        num_free += int(np.count_nonzero(sales.units[:, begin:end][~known[:, week]]))
    if num_free:
        yield f"{num_free:,} days with sales have no price: they count as no revenue"
    if num_other:
        yield f"{num_other:,} prices of products or stores that are not among the sales passed over"
    if num_series != NUM_SERIES:
        yield f"{num_series:,} series, where {TITLE} has {NUM_SERIES:,}"


def _is_original(path: Path) -> bool:
    size, sha256 = ORIGINALS.get(path.name, (-1, ""))
    return path.stat().st_size == size and file_digest(path, "sha256") == sha256


def _require_pyarrow() -> None:
    try:
        import pyarrow.csv  # noqa: F401
    except ImportError as error:
        raise DataError("M5 needs the package pyarrow: pip install 'trainyard-shared[m5]'") from error


# Reading


def _header(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    if not line.strip():
        raise DataError(f"{path} is empty, or begins with an empty line.")
    try:
        return next(csv.reader([decode(path, line).rstrip("\r\n")], strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}.") from error


def _columns(path: Path, header: list[str], wanted: Iterable[str]) -> dict[str, int]:
    """Return where the columns stand; DataError if one of those that are wanted is not there, or any is there twice."""
    if missing := [name for name in wanted if name not in header]:
        found = ", ".join(header[:12]) + (f" and {len(header) - 12:,} more" if len(header) > 12 else "")
        raise DataError(f"{path} has no column {', '.join(missing)}; its columns are {found[:300]}.")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path} has the column {twice[:40]!r} more than once.")
    return {name: index for index, name in enumerate(header)}


def _batches(path: Path, types: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the columns in `types` of a large csv file, in the order of the file, a block of rows at a time."""
    import pyarrow.csv

    reader = pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
        # Without null_values an empty field is no number, and an error.
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict(types), include_columns=list(types), null_values=[]
        ),
    )
    with reader:
        yield from reader


def _codes(column: Any, code_of: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the code of each word of a dictionary column, -1 for one that has none."""
    codes = np.array([code_of.get(word, -1) for word in column.dictionary.to_pylist()], np.int64)
    return codes[column.indices.to_numpy()]


def _explain(path: Path, error: Exception, wrong: Callable[[list[str]], str | None]) -> DataError:
    """Say which line made reading fail, by going through the file again, slowly: the fast reader does not know it."""
    # As the fast reader does it, a line ends at \r as well.
    with path.open(encoding="utf-8", errors="replace", newline=None) as file:
        for line, content in enumerate(file, start=1):
            if "\ufffd" in content:
                return DataError(f"{path}, line {line}: bytes that are not UTF-8. Save the file as UTF-8.")
            if content.count('"') % 2:
                return DataError(f"{path}, line {line}: a quote that is not closed.")
            text = content.rstrip("\n")
            if line == 1 or not text:
                continue
            with suppress(csv.Error):
                if (found := wrong(next(csv.reader([text])))) is not None:
                    return DataError(f"{path}, line {line}: {found}.")
    return DataError(f"{path} is not readable: {' '.join(str(error).split())[:300]}")


def _sales_check(header: list[str]) -> Callable[[list[str]], str | None]:
    """Return a function that says what is wrong with a row."""
    days = [(index, name) for index, name in enumerate(header) if _DAY.fullmatch(name)]
    item_at, store_at = header.index("item_id"), header.index("store_id")

    def check(row: list[str]) -> str | None:
        if len(row) != len(header):
            return f"{len(row):,} columns, expected {len(header):,}"
        for index, name in days:
            if not _is_whole(row[index].strip(), 0, _MOST_UNITS):
                return (
                    f"{row[item_at][:40]} in {row[store_at][:40]} on {name}: {row[index][:20]!r} units, expected a "
                    f"whole number from 0 to {_MOST_UNITS:,}"
                )
        return None

    return check


def _price_check(header: list[str], calendar: Calendar) -> Callable[[list[str]], str | None]:
    """Return a function that says what is wrong with a row, among them that it is there for the second time."""
    store_at, item_at, week_at, price_at = (header.index(name) for name in _PRICE_COLUMNS)
    weeks = {str(week) for week in calendar.distinct_weeks.tolist()}
    seen: set[int] = set()

    def check(row: list[str]) -> str | None:
        if len(row) != len(header):
            return f"{len(row)} columns, expected {len(header)}"
        what = f"{row[item_at][:40]} in {row[store_at][:40]}"
        if row[week_at].strip() not in weeks:
            return (
                f"{what}: wm_yr_wk is {row[week_at][:20]!r}, which the calendar does not have; its weeks are "
                f"{calendar.weeks[0]} to {calendar.weeks[-1]}"
            )
        if not _is_price(row[price_at]):
            return f"{what}: sell_price is {row[price_at][:20]!r}, expected a number above 0"
        key = hash((row[store_at], row[item_at], row[week_at]))
        if key in seen:
            return f"{what} has a second price in week {row[week_at][:20]}"
        seen.add(key)
        return None

    return check


def _is_price(word: str) -> bool:
    try:
        return 0 < float(word) < np.inf
    except ValueError:
        return False


def _check_names(path: Path, found: list[str], sales: Sales) -> None:
    for index, (name, expected) in enumerate(zip(found, sales.names, strict=True)):
        if name.removesuffix("_evaluation").removesuffix("_validation") != expected:
            raise DataError(
                f"{path}, series {index + 1:,}: the id is {name[:60]!r}, but item and store are {expected!r}: expected "
                f"{expected}_evaluation or {expected}_validation."
            )


def _date(where: str, word: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(word)
    except ValueError:
        raise DataError(f"{where}: date is {word[:20]!r}, expected one like 2011-01-29.") from None


def _is_whole(word: str, low: int, high: int) -> bool:
    return word.isascii() and word.isdecimal() and low <= int(word) <= high


def _whole(where: str, column: str, word: str, low: int, high: int) -> int:
    if not _is_whole(word, low, high):
        raise DataError(f"{where}: {column} is {word[:20]!r}, expected a whole number from {low} to {high}.")
    return int(word)


# Where the data come from


def _obtain(folder: Path, offline: bool) -> None:
    if is_offline(offline):
        raise DataError(
            f"{TITLE} is not in {folder}, and offline mode (TRAINYARD_OFFLINE) forbids a download. What to do: "
            f"{_ADVICE}."
        )
    _require_pyarrow()
    downloads = folder.with_name("downloads")
    attempts: list[tuple[str, Callable[[], None]]] = [
        (f"Kaggle ({COMPETITION})", partial(_from_files, KAGGLE, downloads, folder)),
        (f"a copy on the Hugging Face Hub ({HUB_REPO})", partial(_from_files, HUB, downloads, folder)),
        (f"{NIXTLA.name} ({NIXTLA.url})", partial(_from_nixtla, downloads, folder)),
        (f"{ZENODO.name} ({ZENODO.url})", partial(_from_zenodo, downloads, folder)),
    ]
    try_in_order(TITLE, attempts, _ADVICE)
    record_checksums(folder)
    shutil.rmtree(downloads, ignore_errors=True)


def _from_files(sources: Mapping[str, Source], downloads: Path, folder: Path) -> None:
    files = []
    for name, source in sources.items():
        size, sha256 = ORIGINALS[name]
        files.append(download(source, downloads / name, sha256=sha256, size_bytes=size))
    _keep(files, folder, f"{source.name} ({source.address})")


def _from_nixtla(downloads: Path, folder: Path) -> None:
    archive = download(NIXTLA, downloads / "nixtla.zip")
    content = archive.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if blob != NIXTLA_BLOB:
        archive.unlink()
        raise SourceError(f"what arrived is not the archive that is known: git blob {blob}, expected {NIXTLA_BLOB}")
    _from_archive(archive, downloads, folder, f"{NIXTLA.name} ({NIXTLA.url})")


def _from_zenodo(downloads: Path, folder: Path) -> None:
    archive = download(ZENODO, downloads / "zenodo.zip", md5=ZENODO_MD5)
    _from_archive(archive, downloads, folder, f"{ZENODO.name} ({ZENODO.url})")


def _from_archive(archive: Path, downloads: Path, folder: Path, origin: str) -> None:
    unpacked = downloads / archive.stem
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        extract(archive, unpacked, max_bytes=1 << 31, max_members=100)
    except DataError as error:
        raise SourceError(str(error)) from error
    files = [next(unpacked.rglob(name), None) for name in ORIGINALS]
    if None in files:
        raise SourceError(f"the archive holds no {list(ORIGINALS)[files.index(None)]}")
    _keep([path for path in files if path is not None], folder, origin)


def _keep(files: list[Path], folder: Path, origin: str) -> None:
    with building(folder) as draft:
        for path in files:
            path.rename(draft / path.name)
        write_origin(draft, origin)


def _download(config: DownloadConfig) -> str:
    return load_m5(offline=config.offline).source


def _check(folder: Path) -> str:
    data = _load_local(folder)
    if (found := data.sales.units.shape[0]) != NUM_SERIES:
        raise DataError(f"{folder} is not the whole data set: it has {found:,} of {NUM_SERIES:,} series")
    return data.source


def _originals(sources: Mapping[str, Source]) -> tuple[File, ...]:
    return tuple(File(source, f"sha256 {ORIGINALS[name][1]}", ORIGINALS[name][0]) for name, source in sources.items())


ENTRIES = (
    Entry(
        name="m5",
        title="M5: daily sales of Walmart",
        task="forecasting: 28 days of unit sales",
        size=f"{NUM_SERIES:,} series of products in stores over 1,941 days, with prices and a calendar",
        licence=LICENCE,
        terms="accept the competition's rules at Kaggle; the copies are of the same files",
        citation=CITATION,
        places=(
            Place("Kaggle", _originals(KAGGLE)),
            Place("a copy on the Hugging Face Hub", _originals(HUB)),
            Place(NIXTLA.name, (File(NIXTLA, f"git blob {NIXTLA_BLOB}"),)),
            Place(ZENODO.name, (File(ZENODO, f"md5 {ZENODO_MD5}"),)),
        ),
        verified="sha256 of each file, or checksum of the archive; the three files have to go together",
        folder="m5",
        contents=("sales",),
        download=_download,
        check=_check,
    ),
)
