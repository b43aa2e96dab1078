"""Figures of merit as plain NumPy functions, and how a figure is written for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class PerClass:
    """Figures of each class, all of shape (C,). What is not defined is NaN, never a made-up 0 or 1.

    Precision is not defined for a class that was never predicted, recall for a class without samples, F1 for a class
    with neither.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """How a measurement came out in several runs. `std` is None for a single run, which says nothing of spread."""

    mean: float
    std: float | None
    min: float
    max: float
    n: int


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the fraction of predictions that equal their label."""
    true, predicted = _class_indices("labels", labels), _class_indices("predictions", predictions)
    _check_same_length("labels", true, "predictions", predicted)
    return float((true == predicted).mean())


def top_k_accuracy(labels: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Return the fraction of samples whose label is among the k best scores.

    Equal scores rank in the order of their classes, as `argmax` has it: k = 1 is the accuracy of `scores.argmax(1)`,
    and a model that gives every class the same score is not counted as right.

    Args:
        labels: Class indices, shape (N,).
        scores: Logits or probabilities, shape (N, C).
        k: From 1 to C.
    """
    true = _class_indices("labels", labels)
    table = np.asarray(scores)
    if table.ndim != 2 or len(table) != len(true):
        raise ValueError(
            f"scores must have the shape ({len(true)}, classes) to go with the labels, found {table.shape}"
        )
    num_classes = table.shape[1]
    _check_range("labels", true, num_classes)
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be between 1 and the {num_classes} classes, found {k}")
    if np.isnan(table).any():
        raise ValueError(f"scores hold NaN, first in row {int(np.isnan(table).any(axis=1).argmax())}")
    of_label = table[np.arange(len(true)), true][:, None]  # (N, 1)
    ahead_in_a_tie = (table == of_label) & (np.arange(num_classes) < true[:, None])
    ranks = ((table > of_label) | ahead_in_a_tie).sum(axis=1)
    return float((ranks < k).mean())


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count each pair of true class (row) and predicted class (column); the result is of shape (C, C)."""
    true, predicted = _class_indices("labels", labels), _class_indices("predictions", predictions)
    _check_same_length("labels", true, "predictions", predicted)
    _check_range("labels", true, num_classes)
    _check_range("predictions", predicted, num_classes)
    cells = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def per_class(confusion: ArrayLike) -> PerClass:
    """Return precision, recall, F1 and support of each class of a confusion matrix with true classes in rows."""
    matrix = _square_counts(confusion)
    correct, support, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return PerClass(
        precision=_ratio(correct, predicted),
        recall=_ratio(correct, support),
        f1=_ratio(2 * correct, support + predicted),
        support=support,
    )


def macro_f1(confusion: ArrayLike) -> float:
    """Return the mean F1 over the classes that occur among the labels or the predictions."""
    return float(np.nanmean(per_class(confusion).f1))


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rates, from (0, 0) to (1, 1), as the threshold falls from score to score.

    Args:
        labels: 0 or 1, shape (N,), both among them.
        scores: Higher for what is more likely to be 1, shape (N,). Equal scores pass the threshold together.
    """
    true, score = _class_indices("labels", labels), np.asarray(scores, dtype=np.float64)
    if score.shape != true.shape:
        raise ValueError(f"{len(true)} labels do not go with scores of shape {score.shape}")
    _check_range("labels", true, 2)
    _check_no_nan("scores", score)
    if true.min() == true.max():
        raise ValueError(f"labels must be of both classes, found only {true[0]}")
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # the last of each run of equal scores
    positives = np.cumsum(true[order])[ends]
    negatives = ends + 1 - positives
    return np.append(0.0, negatives / negatives[-1]), np.append(0.0, positives / positives[-1])


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return how often a sample of class 1 has a higher score than one of class 0; equal scores count half.

    Arguments as for `roc_curve`, under which this is the area.
    """
    false_positive_rate, true_positive_rate = roc_curve(labels, scores)
    return float(np.trapezoid(true_positive_rate, false_positive_rate))


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of the accuracy behind `correct` hits in `total` independent samples.

    Unlike mean ± z · standard error it stays within [0, 1] and keeps a width at 0 % and 100 %. It covers the chance in
    the choice of test samples alone, not the chance in training: that takes several seeds.
    """
    if total < 1:
        raise ValueError(f"total must be at least 1, found {total}")
    if not 0 <= correct <= total:
        raise ValueError(f"correct must be between 0 and total ({total}), found {correct}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, found {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half_width = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    # Rounding can put the exact bounds 0 and 1 outside by an ulp.
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def mae(actual: ArrayLike, forecast: ArrayLike) -> float:
    """Return the mean absolute error, in the unit of the values.

    Here and in the measures below, `actual` and `forecast` have the same shape, whatever it is: (T,), or (origins,
    horizon) of a walk-forward test. A forecast of NaN, from a model that diverged, makes the measure NaN.
    """
    true, predicted = _pairs(actual, forecast)
    return float(np.abs(true - predicted).mean())


def rmse(actual: ArrayLike, forecast: ArrayLike) -> float:
    """Return the root of the mean squared error, in the unit of the values."""
    true, predicted = _pairs(actual, forecast)
    return float(np.sqrt(((true - predicted) ** 2).mean()))


def mape(actual: ArrayLike, forecast: ArrayLike) -> float:
    """Return the mean absolute error relative to each actual value, as a fraction.

    Raises:
        ValueError: An actual value is 0, to which no error is relative; MASE takes such series.
    """
    true, predicted = _pairs(actual, forecast)
    if (true == 0).any():
        raise ValueError(f"MAPE is not defined for an actual value of 0, found first at {_first(true == 0)}; use MASE")
    return float(np.abs((true - predicted) / true).mean())


def smape(actual: ArrayLike, forecast: ArrayLike) -> float:
    """Return the mean of 2 · |error| / (|actual| + |forecast|), from 0 to 2, as a fraction.

    The form of the M3 competition, Makridakis & Hibon (2000). Where actual and forecast are both 0, the error is 0.
    """
    true, predicted = _pairs(actual, forecast)
    sizes = np.abs(true) + np.abs(predicted)
    return float((2 * np.abs(true - predicted) / np.where(sizes == 0, 1, sizes)).mean())


def mase(actual: ArrayLike, forecast: ArrayLike, history: ArrayLike, period: int = 1) -> float:
    """Return the mean absolute error relative to that of the seasonal naive forecast within the history.

    Below 1 the forecast is better than the naive one was, one step ahead, on the training data. From Hyndman & Koehler
    (2006), Another look at measures of forecast accuracy.

    Args:
        actual: Observed values, any shape.
        forecast: Of the same shape.
        history: The training series, shape (T,), longer than `period`. Nothing after it enters the scale.
        period: Values in a season; 1 for none.

    Raises:
        ValueError: The history repeats itself exactly, so that there is no scale.
    """
    past = np.asarray(history, dtype=np.float64)
    if past.ndim != 1 or not 1 <= period < len(past):
        raise ValueError(f"a history of shape {past.shape} has no changes over a period of {period}")
    scale = np.abs(past[period:] - past[:-period]).mean()
    if scale == 0:
        raise ValueError(f"MASE is not defined: the history of {len(past)} values never changes over {period}")
    return mae(actual, forecast) / float(scale)


def directional_accuracy(actual_change: ArrayLike, forecast_change: ArrayLike) -> tuple[int, int]:
    """Count how often the forecast says rightly whether the value goes up or down; see `wilson_interval`.

    Where the value does not change there is nothing to be right about: this is not counted. A forecast of no change is
    wrong whichever way the value goes.

    Returns:
        How many directions are right, and of how many.
    """
    true, predicted = _pairs(actual_change, forecast_change)
    _check_no_nan("changes", true, predicted)
    moved = true != 0
    return int((np.sign(true) == np.sign(predicted))[moved].sum()), int(moved.sum())


def coverage(actual: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """Return the fraction of values that lie within their interval, bounds included.

    To be compared with what the intervals promise: of 95 % intervals, 95 %.
    """
    true, lower = _pairs(actual, low)
    _, upper = _pairs(actual, high)
    _check_no_nan("values and bounds", true, lower, upper)
    if (lower > upper).any():
        raise ValueError(f"low is above high, first at {_first(lower > upper)}")
    return float(((lower <= true) & (true <= upper)).mean())


def pinball_loss(actual: ArrayLike, forecast: ArrayLike, quantile: float) -> float:
    """Return the mean loss whose best forecast is this quantile, in the unit of the values; 0.5 gives half the MAE.

    A value above its forecast costs `quantile` times the error, one below it `1 - quantile` times: Koenker & Bassett
    (1978), Regression Quantiles.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be between 0 and 1, found {quantile}")
    true, predicted = _pairs(actual, forecast)
    error = true - predicted
    return float(np.maximum(quantile * error, (quantile - 1) * error).mean())


def mean_and_spread(values: Sequence[float]) -> Spread:
    """Return mean, sample standard deviation, smallest, largest and number of the values. NaN among them stays NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values must be a list of at least one number, found shape {array.shape}")
    return Spread(
        mean=float(array.mean()),
        std=float(array.std(ddof=1)) if array.size > 1 else None,
        min=float(array.min()),
        max=float(array.max()),
        n=array.size,
    )


def clearly_best(values_of: Mapping[str, Sequence[float]], higher_is_better: bool) -> str | None:
    """Return the variant whose worst value is better than the best value of every other; None if the ranges overlap.

    A range of fewer than two values says nothing of the spread, and one with NaN or infinity has no worst value: either
    makes the comparison undecided.
    """
    sign = 1.0 if higher_is_better else -1.0
    ranges = {name: [sign * value for value in values] for name, values in values_of.items()}
    if len(ranges) < 2 or any(len(values) < 2 or not np.isfinite(values).all() for values in ranges.values()):
        return None
    best = max(ranges, key=lambda name: min(ranges[name]))
    rivals = [value for name, values in ranges.items() if name != best for value in values]
    return best if min(ranges[best]) > max(rivals) else None


def format_value(value: float | None, unit: str = "") -> str:
    """Write a figure for people: "fraction" as per cent, "bytes" as MiB, "s" as minutes, any other unit as it is.

    An absent figure (None) is a dash; NaN and infinity are named, because they mean that something went wrong.
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'−' if value < 0 else ''}infinite"
    match unit:
        case "fraction":
            return f"{100 * value:.2f} %"
        case "bytes":
            return _format_bytes(value)
        case "s":
            return _format_seconds(value)
    # A whole number with its thousands set apart, anything else to four figures.
    number = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"
    return f"{number} {unit}".strip()


def metric_label(name: str) -> str:
    """Write the name of a metric for people, without the unit that stands with its values: `wall_time_s`, wall time."""
    return name.removesuffix("_bytes").removesuffix("_s").replace("_", " ")


def _format_bytes(value: float) -> str:
    for prefix in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {prefix}" if prefix == "bytes" else f"{value:.4g} {prefix}"
        value /= 1024
    return f"{value:,.4g} TiB"


def _format_seconds(value: float) -> str:
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _class_indices(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        raise ValueError(f"{name} are empty")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be one row of integers, found shape {array.shape} of {array.dtype}")
    # In the dtype of the data set, often uint8, `label * num_classes` would wrap around.
    return array.astype(np.int64)


def _check_same_length(name: str, values: NDArray[np.int64], other_name: str, other_values: NDArray[np.int64]) -> None:
    if len(values) != len(other_values):
        raise ValueError(f"{len(values)} {name} do not go with {len(other_values)} {other_name}")


def _check_range(name: str, values: NDArray[np.int64], num_classes: int) -> None:
    outside = (values < 0) | (values >= num_classes)
    if outside.any():
        position = int(outside.argmax())
        raise ValueError(
            f"{name} must be between 0 and {num_classes - 1}, found {values[position]} at position {position}"
        )


def _pairs(actual: ArrayLike, forecast: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    true, predicted = np.asarray(actual, dtype=np.float64), np.asarray(forecast, dtype=np.float64)
    # Shapes that differ would be broadcast: a column against a row compares every value with every forecast.
    if true.shape != predicted.shape:
        raise ValueError(f"actual values of shape {true.shape} do not go with forecasts of shape {predicted.shape}")
    if true.size == 0:
        raise ValueError("there are no values to compare")
    return true, predicted


def _check_no_nan(name: str, *arrays: NDArray[np.float64]) -> None:
    # In a comparison NaN would count as a miss.
    for array in arrays:
        if np.isnan(array).any():
            raise ValueError(f"{name} hold NaN, first at {_first(np.isnan(array))}")


def _first(where: NDArray[np.bool_]) -> str:
    position = np.unravel_index(where.argmax(), where.shape)
    return "position " + ", ".join(map(str, position))


def _square_counts(confusion: ArrayLike) -> NDArray[np.int64]:
    matrix = np.asarray(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a confusion matrix must be square, found shape {matrix.shape}")
    if matrix.dtype.kind not in "iu" or (matrix < 0).any():
        raise ValueError("a confusion matrix must hold counts: whole numbers from 0 on")
    if matrix.sum() == 0:
        raise ValueError("the confusion matrix is empty: it counts no sample")
    return matrix.astype(np.int64)


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    undefined = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)
