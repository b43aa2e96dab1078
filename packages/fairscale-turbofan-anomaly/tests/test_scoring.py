"""Thresholds, alarms, lead times and baselines, against cases that can be worked out by hand."""

import numpy as np
import pytest
from fairscale_turbofan_anomaly import baselines, scoring
from trainyard_shared.datasets.cmapss import Fleet


def fleet_of(*lengths: int) -> Fleet:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    remaining = np.concatenate([np.arange(length)[::-1] for length in lengths])
    rows = offsets[-1]
    return Fleet(np.arange(1, len(lengths) + 1), offsets, np.zeros((rows, 3)), np.zeros((rows, 21)), remaining)


def test_smoothing_stays_within_an_engine_and_looks_back_only() -> None:
    scores = np.array([0.0, 1.0, 1.0, 8.0, 0.0])
    smoothed = scoring.smooth(scores, fleet_of(3, 2), 0.5)
    assert smoothed.tolist() == [0.0, 0.5, 0.75, 8.0, 4.0]
    assert scoring.smooth(scores, fleet_of(3, 2), 1.0).tolist() == scores.tolist()
    later = scores.copy()
    later[2] = 100
    assert scoring.smooth(later, fleet_of(3, 2), 0.5)[:2].tolist() == smoothed[:2].tolist()


def test_best_threshold_equals_a_search_of_all() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.2).astype(int)
    scores = (rng.normal(size=300) + 1.5 * labels).round(1)  # many ties

    def f1(threshold: float) -> float:
        return scoring.figures(scores, labels, threshold).f1

    best = scoring.best_threshold(scores, labels)
    assert f1(best) == max(f1(threshold) for threshold in np.arange(-5, 6, 0.05))


def test_figures_by_hand() -> None:
    found = scoring.figures(np.array([0.9, 0.8, 0.3, 0.2]), np.array([1, 0, 1, 0]), 0.5)
    assert (found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5)
    assert found.pr_auc == pytest.approx((1 + 2 / 3) / 2)
    nothing = scoring.figures(np.array([0.1, 0.2]), np.array([0, 0]), 0.5)
    assert np.isnan([nothing.precision, nothing.recall, nothing.f1, nothing.pr_auc]).all()


def test_lead_times_and_false_alarms_by_hand() -> None:
    # Engine 1: a false alarm, then one that begins 4 cycles before failure, flickers and lasts. Engine 2: only a false
    # one. Engine 3: one that begins early and lasts into the last cycles is a warning, though an early one.
    on = [int(mark) for mark in "0100011011110000011111"]
    found = scoring.warnings(np.array(on, dtype=float), fleet_of(10, 6, 6), 0.5, horizon=3)
    assert found.lead_times[[0, 2]].tolist() == [4.0, 4.0]
    assert np.isnan(found.lead_times[1])
    assert found.false_alarms.tolist() == [1, 1, 0]


def test_last_rows() -> None:
    assert scoring.last_rows(fleet_of(3, 1, 2)).tolist() == [2, 3, 5]


def test_rolling_mean_and_cusum_stay_within_an_engine() -> None:
    fleet = fleet_of(3, 2)
    values = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]])
    assert baselines.rolling_mean(values, fleet, 2)[:, 0].tolist() == [1.0, 1.5, 2.5, 10.0, 15.0]
    assert baselines.cusum(values, fleet)[:, 0].tolist() == [0.5, 2.0, 4.5, 9.5, 29.0]
    assert baselines.cusum(-values, fleet)[:, 0].tolist() == [0.5, 2.0, 4.5, 9.5, 29.0], "both ways"


def test_arima_residual_grows_with_wear_and_takes_short_engines() -> None:
    rng = np.random.default_rng(0)
    fleet = fleet_of(120, 10, 1)
    wear = rng.normal(size=131)
    wear[80:120] += np.linspace(0, 10, 40)
    found = baselines.arima_residual(wear, fleet, window=5)
    assert np.isfinite(found).all()
    assert found[110:120].min() > 2 * found[:80].max()
