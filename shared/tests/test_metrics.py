import math
from statistics import NormalDist

import numpy as np
import pytest
from trainyard_shared import metrics

LABELS = [0, 0, 0, 1, 1, 2]
PREDICTIONS = [0, 0, 1, 1, 2, 2]


def test_accuracy_is_the_share_of_equal_pairs() -> None:
    assert metrics.accuracy(LABELS, PREDICTIONS) == pytest.approx(4 / 6)


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    matrix = metrics.confusion_matrix(LABELS, PREDICTIONS, 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_confusion_matrix_of_uint8_labels_does_not_wrap_around() -> None:
    labels = np.arange(100, dtype=np.uint8)
    assert (metrics.confusion_matrix(labels, labels, 100) == np.eye(100)).all()


def test_per_class_figures() -> None:
    figures = metrics.per_class(metrics.confusion_matrix(LABELS, PREDICTIONS, 3))
    np.testing.assert_allclose(figures.precision, [1, 1 / 2, 1 / 2])
    np.testing.assert_allclose(figures.recall, [2 / 3, 1 / 2, 1])
    np.testing.assert_allclose(figures.f1, [4 / 5, 1 / 2, 2 / 3])
    assert figures.support.tolist() == [3, 2, 1]


def test_what_is_not_defined_for_a_class_is_nan() -> None:
    # Class 2 has no samples but was predicted once; class 3 has neither.
    figures = metrics.per_class([[2, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_equal(figures.precision, [0.5, np.nan, 0, np.nan])
    np.testing.assert_equal(figures.recall, [2 / 3, 0, np.nan, np.nan])
    np.testing.assert_equal(figures.f1, [4 / 7, 0, 0, np.nan])


def test_macro_f1_averages_over_the_classes_that_occur() -> None:
    matrix = metrics.confusion_matrix(LABELS, PREDICTIONS, 4)
    assert metrics.macro_f1(matrix) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_top_k_counts_labels_among_the_k_best_scores() -> None:
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.3, 0.4, 0.35]]
    assert [metrics.top_k_accuracy([2, 0, 0], scores, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_top_1_is_the_accuracy_of_argmax_also_with_equal_scores() -> None:
    scores = np.random.default_rng(0).integers(0, 3, (200, 5))
    labels = np.random.default_rng(1).integers(0, 5, 200)
    assert metrics.top_k_accuracy(labels, scores, 1) == metrics.accuracy(labels, scores.argmax(axis=1))


def test_wilson_interval_matches_the_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, and 0 of 20 gives 0 to 0.1611.
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert metrics.wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1), abs=5e-5)


def test_wilson_interval_widens_with_confidence() -> None:
    low, high = metrics.wilson_interval(90, 100, confidence=0.99)
    assert low < metrics.wilson_interval(90, 100)[0] < metrics.wilson_interval(90, 100)[1] < high


def test_mean_and_spread_has_the_sample_standard_deviation() -> None:
    assert metrics.mean_and_spread([1.0, 2.0, 3.0]) == metrics.Spread(mean=2.0, std=1.0, min=1.0, max=3.0, n=3)


def test_a_single_value_has_no_spread() -> None:
    assert metrics.mean_and_spread([5.0]).std is None


def test_nan_among_the_values_is_not_hidden() -> None:
    assert math.isnan(metrics.mean_and_spread([1.0, math.nan]).mean)


@pytest.mark.parametrize(
    ("values_of", "higher_is_better", "best"),
    [
        ({"a": [1, 2], "b": [3, 4]}, True, "b"),
        ({"a": [1, 2], "b": [3, 4]}, False, "a"),
        ({"a": [1, 3], "b": [3, 4]}, True, None),
        ({"a": [1, 2], "b": [3, 4], "c": [3.5, 5]}, True, None),
        ({"a": [1, 2], "b": [9]}, True, None),
        ({"a": [1, math.nan], "b": [3, 4]}, True, None),
        ({"a": [1, 2]}, True, None),
    ],
)
def test_clearly_best_needs_ranges_that_do_not_overlap(values_of, higher_is_better, best) -> None:
    assert metrics.clearly_best(values_of, higher_is_better) == best


def test_errors_of_forecasts_by_hand() -> None:
    # The errors are 1, 0 and 3.
    assert metrics.mae([1, 2, 4], [2, 2, 1]) == pytest.approx(4 / 3)
    assert metrics.rmse([1, 2, 4], [2, 2, 1]) == pytest.approx(math.sqrt(10 / 3))
    assert metrics.mape([-1, 2, 4], [-2, 2, 1]) == pytest.approx((1 + 0 + 3 / 4) / 3)
    assert metrics.smape([-1, 2, 4], [-2, 2, 1]) == pytest.approx((2 * 1 / 3 + 0 + 2 * 3 / 5) / 3)


def test_errors_of_a_walk_forward_test_count_every_origin_and_step() -> None:
    assert metrics.mae([[1, 2], [4, 5]], [[2, 2], [1, 5]]) == 1
    assert metrics.rmse([[1, 2], [4, 5]], [[2, 2], [1, 5]]) == pytest.approx(math.sqrt(10 / 4))


def test_smape_of_nothing_sold_and_nothing_forecast_is_0() -> None:
    assert metrics.smape([0, 0], [0, 3]) == 1  # the mean of 0 and 2


def test_mase_is_relative_to_the_changes_within_the_history() -> None:
    # Changes of 2, 1 and 4; over two steps 1 and 3.
    assert metrics.mase([1, 2, 4], [2, 2, 1], [1, 3, 2, 6]) == pytest.approx((4 / 3) / (7 / 3))
    assert metrics.mase([1, 2, 4], [2, 2, 1], [1, 3, 2, 6], period=2) == pytest.approx((4 / 3) / 2)


def test_mase_of_the_naive_forecast_within_its_history_is_1() -> None:
    history = np.random.default_rng(0).normal(size=100).cumsum()
    assert metrics.mase(history[1:], history[:-1], history) == pytest.approx(1)


def test_forecasts_of_a_model_that_diverged_have_no_error_to_speak_of() -> None:
    for measure in (metrics.mae, metrics.rmse, metrics.mape, metrics.smape):
        assert math.isnan(measure([1, 2], [1, math.nan]))


def test_directions_count_only_where_the_value_moves() -> None:
    # Right: +1 and -3. No change in the third place; a forecast of none in the fourth is wrong.
    assert metrics.directional_accuracy([1, -1, 0, 2, -3], [2, 1, 5, 0, -1]) == (2, 4)
    assert metrics.directional_accuracy([0, 0], [1, -1]) == (0, 0)


def test_coverage_counts_values_on_the_bounds() -> None:
    assert metrics.coverage([1, 2, 3, 4], low=[1, 3, 2, 0], high=[1, 4, 4, 4]) == 0.75
    low, high = NormalDist().inv_cdf(0.1), NormalDist().inv_cdf(0.9)
    values = np.random.default_rng(0).normal(size=20_000)
    assert metrics.coverage(values, np.full(20_000, low), np.full(20_000, high)) == pytest.approx(0.8, abs=0.01)


def test_pinball_loss_by_hand() -> None:
    # 2 below the value, at 0.9 each, and 3 above it, at 0.1 each.
    assert metrics.pinball_loss([10, 10], [8, 13], 0.9) == pytest.approx((0.9 * 2 + 0.1 * 3) / 2)
    assert metrics.pinball_loss([10, 10], [8, 13], 0.5) == metrics.mae([10, 10], [8, 13]) / 2


def test_pinball_loss_is_least_at_the_quantile() -> None:
    values = np.arange(1001) / 1000
    losses = [metrics.pinball_loss(values, np.full(1001, forecast), 0.3) for forecast in np.arange(11) / 10]
    assert int(np.argmin(losses)) == 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.accuracy([], []), "labels are empty"),
        (lambda: metrics.accuracy([0, 1], [0]), "2 labels do not go with 1 predictions"),
        (
            lambda: metrics.accuracy([0, 1], [0.0, 1.0]),
            r"predictions must be .* integers, found shape \(2,\) of float64",
        ),
        (lambda: metrics.accuracy([[0], [1]], [0, 1]), r"labels must be one row .* found shape \(2, 1\)"),
        (lambda: metrics.confusion_matrix([0, 3], [0, 0], 3), "labels must be between 0 and 2, found 3 at position 1"),
        (lambda: metrics.confusion_matrix([0, 0], [0, -1], 3), "predictions must be .* found -1 at position 1"),
        (lambda: metrics.per_class([[1, 2]]), r"must be square, found shape \(1, 2\)"),
        (lambda: metrics.per_class([[0.5, 0.5], [0, 1]]), "must hold counts"),
        (lambda: metrics.macro_f1([[0, 0], [0, 0]]), "counts no sample"),
        (lambda: metrics.top_k_accuracy([0], [[1.0, 2.0]], 3), "k must be between 1 and the 2 classes, found 3"),
        (lambda: metrics.top_k_accuracy([0, 1], [[1.0, 2.0]], 1), r"shape \(2, classes\) .* found \(1, 2\)"),
        (lambda: metrics.top_k_accuracy([2], [[1.0, 2.0]], 1), "labels must be between 0 and 1, found 2"),
        (lambda: metrics.top_k_accuracy([0, 0], [[1.0, 2.0], [math.nan, 0]], 1), "NaN, first in row 1"),
        (lambda: metrics.wilson_interval(1, 0), "total must be at least 1"),
        (lambda: metrics.wilson_interval(3, 2), "between 0 and total"),
        (lambda: metrics.wilson_interval(1, 2, confidence=95), "between 0 and 1, found 95"),
        (lambda: metrics.mean_and_spread([]), "at least one number"),
        (lambda: metrics.mae([], []), "no values to compare"),
        (lambda: metrics.rmse([1, 2], [1]), r"shape \(2,\) do not go with forecasts of shape \(1,\)"),
        (lambda: metrics.smape([[1], [2]], [1, 2]), r"shape \(2, 1\) do not go with forecasts of shape \(2,\)"),
        (lambda: metrics.mape([1, 0, 0], [1, 1, 1]), "actual value of 0, found first at position 1; use MASE"),
        (lambda: metrics.mape([[1, 2], [3, 0]], np.ones((2, 2))), "found first at position 1, 1;"),
        (lambda: metrics.mase([1], [1], [5, 5, 5]), "history of 3 values never changes over 1"),
        (lambda: metrics.mase([1], [1], [5, 6], period=2), r"shape \(2,\) has no changes over a period of 2"),
        (lambda: metrics.mase([1], [1], [5, 6], period=0), "over a period of 0"),
        (lambda: metrics.directional_accuracy([1, 1], [1, math.nan]), "changes hold NaN, first at position 1"),
        (lambda: metrics.coverage([1], [math.nan], [2]), "values and bounds hold NaN, first at position 0"),
        (lambda: metrics.coverage([1, 1], [0, 3], [2, 2]), "low is above high, first at position 1"),
        (lambda: metrics.coverage([1, 1], [0, 0], [2]), r"do not go with forecasts of shape \(1,\)"),
        (lambda: metrics.pinball_loss([1], [1], 1), "quantile must be between 0 and 1, found 1"),
    ],
)
def test_arguments_that_make_no_sense_are_named(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9123, "fraction", "91.23 %"),
        (None, "fraction", "–"),
        (math.nan, "fraction", "NaN"),
        (-math.inf, "", "−infinite"),
        (512, "bytes", "512 bytes"),
        (1536 * 1024, "bytes", "1.5 MiB"),
        (3 * 1024**4, "bytes", "3 TiB"),
        (12.345, "s", "12.3 s"),
        (59.96, "s", "1 min 00 s"),
        (95.3, "s", "1 min 35 s"),
        (3725, "s", "1 h 02 min"),
        (1234.56, "images/s", "1,235 images/s"),
        (0.000123456, "", "0.0001235"),
        (42, "", "42"),
    ],
)
def test_figures_are_written_for_people(value, unit, text) -> None:
    assert metrics.format_value(value, unit) == text


def test_labels_of_metrics_drop_the_unit() -> None:
    assert [metrics.metric_label(name) for name in ("test_accuracy", "wall_time_s", "peak_memory_bytes")] == [
        "test accuracy",
        "wall time",
        "peak memory",
    ]
