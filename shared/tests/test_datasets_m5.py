"""M5: the three files in both forms, broken ones, the ways they come here, and generated sales."""

import csv
import datetime
import hashlib
import io
import os
import random
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.datasets import fetch, m5, shops
from trainyard_shared.datasets.m5 import (
    carry_forward,
    load_m5,
    load_sample,
    make_sample,
    read_calendar,
    read_prices,
    read_sales,
    write_submission,
)
from trainyard_shared.errors import DataError
from trainyard_shared.wrmsse import Scorer, revenue

pytest.importorskip("pyarrow.csv")

SIZES = {"num_items": 7, "num_days": 70}
SALES, PRICES, CALENDAR = "sales_train_evaluation.csv", "sell_prices.csv", "calendar.csv"
FILES = (CALENDAR, SALES, PRICES)


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    return make_sample(tmp_path_factory.mktemp("m5") / "data", seed=0, **SIZES)


@pytest.fixture
def folder(generated, tmp_path) -> Path:
    """A sample, as a user would have the real files."""
    made = shutil.copytree(generated, tmp_path / "data")
    (made / "ORIGIN.txt").unlink()
    return made


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def write(path: Path, table: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def edit(path: Path, change: Callable[[list[list[str]]], object]) -> None:
    table = rows(path)
    change(table)
    write(path, table)


def put(row: int, column: int, value: str) -> Callable[[list[list[str]]], object]:
    """Return a change of one field; row 0 is the header."""
    return lambda table: table[row].__setitem__(column, value)


def drop_column(name: str) -> Callable[[list[list[str]]], object]:
    def change(table: list[list[str]]) -> None:
        at = table[0].index(name)
        for row in table:
            del row[at]

    return change


def assert_equal(one: m5.M5Dataset, other: m5.M5Dataset) -> None:
    assert one.sales.names == other.sales.names
    np.testing.assert_array_equal(one.sales.units, other.sales.units)
    np.testing.assert_array_equal(one.prices, other.prices)
    for name in ("dates", "weeks", "events", "event_types", "snap"):
        np.testing.assert_array_equal(getattr(one.calendar, name), getattr(other.calendar, name))


# Samples


def test_a_sample_is_read_by_the_reader_of_the_real_data(cache):
    data = load_sample(seed=0, **SIZES)
    assert (data.name, data.kind) == ("m5", "sample")
    assert data.source.startswith("generated sample, seed 0: 7 products in 10 stores on 70 days in the form of M5")
    assert data.sales.units.shape == (70, 70)
    assert data.sales.units.dtype == np.int16
    assert data.prices.dtype == np.float32
    assert data.sales.names[:2] == ["HOBBIES_1_001_CA_1", "HOBBIES_2_001_CA_1"]
    assert len(data.calendar.dates) == 98, "28 days more"
    made = next(cache.glob("samples/*/sales"))
    again = load_m5(made)
    assert again.kind == "sample"
    assert_equal(again, data)
    assert rows(made / SALES)[1][0] == "HOBBIES_1_001_CA_1_evaluation"


def test_the_seed_alone_decides_the_sample(tmp_path, generated):
    again, other = (make_sample(tmp_path / str(seed), seed=seed, **SIZES) for seed in (0, 1))
    for name in (SALES, PRICES):
        assert (again / name).read_bytes() == (generated / name).read_bytes() != (other / name).read_bytes()
    assert (again / CALENDAR).read_bytes() == (other / CALENDAR).read_bytes()


def test_a_damaged_sample_is_named(cache):
    load_sample(seed=0, **SIZES)
    made = next(cache.glob("samples/*/sales"))
    (made / PRICES).unlink()
    with pytest.raises(DataError, match=r"damaged\. Remove the folder .*m5-v1-seed0-7-70.*sell_prices\.csv is missing"):
        load_sample(seed=0, **SIZES)


def test_samples_need_room_and_a_new_folder(folder, tmp_path):
    with pytest.raises(DataError, match="exists already"):
        make_sample(folder, seed=0, **SIZES)
    for sizes in ((6, 70), (7, 55), (7, 1942)):
        with pytest.raises(DataError, match=f"at least 7 items.* 56 to 1,941 days, not {sizes[0]} and {sizes[1]:,}"):
            make_sample(tmp_path / "none", seed=0, num_items=sizes[0], num_days=sizes[1])


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> m5.M5Dataset:
    """A sample in which effects can be seen."""
    return load_m5(make_sample(tmp_path_factory.mktemp("shop") / "data", seed=1, num_items=28, num_days=800))


class TestGeneratedSales:
    def test_most_counts_are_zero_and_some_products_come_late(self, shop):
        units = shop.sales.units
        assert 0.5 < (units == 0).mean() < 0.8
        assert 0.3 < (shop.sales.first_sale > 7).mean() < 0.7
        # What is sold has a price.
        week_of_sale = shop.calendar.week_of_day[shop.sales.first_sale]
        assert np.isfinite(shop.prices[np.arange(len(units)), week_of_sale]).all()
        assert not any("have no price" in note for note in shop.notes)

    def test_days_of_the_week_food_stamps_and_christmas_show(self, shop):
        total = shop.sales.units[:, : 7 * 114].sum(axis=0, dtype=float)
        weekday = total.reshape(-1, 7).mean(axis=0)
        assert weekday[:2].min() > 1.15 * weekday[2:6].max()
        foods = np.array(
            [cat == "FOODS" and state == "CA" for cat, state in zip(shop.sales.cat, shop.sales.state, strict=True)]
        )
        sold, snap = shop.sales.units[foods].sum(axis=0), shop.calendar.snap[:800, 0]
        assert sold[snap].mean() > 1.05 * sold[~snap].mean()
        closed = (shop.calendar.events[:800] == "Christmas").any(axis=1)
        assert closed.sum() == 2
        assert shop.sales.units[:, closed].sum() == 0

    def test_a_higher_price_sells_less(self, shop):
        weeks = shop.calendar.week_of_day[:800]
        sold = np.stack([shop.sales.units[:, weeks == week].mean(axis=1) for week in range(100)], axis=1)
        price = shop.prices[:, :100]
        covariance, variance = 0.0, 0.0
        for one_sold, one_price in zip(sold, np.log(price), strict=True):
            known = np.isfinite(one_price)
            if one_sold[known].mean() > 1:
                change = one_price[known] - one_price[known].mean()
                covariance += (change * (one_sold[known] / one_sold[known].mean() - 1)).sum()
                variance += (change**2).sum()
        assert -2.5 < covariance / variance < -0.7

    def test_it_can_be_scored(self, shop):
        history, actual = shop.sales.units[:, :-28], shop.sales.units[:, -28:]
        earned = revenue(history[:, -28:], shop.price_of_days(800 - 56, 800 - 28))
        scorer = Scorer.of_history(shop.sales.hierarchy, history, earned)
        seasonal, zeros = (
            scorer.score(actual, f).wrmsse for f in (np.tile(history[:, -7:], 4), np.zeros(actual.shape))
        )
        assert 0.3 < seasonal < 1.5 < zeros

    def test_departments_have_their_share_of_items(self):
        assert {dept: len(numbers) for dept, numbers in shops.item_numbers(3049).items()} == shops.DEPARTMENTS
        for num_items in (*range(7, 60), 100, 1000):
            sizes = [len(numbers) for numbers in shops.item_numbers(num_items).values()]
            assert (sum(sizes), min(sizes) >= 1) == (num_items, True)


# Reading


def test_what_is_read_is_what_is_written(folder):
    data = load_m5(folder)
    assert data.kind == "real"
    assert "70 series, d_1 to d_70 of sales_train_evaluation.csv, local files, none equal" in data.source
    table = rows(folder / SALES)
    assert data.sales.units.tolist() == [[int(word) for word in row[6:]] for row in table[1:]]
    assert list(data.sales.item) == [row[1] for row in table[1:]]
    price = {(row[0], row[1], int(row[2])): float(row[3]) for row in rows(folder / PRICES)[1:]}
    assert np.isfinite(data.prices).sum() == len(price)
    for series, (item, store) in enumerate(zip(data.sales.item, data.sales.store, strict=True)):
        for index, week in enumerate(data.calendar.distinct_weeks.tolist()):
            assert data.prices[series, index] == pytest.approx(price.get((store, item, week), np.nan), nan_ok=True)
    assert data.calendar.dates[0] == np.datetime64("2011-01-29")
    assert data.calendar.events[8].tolist() == ["SuperBowl", ""]
    assert data.calendar.event_types[8].tolist() == ["Sporting", ""]
    assert data.calendar.snap[7:10].tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    days = data.price_of_days(5, 9)
    np.testing.assert_array_equal(days, data.prices[:, [0, 0, 1, 1]])


def test_the_form_of_the_organisers_gives_the_same(folder):
    expected = load_m5(folder)
    edit(folder / CALENDAR, drop_column("d"))
    edit(folder / CALENDAR, lambda table: [row.__setitem__(k, row[k] or "NA") for row in table for k in range(6, 10)])
    edit(folder / SALES, drop_column("id"))
    (folder / SALES).write_bytes((folder / SALES).read_bytes().replace(b"\n", b"\r\n"))
    (folder / PRICES).write_text(
        "".join(f'"{line[:4]}"{line[4:]}' for line in (folder / PRICES).open()).replace('"stor"e_id', "store_id")
    )
    assert_equal(load_m5(folder), expected)


def test_small_blocks_give_the_same(folder, monkeypatch):
    expected = load_m5(folder)
    monkeypatch.setattr(m5, "_BLOCK_BYTES", 1200)
    assert_equal(load_m5(folder), expected)


def test_the_validation_file_is_read_where_there_is_no_other(folder):
    table = [row[:-28] for row in rows(folder / SALES)]
    write(
        folder / "sales_train_validation.csv", [[row[0].replace("evaluation", "validation"), *row[1:]] for row in table]
    )
    assert load_m5(folder).sales.last_day == 70
    (folder / SALES).unlink()
    data = load_m5(folder)
    assert data.sales.last_day == 42
    assert "d_1 to d_42 of sales_train_validation.csv" in data.source


def test_rules_are_counted(folder):
    def change(table):
        table[1][6:] = ["0"] * 30 + ["4"] + ["0"] * 39  # first sold on d_31
        table[2][6:] = ["0"] * 70
        table[3][6:] = ["1"] * 70

    edit(folder / SALES, change)
    items = [rows(folder / SALES)[row][1] for row in (1, 2, 3)]
    weeks = sorted({row[2] for row in rows(folder / PRICES)[1:]})

    def without(table):
        kept = [row for row in table if row[0] != "CA_1" or row[1] not in items]
        kept += [["CA_1", items[0], week, "2.5"] for week in weeks[4:]]
        kept += [["CA_1", items[1], week, "2.5"] for week in weeks]
        kept += [["CA_1", items[2], week, str(index + 1)] for index, week in enumerate(weeks) if index != 3]
        table[:] = [*kept, ["CA_1", "NOT_SOLD", weeks[0], "1"], ["XX_1", items[0], weeks[0], "1"]]

    edit(folder / PRICES, without)
    data = load_m5(folder)
    assert data.sales.first_sale[:3].tolist() == [30, 70, 0]
    notes = "; ".join(data.notes)
    assert "1 series were never sold" in notes
    assert "1 weeks without a price after a first one" in notes
    assert "7 days with sales have no price: they count as no revenue" in notes
    assert "2 prices of products or stores that are not among the sales passed over" in notes
    assert "70 series, where M5 has 30,490" in notes
    assert np.isnan(data.prices[0, :4]).all()
    filled = carry_forward(data.prices)
    assert np.isnan(filled[0, :4]).all(), "before its first price, a product has none"
    assert filled[2, 2:5].tolist() == [3, 3, 5]


BROKEN = [
    (
        SALES,
        put(3, 10, "-2"),
        r"line 4: HOUSEHOLD_1_001 in CA_1 on d_5: '-2' units, expected a whole number from 0 to 32,767",
    ),
    (SALES, put(3, 10, "1.5"), r"line 4: .* on d_5: '1\.5' units"),
    (SALES, put(3, 10, ""), r"line 4: .* on d_5: '' units"),
    (SALES, put(3, 10, "40000"), r"line 4: .* on d_5: '40000' units"),
    (SALES, lambda table: table[5].pop(), r"line 6: 75 columns, expected 76"),
    (SALES, drop_column("dept_id"), r"has no column dept_id; its columns are id, item_id, cat_id.* and 63 more"),
    (SALES, drop_column("d_9"), r"column d_10 follows d_8: days must be one after the other"),
    (SALES, drop_column("d_1"), r"has the days d_2 to d_70, which do not match .*calendar\.csv with d_1 to d_98"),
    (SALES, put(0, 20, "weight"), r"has a column 'weight'; expected id, item_id"),
    (SALES, put(0, 20, "d_14"), r"has the column 'd_14' more than once"),
    (SALES, lambda table: table.append(table[1]), r"Item HOBBIES_1_001 is in store CA_1 twice, as series 1 and 71"),
    (
        SALES,
        put(1, 0, "HOBBIES_1_002_CA_1_evaluation"),
        r"series 1: the id is .*expected HOBBIES_1_001_CA_1_evaluation",
    ),
    (SALES, put(1, 5, "TX"), r"The store CA_1 has more than one state: CA, TX"),
    (SALES, lambda table: table.__delitem__(slice(1, None)), "holds no series"),
    (PRICES, put(7, 3, "0"), r"line 8: HOBBIES_.* in CA_1: sell_price is '0', expected a number above 0"),
    (PRICES, put(7, 3, "-1.5"), "line 8: .*sell_price is '-1.5'"),
    (PRICES, put(7, 3, "nan"), "line 8: .*sell_price is 'nan'"),
    (PRICES, put(7, 3, ""), "line 8: .*sell_price is ''"),
    (PRICES, put(7, 2, "11901"), r"line 8: .*wm_yr_wk is '11901', which the calendar does not have; .*11101 to 11114"),
    (PRICES, lambda table: table.append(table[4]), r"line \d+: HOBBIES_1_001 in CA_1 has a second price in week 1110"),
    (PRICES, lambda table: table[2].pop(), "line 3: 3 columns, expected 4"),
    (PRICES, drop_column("store_id"), "has no column store_id; its columns are item_id, wm_yr_wk, sell_price"),
    (
        PRICES,
        lambda table: table.__setitem__(
            slice(None), [row for row in table if row[1] != "FOODS_1_001" or row[0] > "CA_2"]
        ),
        r"2 of the 70 series have no price in any week, first FOODS_1_001 in CA_1; the file has [\d,]+ rows",
    ),
    (PRICES, lambda table: table.__delitem__(slice(1, None)), "70 of the 70 series have no price .* has 0 rows"),
    (
        CALENDAR,
        lambda table: table.__delitem__(slice(60, None)),
        r"d_1 to d_70, which do not match .* with d_1 to d_59",
    ),
    (CALENDAR, lambda table: table.pop(5), r"line 6: 2011-02-03 follows 2011-02-01: days must be one after the other"),
    (CALENDAR, put(5, 0, "2/2/2011"), "line 6: date is '2/2/2011', expected one like 2011-01-29"),
    (CALENDAR, put(5, 6, "d_6"), "line 6: d is 'd_6', expected d_5"),
    (CALENDAR, put(5, 1, "x"), "line 6: wm_yr_wk is 'x', expected a whole number"),
    (CALENDAR, put(10, 1, "11101"), "line 11: week 11101 follows week 11102"),
    (CALENDAR, put(5, 12, "2"), "line 6: snap_TX is '2', expected a whole number from 0 to 1"),
    (CALENDAR, lambda table: table[4].pop(), "line 5: 13 columns, expected 14"),
    (CALENDAR, drop_column("snap_WI"), "has no column snap_WI"),
    (CALENDAR, lambda table: table.__delitem__(slice(1, None)), "holds no days"),
]


@pytest.mark.parametrize(("name", "change", "expected"), BROKEN)
def test_what_is_wrong_in_a_file_is_named(folder, name, change, expected):
    edit(folder / name, change)
    with pytest.raises(DataError, match=expected) as caught:
        load_m5(folder)
    assert str(folder / name) in str(caught.value)


def test_a_price_of_an_unknown_week_is_not_put_into_another(folder):
    table = rows(folder / PRICES)
    first = min(row[2] for row in table[1:])
    seen = {(row[0], row[1]) for row in table if row[2] == first}
    # Of a product without a price in the first week, to which a week before the calendar would be the nearest.
    late = next(index for index, row in enumerate(table) if index and (row[0], row[1]) not in seen)
    edit(folder / PRICES, put(late, 2, "11000"))
    with pytest.raises(DataError, match=rf"line {late + 1}: .*wm_yr_wk is '11000'"):
        load_m5(folder)


def test_ends_of_lines_within_a_row_are_named(folder):
    content = (folder / SALES).read_bytes().split(b"\n")
    (folder / SALES).write_bytes(b"\n".join([*content[:4], content[4].replace(b",", b"\r", 8), *content[5:]]))
    with pytest.raises(DataError, match=r"line 5: 1 columns, expected 76"):
        load_m5(folder)
    (folder / SALES).write_bytes(b"\n".join([*content[:4], content[4].replace(b"CA", b"\xc4", 1), *content[5:]]))
    with pytest.raises(DataError, match="line 5: bytes that are not UTF-8"):
        load_m5(folder)
    (folder / SALES).write_bytes(b"\n".join([*content[:4], content[4].replace(b",CA_1", b',"CA_1', 1), *content[5:]]))
    with pytest.raises(DataError, match="line 5: a quote that is not closed"):
        load_m5(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"not whole: {name}.* is missing; the folder holds .*--data-dir"):
        load_m5(folder)


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"calendar\.csv and sales_train_.* and sell_prices\.csv are missing; .*nothing"
    ):
        load_m5(tmp_path)
    with pytest.raises(DataError, match="the folder does not exist"):
        load_m5(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"PK\x03\x04 zipped"])
def test_files_that_are_no_tables_are_refused(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_m5(folder)


# Broken at random


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Change some bytes: exchange, drop, insert, repeat or cut, with what means something in these files."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) or 1) if rng.random() < 0.8 else rng.randrange(min(len(data) or 1, 90))
        length = rng.choice((1, 1, 3, 40))
        new = rng.choice(
            (b'"', b",", b"\n", b"\r", b"\x00", b"\xff", b"9", b"-1", b"", b"e5", b".", b"d_7", b" ", b"nan")
        )
        kind = rng.randrange(5)
        if kind == 0:
            data[at : at + length] = new
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = new
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_whatever_is_in_a_file_is_read_or_refused(folder, name):
    content = (folder / name).read_bytes()
    calendar, sales = read_calendar(folder / CALENDAR), read_sales(folder / SALES)
    rng = random.Random(0)
    outcomes: Counter[str] = Counter()
    messages = []
    for _ in range(250):
        (folder / name).write_bytes(mutate(rng, content))
        try:
            if name == CALENDAR:
                read = read_calendar(folder / name)
                assert len(read.dates) == len(read.weeks) == len(read.events) == len(read.event_types) == len(read.snap)
                assert (np.diff(read.dates) == np.timedelta64(1, "D")).all()
                assert (np.diff(read.weeks) >= 0).all()
            elif name == SALES:
                sold = read_sales(folder / name)
                assert sold.units.min() >= 0
                assert sold.units.shape == (len(sold.item), sold.last_day - sold.first_day + 1)
            else:
                prices, _ = read_prices(folder / name, sales, calendar)
                assert (prices[np.isfinite(prices)] > 0).all()
                assert not np.isinf(prices).any()
            outcomes["read"] += 1
        except DataError as refusal:
            outcomes["refused"] += 1
            messages.append(str(refusal))
    assert all(str(folder / name) in message for message in messages)
    assert min(outcomes["read"], outcomes["refused"]) > 10, outcomes
    assert sum("line" in message or "column" in message for message in messages) > 0.7 * len(messages)


# Submissions


def test_a_submission_has_kaggles_form(tmp_path):
    rng = np.random.default_rng(0)
    validation, evaluation = rng.poisson(1, (3, 28)), rng.gamma(1, 1, (3, 28))
    names = ["HOBBIES_1_001_CA_1", "HOBBIES_1_002_CA_1", "FOODS_1_001_WI_3"]
    write_submission(tmp_path / "submission.csv", names, validation, evaluation)
    table = rows(tmp_path / "submission.csv")
    assert table[0] == ["id", *(f"F{day}" for day in range(1, 29))]
    assert [row[0] for row in table[1:]] == [*(f"{n}_validation" for n in names), *(f"{n}_evaluation" for n in names)]
    found = np.array([[float(word) for word in row[1:]] for row in table[1:]])
    np.testing.assert_array_equal(found, np.concatenate([validation, evaluation]), "to the last digit")
    assert table[1][1] == str(validation[0, 0]), "no more digits than are needed"


def test_a_submission_that_kaggle_would_refuse_is_not_written(tmp_path):
    good = np.ones((2, 28))
    for bad, said in (
        (np.ones((2, 27)), r"evaluation must have the shape \(2, 28\), found \(2, 27\)"),
        (np.full((2, 28), np.nan), "evaluation holds NaN, infinite or negative"),
        (-good, "negative"),
    ):
        with pytest.raises(ValueError, match=said):
            write_submission(tmp_path / "submission.csv", ["a", "b"], good, bad)
    assert not list(tmp_path.iterdir())


# Where the data come from


def refuse(reason: str):
    def download(self, part, want, retry):
        raise fetch.SourceError(reason)

    return download


def zipped(folder: Path, inside: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            archive.write(folder / name, inside + name)
    return file.getvalue()


@pytest.fixture
def published(folder, web, cache, monkeypatch):
    """The sample, whose files have the known checksums, at none of the addresses yet."""
    monkeypatch.setattr(fetch, "DEFAULT_RETRY", fetch.RetryPolicy(attempts=2, first_wait_s=0.01))
    monkeypatch.setattr(fetch.HubFile, "download", refuse("no Hub here"))
    monkeypatch.setattr(fetch.KaggleFile, "download", refuse("no Kaggle credentials found"))
    for name in FILES:
        content = (folder / name).read_bytes()
        monkeypatch.setitem(m5.ORIGINALS, name, (len(content), hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(m5, "NIXTLA", fetch.HttpFile("Nixtla's copy", f"{web.url}/m5.zip"))
    monkeypatch.setattr(m5, "ZENODO", fetch.HttpFile("Zenodo", f"{web.url}/zenodo.zip"))
    return load_m5(folder), folder


def copy_from(folder: Path):
    return lambda self, part, want, retry: shutil.copyfile(folder / self.path, part)


@pytest.mark.parametrize(("client", "said"), [("KaggleFile", "Kaggle"), ("HubFile", "denephew/M5_Forecasting")])
def test_files_from_kaggle_or_the_hub_are_kept(published, cache, monkeypatch, client, said):
    data, folder = published
    monkeypatch.setattr(getattr(fetch, client), "download", copy_from(folder))
    found = load_m5()
    assert_equal(found, data)
    assert said in found.source
    monkeypatch.setattr(getattr(fetch, client), "download", refuse("asked twice"))
    assert_equal(load_m5(offline=True), data)
    assert {entry.name for entry in (cache / "m5").iterdir()} == {"sales", ".sales.lock", ".sales.sha256"}


def test_the_mirror_of_nixtla_is_checked_by_what_git_calls_it(published, web, monkeypatch, capsys):
    data, folder = published
    content = zipped(folder, "datasets/")
    web.files["/m5.zip"] = content
    with pytest.raises(DataError, match=r"(?s)no Kaggle credentials.*no Hub.*not the archive that is known: git blob"):
        load_m5()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setattr(m5, "NIXTLA_BLOB", blob)
    found = load_m5()
    assert_equal(found, data)
    assert "Nixtla's copy" in found.source


def test_zenodos_archive_is_the_last_source(published, web, cache, monkeypatch):
    data, folder = published
    web.files["/zenodo.zip"] = zipped(folder)
    monkeypatch.setattr(m5, "ZENODO_MD5", hashlib.md5(web.files["/zenodo.zip"]).hexdigest())
    assert_equal(load_m5(), data)
    (cache / "m5" / "sales" / PRICES).write_text("store_id\n")
    with pytest.raises(DataError, match="has no column item_id"):
        load_m5(offline=True)
    assert_equal(load_m5(), data)


def test_a_file_with_another_checksum_is_not_taken(published, monkeypatch):
    _, folder = published
    monkeypatch.setattr(fetch.KaggleFile, "download", copy_from(folder))
    edit(folder / PRICES, put(1, 3, "1.23"))
    with pytest.raises(DataError, match=r"(?s)Kaggle .*what arrived has .* expected.*404 Not Found.*accept the rules"):
        load_m5()


def test_offline_without_data_says_what_to_do(cache):
    with pytest.raises(DataError, match=r"is not in .*offline mode.*rules, then download and unpack calendar\.csv"):
        load_m5(offline=True)


def test_original_files_are_recognised(published):
    _, folder = published
    assert f"local files, {CALENDAR}, {SALES}, {PRICES} equal to the competition's" in load_m5(folder).source
    edit(folder / PRICES, put(1, 3, "1.23"))
    assert f"local files, {CALENDAR}, {SALES} equal to the competition's" in load_m5(folder).source


# The real calendar and days, where they are at hand


@pytest.fixture(scope="module")
def real() -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (data / "m5" / CALENDAR).is_file():
        pytest.skip(f"no real calendar in {data}: set TRAINYARD_TEST_DATA to the folder that holds m5/calendar.csv")
    return data / "m5"


def test_the_real_calendar_is_the_one_that_is_generated(real, tmp_path):
    found = read_calendar(real / CALENDAR)
    assert len(found.dates) == 1969
    assert len(found.distinct_weeks) == 282
    assert (found.events != "").sum() == 167
    days = shops.calendar(1969)
    assert [datetime.date.fromisoformat(str(date)) for date in found.dates] == days.dates
    assert found.weeks.tolist() == days.weeks
    assert found.snap.T.tolist() == [days.snap[state] for state in m5.STATES]
    real_events = {
        (date, name, kind)
        for date, names, kinds in zip(days.dates, found.events.tolist(), found.event_types.tolist(), strict=True)
        for name, kind in zip(names, kinds, strict=True)
        if name
    }
    made = {(date, *event) for date, events in zip(days.dates, days.events, strict=True) for event in events}
    assert made <= real_events
    assert {name for _, name, _ in real_events - made} == {
        "Chanukah End", "Eid al-Fitr", "EidAlAdha", "NBAFinalsEnd", "NBAFinalsStart", "OrthodoxEaster", "Pesach End",
        "Purim End", "Ramadan starts",
    }  # fmt: skip
    # Byte for byte, but for those events.
    make_sample(tmp_path / "data", seed=0, num_items=7, num_days=1941)
    made_lines, real_lines = ((folder / CALENDAR).read_text().splitlines() for folder in (tmp_path / "data", real))
    assert sum(one != other for one, other in zip(made_lines, real_lines, strict=True)) < 80


def test_the_real_sales_are_read(real):
    sales = read_sales(real / "sales_test_validation.csv")
    assert sales.units.shape == (30_490, 28)
    assert (sales.first_day, sales.last_day) == (1914, 1941)
    assert sales.names[0] == "HOBBIES_1_001_CA_1"
    assert sales.units[0, :8].tolist() == [0, 0, 0, 2, 0, 3, 5, 0]
    assert Counter(re.sub(r"_\d+$", "", item) for item in set(sales.item)) == shops.DEPARTMENTS
    assert tuple(dict.fromkeys(sales.store)) == shops.STORES
