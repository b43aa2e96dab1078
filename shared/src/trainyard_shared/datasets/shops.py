"""Simulate the sales of shops in the form of M5, as data to train on where no real data are at hand.

Products of seven departments are sold in ten stores of three states. What a product sells on a day is a count, negative
binomial about a mean that its own level, the store, the day of the week, the season, a slow growth, its price, food
stamps, events and shocks common to the department of a store make together. Most products sell less than one a day, so
most counts are 0; some are launched late, and now and then a shelf stays empty. On Christmas Day all is closed.

The calendar is the real one, week numbers and all, but for the events that follow the moon or a sports league.
"""

import csv
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HORIZON = 28
FIRST_DAY = datetime.date(2011, 1, 29)
# Weeks of Walmart's years from 2011 on, which begin on a Saturday at the end of January.
WEEKS_OF_YEAR = (52, 52, 53, 52, 52, 52)
# How many items each department has in M5.
DEPARTMENTS = {
    "HOBBIES_1": 416,
    "HOBBIES_2": 149,
    "HOUSEHOLD_1": 532,
    "HOUSEHOLD_2": 515,
    "FOODS_1": 216,
    "FOODS_2": 398,
    "FOODS_3": 823,
}
STORES = ("CA_1", "CA_2", "CA_3", "CA_4", "TX_1", "TX_2", "TX_3", "WI_1", "WI_2", "WI_3")
# Days of the month on which food stamps are given out.
SNAP_DAYS = {
    "CA": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    "TX": (1, 3, 5, 6, 7, 9, 11, 12, 13, 15),
    "WI": (2, 3, 5, 6, 8, 9, 11, 12, 14, 15),
}
EASTERS = ("2011-04-24", "2012-04-08", "2013-03-31", "2014-04-20", "2015-04-05", "2016-03-27")
MONDAY, THURSDAY, SUNDAY = 0, 3, 6

# The middle of what an item sells a day (as its logarithm) and costs, by department.
LEVEL = dict(zip(DEPARTMENTS, (-0.9, -1.8, -0.7, -1.5, -0.4, -0.5, 0.3), strict=True))
PRICE = dict(zip(DEPARTMENTS, (6.0, 3.0, 5.0, 7.0, 3.5, 4.0, 2.5), strict=True))
# How much more is sold from Saturday to Friday, and when in the year a category sells best, in days from January 1.
WEEKDAYS = np.array([1.25, 1.2, 0.95, 0.88, 0.86, 0.88, 0.98])
SEASON_PEAK = {"HOBBIES": 340, "HOUSEHOLD": 200, "FOODS": 220}
SEASON_SIZE = {"HOBBIES": 0.15, "HOUSEHOLD": 0.12, "FOODS": 0.06}
EVENT_EFFECTS = {
    "SuperBowl": 1.15,
    "Thanksgiving": 0.6,
    "LaborDay": 1.15,
    "Easter": 0.85,
    "NewYear": 0.75,
    "Christmas": 0.0,
}
SNAP_EFFECT, ELASTICITY, GROWTH = 1.15, -1.5, 0.25


@dataclass(frozen=True)
class Days:
    """D days: the dates, their week numbers, names and types of up to two events, and food stamps by state."""

    dates: list[datetime.date]
    weeks: list[int]
    events: list[list[tuple[str, str]]]
    snap: dict[str, list[bool]]


def calendar(num_days: int) -> Days:
    """Return the first days of M5's calendar, which has 1,969."""
    numbers = [
        11_000 + 100 * year + week for year, weeks in enumerate(WEEKS_OF_YEAR, 1) for week in range(1, weeks + 1)
    ]
    dates = [FIRST_DAY + datetime.timedelta(days=day) for day in range(num_days)]
    events: dict[datetime.date, list[tuple[str, str]]] = {}
    for year in range(2011, 2017):
        for date, event in _events(year):
            events.setdefault(date, []).append(event)
    return Days(
        dates,
        [numbers[day // 7] for day in range(num_days)],
        [events.get(date, []) for date in dates],
        {state: [date.day in days for date in dates] for state, days in SNAP_DAYS.items()},
    )


def write(calendar_file: Path, sales_file: Path, prices_file: Path, *, seed: int, sizes: tuple[int, int]) -> None:
    """Write the three files for so many items, at least one a department, and days; 28 days more in the calendar."""
    import pyarrow as pa
    import pyarrow.csv

    num_items, num_days = sizes
    days = calendar(num_days + HORIZON)
    _write_calendar(calendar_file, days)
    range_of = item_numbers(num_items)
    series_names = ("id", "item_id", "dept_id", "cat_id", "store_id", "state_id")
    sales_schema = pa.schema(
        [*((name, pa.string()) for name in series_names), *((f"d_{day}", pa.int16()) for day in range(1, num_days + 1))]
    )
    prices_schema = pa.schema(
        [("store_id", pa.string()), ("item_id", pa.string()), ("wm_yr_wk", pa.int32()), ("sell_price", pa.float64())]
    )
    weeks = np.array(days.weeks)
    distinct_weeks, week_of_day = np.unique(weeks, return_inverse=True)
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
    with sales_file.open("wb") as sales_out, prices_file.open("wb") as prices_out:
        for out, schema in ((sales_out, sales_schema), (prices_out, prices_schema)):
            out.write((",".join(schema.names) + "\n").encode())
        with (
            pyarrow.csv.CSVWriter(sales_out, sales_schema, write_options=options) as sales_writer,
            pyarrow.csv.CSVWriter(prices_out, prices_schema, write_options=options) as prices_writer,
        ):
            for store in STORES:
                shelves = [_Shelf(seed, store, dept, numbers, days, week_of_day) for dept, numbers in range_of.items()]
                sold = [shelf.sell(num_days) for shelf in shelves]
                units, prices = (np.concatenate(blocks) for blocks in zip(*sold, strict=True))
                items = [(f"{dept}_{number:03d}", dept) for dept, numbers in range_of.items() for number in numbers]
                labels = [
                    (f"{item}_{store}_evaluation", item, dept, dept[:-2], store, store[:-2]) for item, dept in items
                ]
                sales_writer.write(
                    pa.record_batch(
                        [*map(pa.array, zip(*labels, strict=True)), *map(pa.array, units.T.copy())], sales_schema
                    )
                )
                item_index, week_index = np.nonzero(~np.isnan(prices))
                columns = [
                    pa.array([store]).take(pa.array(np.zeros(len(item_index), np.int32))),
                    pa.array([item for item, _ in items]).take(pa.array(item_index)),
                    pa.array(distinct_weeks[week_index].astype(np.int32)),
                    pa.array(prices[item_index, week_index]),
                ]
                prices_writer.write(pa.record_batch(columns, prices_schema))


class _Shelf:
    """The items of one department in one store."""

    def __init__(
        self, seed: int, store: str, dept: str, numbers: range, days: Days, week_of_day: NDArray[np.int64]
    ) -> None:
        self.store, self.dept, self.days, self.week_of_day = store, dept, days, week_of_day
        self.num_items = len(numbers)
        self.closed = np.array([any(name == "Christmas" for name, _ in events) for events in days.events])
        department = list(DEPARTMENTS).index(dept)
        # What an item is like in all stores, and what is so in this one only.
        self.common = np.random.default_rng([seed, department])
        self.own = np.random.default_rng([seed, department, STORES.index(store) + 1])

    def sell(self, num_days: int) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """Return units sold (items, num_days) and the prices of all weeks (items, W), NaN before the launch."""
        level = self.common.normal(LEVEL[self.dept], 0.9, self.num_items)
        launch = self._launches(num_days)
        prices, effect = self._prices(launch)
        level = level + self.own.normal(0, 0.4, self.num_items) + 0.3 * self.own.standard_normal()
        pattern = self._pattern(num_days)
        mean = np.exp(level, dtype=np.float32)[:, None] * pattern * effect[:, self.week_of_day[:num_days]]
        dispersion = self.common.uniform(0.4, 3, (self.num_items, 1)).astype(np.float32)
        rate = self.own.standard_gamma(np.broadcast_to(dispersion, mean.shape), dtype=np.float32) * (mean / dispersion)
        units = self.own.poisson(rate)
        for item in range(self.num_items):
            for _ in range(self.own.poisson(num_days / 500)):
                empty = self.own.integers(num_days)
                units[item, empty : empty + self.own.integers(4, 45)] = 0
            # A product is known to be on sale since it was sold.
            units[item, launch[item]] = max(units[item, launch[item]], 1)
            units[item, : launch[item]] = 0
        return units.clip(max=np.iinfo(np.int16).max).astype(np.int16), prices

    def _launches(self, num_days: int) -> NDArray[np.int64]:
        """Return the day on which each item is first sold, (items,): of half of them the first, of the others later."""
        late = self.common.random(self.num_items) < 0.5
        day = self.common.integers(0, num_days // 2, self.num_items) + self.own.integers(
            0, num_days // 5, self.num_items
        )
        day = np.where(late, day, 0)
        return day + self.closed[day]

    def _prices(self, launch: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return the prices (items, W), NaN before the week of the launch, and how they change what is sold."""
        num_weeks = int(self.week_of_day[-1]) + 1
        base = PRICE[self.dept] * self.common.lognormal(0, 0.5, self.num_items)
        changed = self.common.random((self.num_items, num_weeks)) < 0.02
        steps = np.where(changed, self.common.normal(0.01, 0.08, changed.shape), 0).cumsum(axis=1).clip(-0.5, 0.5)
        # Now and then a week of its own in one store.
        offered = np.where(self.own.random(changed.shape) < 0.01, self.own.uniform(0.7, 0.9, changed.shape), 1)
        prices = np.round(base[:, None] * np.exp(steps) * offered, 2).clip(min=0.1)
        effect = ((prices / base[:, None]) ** ELASTICITY).astype(np.float32)
        prices[np.arange(num_weeks) < self.week_of_day[launch][:, None]] = np.nan
        return prices, effect

    def _pattern(self, num_days: int) -> NDArray[np.float32]:
        """Return what a day multiplies the sales of all items by, (num_days,)."""
        category, state = self.dept[:-2], self.store[:-2]
        day = np.arange(num_days)
        year_day = np.array([(date - date.replace(month=1, day=1)).days for date in self.days.dates[:num_days]])
        pattern = WEEKDAYS[day % 7] * (1 + GROWTH * day / num_days)
        pattern *= 1 + SEASON_SIZE[category] * np.cos(2 * np.pi * (year_day - SEASON_PEAK[category]) / 365.25)
        if category == "FOODS":
            pattern *= np.where(self.days.snap[state][:num_days], SNAP_EFFECT, 1)
        for index, events in enumerate(self.days.events[:num_days]):
            for name, _ in events:
                pattern[index] *= EVENT_EFFECTS.get(name, 1.05)
        shocks = self.own.normal(0, 0.05, num_days)
        for index in range(1, num_days):
            shocks[index] += 0.8 * shocks[index - 1]
        return (pattern * np.exp(shocks)).astype(np.float32)


def item_numbers(num_items: int) -> dict[str, range]:
    """Share items out to departments as in M5, at least one to each."""
    total = sum(DEPARTMENTS.values())
    sizes = {dept: max(size * num_items // total, 1) for dept, size in DEPARTMENTS.items()}
    by_remainder = sorted(DEPARTMENTS, key=lambda dept: -(DEPARTMENTS[dept] * num_items % total))
    for dept in by_remainder[: num_items - sum(sizes.values())]:
        sizes[dept] += 1
    return {dept: range(1, size + 1) for dept, size in sizes.items()}


def _write_calendar(path: Path, days: Days) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        event_names = ["event_name_1", "event_type_1", "event_name_2", "event_type_2"]
        snap_names = [f"snap_{state}" for state in SNAP_DAYS]
        writer.writerow(["date", "wm_yr_wk", "weekday", "wday", "month", "year", "d", *event_names, *snap_names])
        for index, date in enumerate(days.dates):
            events = [word for event in days.events[index][:2] for word in event]
            snap = [int(days.snap[state][index]) for state in SNAP_DAYS]
            writer.writerow(
                [
                    date.isoformat(),
                    days.weeks[index],
                    f"{date:%A}",
                    index % 7 + 1,
                    date.month,
                    date.year,
                    f"d_{index + 1}",
                    *events,
                    *[""] * (4 - len(events)),
                    *snap,
                ]
            )


def _events(year: int) -> Iterator[tuple[datetime.date, tuple[str, str]]]:
    """Yield the dates of a year's events, with name and type as M5 has them."""
    easter = datetime.date.fromisoformat(EASTERS[year - 2011])
    yield datetime.date(year, 1, 1), ("NewYear", "National")
    yield datetime.date(year, 1, 7), ("OrthodoxChristmas", "Religious")
    yield _nth(year, 1, MONDAY, 3), ("MartinLutherKingDay", "National")
    yield _nth(year, 2, SUNDAY, 1), ("SuperBowl", "Sporting")
    yield datetime.date(year, 2, 14), ("ValentinesDay", "Cultural")
    yield _nth(year, 2, MONDAY, 3), ("PresidentsDay", "National")
    yield easter - datetime.timedelta(days=46), ("LentStart", "Religious")
    yield easter - datetime.timedelta(days=39), ("LentWeek2", "Religious")
    yield datetime.date(year, 3, 17), ("StPatricksDay", "Cultural")
    yield easter, ("Easter", "Cultural")
    yield datetime.date(year, 5, 5), ("Cinco De Mayo", "Cultural")
    yield _nth(year, 5, SUNDAY, 2), ("Mother's day", "Cultural")
    yield _nth(year, 6, MONDAY, 1) - datetime.timedelta(days=7), ("MemorialDay", "National")
    yield _nth(year, 6, SUNDAY, 3), ("Father's day", "Cultural")
    yield datetime.date(year, 7, 4), ("IndependenceDay", "National")
    yield _nth(year, 9, MONDAY, 1), ("LaborDay", "National")
    yield _nth(year, 10, MONDAY, 2), ("ColumbusDay", "National")
    yield datetime.date(year, 10, 31), ("Halloween", "Cultural")
    yield datetime.date(year, 11, 11), ("VeteransDay", "National")
    yield _nth(year, 11, THURSDAY, 4), ("Thanksgiving", "National")
    yield datetime.date(year, 12, 25), ("Christmas", "National")


def _nth(year: int, month: int, weekday: int, count: int) -> datetime.date:
    """Return the first, second, ... Monday (or another day) of a month."""
    first = datetime.date(year, month, 1)
    return first + datetime.timedelta(days=(weekday - first.weekday()) % 7 + 7 * (count - 1))
