"""Figures by hand, from samples small enough to check."""

import numpy as np
import pytest
from torchdist_stocks import scoring

LAST = np.log([100.0, 100.0, 50.0, 50.0])
ACTUAL = np.log([[110.0, 120.0], [90.0, 100.0], [55.0, 50.0], [50.0, 45.0]])
TEST = scoring.TestSet(
    log_price=ACTUAL,
    last=LAST,
    moves=np.full((4, 2), 0.1),
    ticker=np.array([0, 0, 1, 1]),
    day=np.array([5, 6, 5, 6]),
    fold=np.array([0, 1, 0, 1]),
    history={
        (0, 0): np.array([90.0, 92, 96]),  # mean change 3
        (1, 0): np.array([90.0, 95]),  # 5
        (0, 1): np.array([40.0, 41]),  # 1
        (1, 1): np.array([40.0, 40]),  # none: no scale
    },
)
NAIVE = np.repeat(LAST[:, None], 2, axis=1)


def test_figures_of_the_last_value() -> None:
    figures = scoring.measure(NAIVE, TEST, ("A", "B"))
    assert figures["mae"] == pytest.approx(np.abs(ACTUAL - NAIVE).mean())
    assert figures["mae_to_last_value"] == 1
    assert figures["mae_to_last_value_interval"] == [1, 1]
    assert figures["mape"] == pytest.approx(np.mean([10 / 110, 20 / 120, 10 / 90, 0, 5 / 55, 0, 0, 5 / 45]))
    # A: 15 / 3 in one fold, 5 / 5 in the other; B: 2.5 / 1, and a fold without a scale
    assert figures["mase_by_stock"] == {"A": pytest.approx(3), "B": pytest.approx(2.5)}
    assert figures["mase"] == pytest.approx(2.75)
    assert figures["directional_accuracy"] is None, "it names no direction"


def test_figures_of_a_forecast() -> None:
    said = np.log([[105.0, 120.0], [105.0, 100.0], [55.0, 50.0], [40.0, 45.0]])
    figures = scoring.measure(said, TEST, ("A", "B"))
    errors = np.abs(said - ACTUAL)
    assert figures["mae_by_days_ahead"] == pytest.approx(errors.mean(axis=0))
    assert figures["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    naive_errors = np.abs(NAIVE - ACTUAL)
    assert figures["mae_to_last_value"] == pytest.approx(errors.sum() / naive_errors.sum())
    assert figures["mae_to_last_value_by_days_ahead"] == pytest.approx(errors.mean(axis=0) / naive_errors.mean(axis=0))
    # Up, down, up, and no move, which does not count; said were up, up, up, down.
    assert figures["directional_accuracy"] == pytest.approx(2 / 3)
    silent = np.where(np.array([False, True, False, False])[:, None], NAIVE, said)
    assert scoring.measure(silent, TEST, ("A", "B"))["directional_accuracy"] == 1, "no direction named is none wrong"


def test_intervals() -> None:
    bounds = np.stack([NAIVE - 0.1, NAIVE + 0.1], axis=2)
    figures = scoring.measure_interval(bounds, TEST, 0.8)
    assert figures["coverage"] == pytest.approx(5 / 8)
    assert figures["width"] == pytest.approx(0.2)
    moved = (ACTUAL - NAIVE) / 0.1
    low = np.where(moved >= -1, 0.1 * (moved + 1), 0.9 * -(moved + 1)).mean()
    high = np.where(moved >= 1, 0.9 * (moved - 1), 0.1 * -(moved - 1)).mean()
    assert figures["pinball_loss"] == pytest.approx((low + high) / 2)


def test_tables_have_a_cell_for_each_column() -> None:
    figures = {
        name: scoring.measure(said, TEST, ("A", "B")) | {"wall_time_s": seconds}
        for name, said, seconds in (("last value", NAIVE, 0.0), ("LSTM", NAIVE + 0.01, 2.0))
    }
    intervals = {"LSTM": scoring.measure_interval(np.stack([NAIVE - 1, NAIVE + 1], axis=2), TEST, 0.9)}
    weights = {"stacking": {"ARIMA": np.array([0.1, 0.3]), "LSTM": np.array([0.2, 0.0])}}
    tables = [
        scoring.forecaster_table(figures),
        scoring.horizon_table(figures),
        scoring.stock_table(figures),
        scoring.interval_table(intervals, 0.9),
        scoring.weight_table(weights),
    ]
    for table in tables:
        assert table["rows"]
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}, table["title"]
    last_value, lstm = tables[0]["rows"]
    assert last_value[7:9] == ["–", "–"], "no direction, no share of right ones"
    assert lstm[7] == "66.7%"
    assert tables[4]["rows"] == [["stacking", "0.200", "0.100", "0.700"]]
