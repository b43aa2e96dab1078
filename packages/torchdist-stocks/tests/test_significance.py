"""The verdict in both directions, and intervals that hold what they promise although days and stocks hang together."""

import numpy as np
import pytest
from torchdist_stocks.significance import Comparison, ratio_interval, sums_by_day, verdict
from trainyard_shared.metrics import wilson_interval


def test_sums_by_day_leave_out_empty_days() -> None:
    np.testing.assert_array_equal(sums_by_day([1.0, 2.0, 4.0], np.array([7, 3, 7])), [2.0, 5.0])


def test_interval_lies_around_the_ratio_and_narrows_with_more_days() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for num_days in (200, 3200):
        naive = rng.uniform(1, 2, num_days)
        model = naive * rng.uniform(0.8, 1.2, num_days)
        low, high = ratio_interval(model, naive, 1)
        assert low < model.sum() / naive.sum() < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_same_errors_give_an_interval_without_width() -> None:
    errors = np.random.default_rng(0).uniform(1, 2, 100)
    assert ratio_interval(errors, errors, 5) == (1, 1)


def test_interval_holds_the_truth_where_that_for_independent_samples_does_not() -> None:
    """Hits of 20 stocks which the market moves together, on days that come in spells: the truth is 50 %."""
    rng = np.random.default_rng(1)
    held = {"blocks": 0, "wilson": 0}
    for _ in range(200):
        spells = np.repeat(rng.normal(size=125), 4)  # 500 days
        hits = (rng.normal(size=(500, 20)) + spells[:, None] > 0).sum(axis=1)
        low, high = ratio_interval(hits.astype(float), np.full(500, 20.0), 4)
        held["blocks"] += low <= 0.5 <= high
        low, high = wilson_interval(int(hits.sum()), 10_000)
        held["wilson"] += low <= 0.5 <= high
    assert held["blocks"] >= 178, "about 95 % of 200; blocks are known to fall somewhat short"
    assert held["wilson"] < 120


@pytest.mark.parametrize("days", [0, 3])
def test_days_that_do_not_go_together(days: int) -> None:
    with pytest.raises(ValueError, match=f"{days} and 0 days" if days else "0 and 0 days"):
        ratio_interval(np.ones(days), np.ones(0), 1)


def test_few_days_still_vary() -> None:
    low, high = ratio_interval(np.array([1.0, 3, 1, 2, 5]), np.ones(5), 5)
    assert low < high, "a block as long as the series would show no chance"


def test_verdict_that_nothing_beats_today() -> None:
    sentence = verdict([Comparison("LSTM", 0.9977, (0.9916, 1.0026)), Comparison("ARIMA", 1.01, (1.001, 1.02))])
    assert sentence == (
        "Nothing here beats 'tomorrow = today': the smallest mean absolute error of the 2 others is 0.9977 times that "
        "of the last value (LSTM; 95 % interval 0.9916 to 1.0026)."
    )


def test_verdict_that_names_what_beats_today_and_by_how_much() -> None:
    comparisons = [
        Comparison("LSTM", 0.98, (0.965, 0.995)),
        Comparison("ARIMA", 0.999, (0.99, 1.0)),  # touches: not better
        Comparison("XGBoost", 0.97, (0.95, 0.99)),
    ]
    sentence = verdict(comparisons)
    assert "beyond chance (95 %), for: XGBoost by 3.00% (1.00% to 5.00%), LSTM by 2.00% (0.50% to 3.50%)." in sentence
    assert "ARIMA" not in sentence
    assert "each of the 3 that were compared has a chance of 2.5 %" in sentence
