"""Pictures of a run, in one style: colour-blind safe, readable at the width of a report, each a PNG written atomically.

Every function takes data and a path and returns the path. All take a `title`, a `subtitle` in grey below it, and a
`note` that is printed in a band at the bottom so that it goes wherever the picture goes: "generated sample data".
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared import metrics
from trainyard_shared.console import bytes_text
from trainyard_shared.metrics import Spread, format_value, mean_and_spread, metric_label, wilson_interval
from trainyard_shared.results import atomic_path

# matplotlib takes a third of a second to import: only a process that draws pays for it.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, ORANGE, GREEN, VERMILLION, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
INK, GREY, LIGHT_GREY = "#222222", "#666666", "#CCCCCC"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 10,
    "text.color": INK,
    "text.usetex": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}
# For curves that share a picture: told apart by the marker, too.
CURVE_STYLES = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILLION, "D"), (SKY, "v"), (INK, "x")]
WHISKERS: dict[str, Any] = {"ecolor": INK, "elinewidth": 1.2, "capsize": 3}
WIDTH = 6.6  # inches: with 10 point letters two such pictures are readable side by side in a report
DPI = 160

MAX_CLASSES_WITH_NUMBERS = 20
MAX_CLASSES_WITH_NAMES = 40
NUM_CONFUSED_PAIRS = 12
NUM_EXTREME_CLASSES = 20


def training_curves(
    records: Sequence[Mapping[str, Any]],
    path: Path,
    title: str = "Training",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw loss, accuracy and learning rate over the steps; a curve without a record is left out.

    The records are those of metrics.jsonl: `kind` "train" or "val", `step`, and any of `loss`, `accuracy` and
    `learning_rate`. Of several records of a step, as a restarted run leaves them, the last counts.
    """
    panels = [
        (name, label, [(kind, *_curve(records, kind, name)) for kind in ("train", "val")])
        for name, label in (("loss", "loss"), ("accuracy", "accuracy (%)"), ("learning_rate", "learning rate"))
    ]
    panels = [panel for panel in panels if any(len(steps) for _, steps, _ in panel[2])]
    if not panels:
        return _only_words("Nothing was recorded yet.", path, title, subtitle, note)
    heights = [2.6 if name != "learning_rate" else 1.6 for name, _, _ in panels]
    with _picture(path, WIDTH, sum(heights), title, subtitle, note) as figure:
        all_axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, label, curves) in zip(all_axes, panels, strict=True):
            for kind, steps, values in curves:
                if len(steps) == 0:
                    continue
                _draw_curve(axes, name, kind, steps, 100 * values if name == "accuracy" else values)
            axes.set_ylabel(label)
            if name != "learning_rate":
                axes.legend(loc="best", fontsize=9)
        figure.align_ylabels(all_axes)
        all_axes[-1].set_xlabel("optimizer step")
        logged = sorted({step for _, _, curves in panels for _, steps, _ in curves for step in steps})
        if len(logged) <= 5:
            all_axes[-1].set_xticks(logged)
    return path


def confusion_matrix(
    matrix: ArrayLike,
    class_names: Sequence[str],
    path: Path,
    title: str = "Confusion matrix",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw which class is taken for which, each row coloured by its share of the true class.

    Up to 20 classes have the share and the count printed in the cells, up to 40 their names at the axes. With more, the
    picture shows the structure and lists the pairs most often confused. `matrix` holds counts, shape (C, C), with the
    true classes in rows.
    """
    from matplotlib.colors import Normalize, PowerNorm

    counts = _counts(matrix, class_names)
    num_classes = len(counts)
    support = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.maximum(support, 1)
    names = [_plain(_shortened(name, 20)) for name in class_names]
    with_pairs = num_classes > MAX_CLASSES_WITH_NAMES
    height = 4.2 if num_classes <= 4 else 5.6
    with _picture(path, WIDTH, height + (1.8 if with_pairs else 0), title, subtitle, note) as figure:
        if with_pairs:
            axes, words = figure.subplots(2, height_ratios=[height, 1.8])
            _list_confused_pairs(words, counts, shares, class_names)
        else:
            axes = figure.subplots()
        # With many classes nearly all mistakes are shares of a few per cent: spread the low end of the colours.
        norm = PowerNorm(0.5, 0, 100) if with_pairs else Normalize(0, 100)
        image = axes.imshow(shares, cmap="Blues", norm=norm)
        figure.colorbar(image, ax=axes, label="share of the true class (%)", fraction=0.05, pad=0.02)
        axes.grid(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        shown = range(0, num_classes, 10) if with_pairs else range(num_classes)
        size = 9 if num_classes <= 10 else 7.5 if num_classes <= MAX_CLASSES_WITH_NUMBERS else 6
        crowded = num_classes * max(map(len, names)) > 40
        axes.set_xticks(list(shown), [names[index] for index in shown], fontsize=size, rotation=90 if crowded else 0)
        axes.set_yticks(list(shown), [names[index] for index in shown], fontsize=size)
        if num_classes <= MAX_CLASSES_WITH_NUMBERS:
            _print_cells(axes, counts, shares, with_counts=num_classes <= 10)
    return path


def per_class_accuracy(
    matrix: ArrayLike,
    class_names: Sequence[str],
    path: Path,
    title: str = "Accuracy by class",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw the accuracy within each class as sorted bars with 95 % Wilson intervals.

    Classes without samples are left out. Of more than 40 classes the 20 best and the 20 worst are shown. `matrix` holds
    counts, shape (C, C), with the true classes in rows.
    """
    counts = _counts(matrix, class_names)
    correct, support = np.diag(counts), counts.sum(axis=1)
    present = np.flatnonzero(support)
    if not len(present):
        return _only_words("No sample was evaluated.", path, title, subtitle, note)
    ranked = present[np.argsort(-correct[present] / support[present], kind="stable")]
    if len(ranked) > 2 * NUM_EXTREME_CLASSES:
        left_out = len(ranked) - 2 * NUM_EXTREME_CLASSES
        groups = [ranked[:NUM_EXTREME_CLASSES], ranked[-NUM_EXTREME_CLASSES:]]
    else:
        left_out, groups = 0, [ranked]
    shown = np.concatenate(groups)
    # One empty place between the groups, for the words that say how many are missing there.
    places = np.concatenate([np.arange(len(groups[0])), len(groups[0]) + 1 + np.arange(len(shown) - len(groups[0]))])
    shares = 100 * correct[shown] / support[shown]
    bounds = 100 * np.array([wilson_interval(int(correct[index]), int(support[index])) for index in shown])  # (n, 2)
    # At 0 % and 100 % rounding can put the share outside of its interval by an ulp.
    whiskers = np.maximum(0, np.stack([shares - bounds[:, 0], bounds[:, 1] - shares]))
    with _picture(path, WIDTH, 1.1 + 0.24 * (places[-1] + 1), title, subtitle, note) as figure:
        axes = figure.subplots()
        axes.barh(places, shares, height=0.72, color=SKY)
        axes.errorbar(shares, places, xerr=whiskers, fmt="none", **WHISKERS, label="95 % interval")
        overall = 100 * correct.sum() / support.sum()
        axes.axvline(overall, color=VERMILLION, linestyle="--", linewidth=1.5, label=f"all classes: {overall:.1f} %")
        axes.set_yticks(places, [_plain(class_names[index]) for index in shown], fontsize=9)
        for place, share, samples in zip(places, shares, support[shown], strict=True):
            axes.text(102, place, f"{share:.1f} % of {samples:,}", va="center", fontsize=8, color=GREY)
        if left_out:
            axes.text(1, len(groups[0]), f"… {left_out} classes in between …", va="center", fontsize=9, color=GREY)
        axes.set_xlim(0, 100)
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.set_xlabel("correct (%)")
        axes.grid(False, axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9, borderaxespad=0.2)
    return path


def misclassified_images(
    images: NDArray[np.uint8],
    labels: ArrayLike,
    predictions: ArrayLike,
    confidences: ArrayLike,
    class_names: Sequence[str],
    path: Path,
    max_images: int = 25,
    title: str = "Most confident mistakes",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw the wrongly classified images of which the model was most certain, with what it took them for.

    `images` are uint8 of shape (N, 3, H, W) or (N, H, W, 3); those classified rightly are passed over. `labels`,
    `predictions` and `confidences` have the shape (N,), the last being the probabilities, from 0 to 1, given to the
    predicted classes.
    """
    true, predicted, certain = np.asarray(labels), np.asarray(predictions), np.asarray(confidences, dtype=np.float64)
    if images.dtype != np.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
        raise ValueError(f"images must be (N, 3, H, W) or (N, H, W, 3) of uint8, found {images.shape} {images.dtype}")
    if not images.shape[:1] == true.shape == predicted.shape == certain.shape:
        raise ValueError(
            f"images, labels, predictions and confidences must go together, found {len(images)}, {true.shape}, "
            f"{predicted.shape} and {certain.shape}"
        )
    if images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    mistakes = np.flatnonzero(true != predicted)
    if not len(mistakes):
        return _only_words(f"No mistake among {len(true):,} images.", path, title, subtitle, note)
    worst = mistakes[np.argsort(-certain[mistakes], kind="stable")][:max_images]
    subtitle = subtitle or f"{len(worst)} of {len(mistakes):,} wrongly classified images: true class → predicted class"
    rows = math.ceil(len(worst) / 5)
    with _picture(path, WIDTH, 1.65 * rows, title, subtitle, note) as figure:
        grid = figure.subplots(rows, 5, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, index in zip(grid.flat, worst, strict=False):
            axes.imshow(images[index], interpolation="nearest")
            of, taken_for = (_plain(_shortened(class_names[which[index]], 13)) for which in (true, predicted))
            axes.set_title(f"{of} →\n{taken_for} {_percent(certain[index])}", fontsize=7.5, pad=3)
    return path


def comparison_bars(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    path: Path,
    unit: str = "",
    title: str = "",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw one metric of several variants: mean, sample standard deviation as whiskers, and each seed as a dot.

    Bars begin at zero. Where that would hide the differences, because all values lie close together, the means are
    drawn as diamonds on an axis that does not begin at zero and says so.

    Each row is `{"variant": name, "values": {metric: [one value for each seed]}}`. A variant without the metric keeps
    its place, marked as such; NaN and infinity are counted, not drawn. `unit` is as in `format_value`.
    """
    name = metric_label(metric)
    title = title or name.capitalize()
    spreads = [_finite_spread(row["values"].get(metric, [])) for row in rows]
    drawn = [value for _, values in spreads for value in values]
    if not drawn:
        return _only_words("No variant has a value.", path, title, subtitle, note)
    factor, unit_label = _axis_unit(unit, max(map(abs, drawn)))
    lowest, highest = min(drawn), max(drawn)
    from_zero = lowest < 0.7 * highest or highest <= 0
    places = range(len(rows))
    with _picture(path, WIDTH, 1.1 + 0.55 * len(rows), title, subtitle, note) as figure:
        axes = figure.subplots()
        for place, row, (spread, values) in zip(places, rows, spreads, strict=True):
            logged = row["values"].get(metric, [])
            words = _in_words(spread, logged, unit)
            axes.text(1.02, place, words, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
            if len(logged) > 1:
                axes.scatter(factor * np.array(values), [place] * len(values), s=22, color=VERMILLION, zorder=4)
            if spread is None or len(values) < len(logged):
                continue  # the mean of those that did not diverge would flatter the variant
            if from_zero:
                axes.barh(place, factor * spread.mean, height=0.6, color=SKY, zorder=1)
            else:
                axes.plot(factor * spread.mean, place, marker="D", markersize=9, color=SKY, zorder=2)
            if spread.std is not None:
                axes.errorbar(factor * spread.mean, place, xerr=factor * spread.std, fmt="none", **WHISKERS, zorder=3)
        axes.set_yticks(places, [_plain("\n".join(textwrap.wrap(str(row["variant"]), 24))) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        if not from_zero:
            axes.margins(x=0.15)
        axes.set_xlabel(_plain(name + unit_label) + ("" if from_zero else " · axis does not begin at 0"))
        _comparison_legend(figure, axes, from_zero, any(spread and spread.n > 1 for spread, _ in spreads))
    return path


def scaling(
    processes: Sequence[int],
    throughput: Sequence[Sequence[float]],
    path: Path,
    unit: str = "images/s",
    title: str = "Scaling",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw throughput against the number of processes, beside the ideal, with the parallel efficiency at each point.

    The ideal is proportional to the number of processes and goes through the mean at the smallest number. `throughput`
    holds, for each number of processes, one value for each seed.
    """
    if len(processes) != len(throughput) or not len(processes):
        raise ValueError(f"{len(processes)} numbers of processes do not go with {len(throughput)} lists of throughput")
    order = np.argsort(processes)
    counts = np.array(processes)[order]
    spreads = [mean_and_spread(throughput[index]) for index in order]
    means = np.array([spread.mean for spread in spreads])
    ideal = means[0] * counts / counts[0]
    several_seeds = any(spread.n > 1 for spread in spreads)
    with _picture(path, WIDTH, 4.0, title, subtitle, note) as figure:
        axes = figure.subplots()
        if len(counts) > 1:
            axes.plot(counts, ideal, color=GREY, linestyle="--", linewidth=1.5, label="ideal: proportional")
        axes.plot(counts, means, color=BLUE, marker="o", label="mean" if several_seeds else "one run")
        if several_seeds:
            axes.errorbar(
                counts,
                means,
                [spread.std or 0 for spread in spreads],
                fmt="none",
                **WHISKERS,
                zorder=3,
                label="± sample standard deviation",
            )
            of_seeds = np.array([(count, v) for i, count in zip(order, counts, strict=True) for v in throughput[i]])
            axes.scatter(of_seeds[:, 0], of_seeds[:, 1], s=20, color=VERMILLION, zorder=4, label="one seed")
        for count, spread, share in zip(counts, spreads, means / ideal, strict=True):
            lowest = min(spread.min, spread.mean - (spread.std or 0))
            axes.annotate(
                f"{100 * share:.0f} %", (count, lowest), (0, -8), textcoords="offset points", ha="center", va="top"
            )
        axes.set_xticks(counts)
        axes.set_xlim(counts[0] - 0.4, counts[-1] + 0.4)
        axes.set_ylim(0, 1.1 * max(ideal.max(), means.max()))
        axes.set_xlabel("processes")
        axes.set_ylabel(f"throughput ({_plain(unit)})")
        axes.legend(
            loc="upper left", title="percentages: parallel efficiency", title_fontsize=9, fontsize=9, alignment="left"
        )
    return path


def bandwidth(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    path: Path,
    title: str = "Bandwidth",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw bandwidth over message size, both on logarithmic axes, one curve for each collective.

    `curves` holds, by name, pairs of the message's bytes and the bandwidth in bytes/s; there are at most 6.
    """
    if not curves or len(curves) > len(CURVE_STYLES):
        raise ValueError(f"{len(curves)} curves: must be 1 to {len(CURVE_STYLES)}")
    with _picture(path, WIDTH, 4.2, title, subtitle, note) as figure:
        axes = figure.subplots()
        for (name, points), (colour, marker) in zip(curves.items(), CURVE_STYLES, strict=False):
            sizes, rates = zip(*points, strict=True)
            axes.plot(sizes, np.array(rates) / 1e9, color=colour, marker=marker, markersize=5, label=_plain(name))
        ticks = sorted({size for points in curves.values() for size, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [bytes_text(size).replace(".0 ", " ") for size in ticks], rotation=30, ha="right")
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("message size")
        axes.set_ylabel("bandwidth (GB/s)")
        axes.legend(loc="best", fontsize=9)
    return path


def forecast(
    steps: ArrayLike,
    actual: ArrayLike,
    forecasts: Mapping[str, ArrayLike],
    path: Path,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
    interval_label: str = "95 % interval",
    x_label: str = "",
    y_label: str = "",
    title: str = "Forecast",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw a series and forecasts of it, with an interval as a band.

    Args:
        steps: Dates (datetime64) or numbers, shape (N,), ascending.
        actual: Observed values, shape (N,); NaN where there is none.
        forecasts: At most 6 by name, each of shape (N,); NaN where there is none.
        path: Where to write the picture.
        interval: Lower and upper bounds, shape (N,) each; NaN where there are none.
        interval_label: What the band is.
        x_label: What `steps` are; dates need no label.
        y_label: What the values are, with the unit.
        title: In bold on top.
        subtitle: In grey below the title.
        note: In the band at the bottom.
    """
    when = np.asarray(steps)
    values = {name: np.asarray(curve, dtype=np.float64) for name, curve in {"actual": actual, **forecasts}.items()}
    bounds = [np.asarray(bound, dtype=np.float64) for bound in interval or ()]
    if any(curve.shape != when.shape for curve in [*values.values(), *bounds]) or when.ndim != 1:
        shapes = ", ".join(f"{name} {curve.shape}" for name, curve in values.items())
        raise ValueError(f"all curves must have a value for each of {when.shape} steps; found {shapes}")
    if not 1 <= len(forecasts) <= len(CURVE_STYLES):
        raise ValueError(f"{len(forecasts)} forecasts: must be 1 to {len(CURVE_STYLES)}")
    with _picture(path, WIDTH, 3.6, title, subtitle, note) as figure:
        axes = figure.subplots()
        axes.plot(when, values.pop("actual"), color=INK, linewidth=1.3, label="actual")
        if bounds:
            low, high = bounds
            axes.fill_between(when, low, high, color=SKY, alpha=0.3, linewidth=0, label=_plain(interval_label))
        for (name, curve), (colour, marker) in zip(values.items(), CURVE_STYLES, strict=False):
            few = np.isfinite(curve).sum() <= 31  # with more, markers would hide the curve
            axes.plot(
                when, curve, color=colour, linewidth=1.5, marker=marker if few else "", markersize=4, label=_plain(name)
            )
        if when.dtype.kind == "M":
            _date_ticks(axes)
        axes.set_xlabel(_plain(x_label))
        axes.set_ylabel(_plain(y_label))
        _legend_above(axes)
    return path


def errors_by_horizon(
    errors: Mapping[str, Sequence[float]],
    path: Path,
    metric: str = "mae",
    unit: str = "",
    title: str = "Error by horizon",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw how the error of each forecaster grows with the number of steps ahead.

    `errors` holds, by name, one value for each step from 1 to the horizon, the same for all; there are at most 12
    curves. The axis begins at zero, unless that would hide the differences. `unit` is as in `format_value`.
    """
    horizons = {len(values) for values in errors.values()}
    if len(horizons) != 1 or 0 in horizons or len(errors) > 2 * len(CURVE_STYLES):
        raise ValueError(
            f"must be 1 to {2 * len(CURVE_STYLES)} forecasters with errors for the same steps; found "
            + (", ".join(f"{name}: {len(values)}" for name, values in errors.items()) or "none")
        )
    steps = np.arange(1, horizons.pop() + 1)
    finite = [value for values in errors.values() for value in values if math.isfinite(value)]
    if not finite:
        return _only_words("No forecaster has a value.", path, title, subtitle, note)
    factor, unit_label = _axis_unit(unit, max(finite))
    from_zero = min(finite) < 0.7 * max(finite)
    with _picture(path, WIDTH, 3.8, title, subtitle, note) as figure:
        axes = figure.subplots()
        for i, (name, values) in enumerate(errors.items()):
            colour, marker = CURVE_STYLES[i % len(CURVE_STYLES)]
            line = "-" if i < len(CURVE_STYLES) else "--"
            heights = factor * np.where(np.isfinite(values), values, np.nan)
            axes.plot(
                steps, heights, line, color=colour, marker=marker, markersize=5, linewidth=1.5, label=_plain(name)
            )
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xticks(steps if len(steps) <= 14 else steps[6::7])
        axes.set_xlabel("steps ahead")
        words = _plain(metric_label(metric) + unit_label)
        axes.set_ylabel(words if from_zero else f"{words} · not from 0")
        _legend_above(axes)
    return path


def heat_map(
    values: ArrayLike,
    row_names: Sequence[str],
    column_names: Sequence[str],
    path: Path,
    row_label: str = "",
    column_label: str = "",
    unit: str = "",
    title: str = "",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw one figure for each pair of two settings, darker where it is larger and printed in its cell.

    `values` has the shape (R, C); a cell of NaN, a run that failed or was not made, stays white and has a dash. `unit`
    is as in `format_value`.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.shape != (len(row_names), len(column_names)):
        raise ValueError(f"values of shape {table.shape} do not go with {len(row_names)} x {len(column_names)} names")
    finite = table[np.isfinite(table)]
    if not finite.size:
        return _only_words("No cell has a value.", path, title, subtitle, note)
    factor, unit_label = _axis_unit(unit, float(np.abs(finite).max()))
    shown = np.where(np.isfinite(table), factor * table, np.nan)
    low, high = factor * finite.min(), factor * finite.max()
    with _picture(path, WIDTH, 1.2 + 0.5 * len(row_names), title, subtitle, note) as figure:
        axes = figure.subplots()
        image = axes.imshow(shown, cmap="Blues", vmin=low, vmax=high if high > low else low + 1, aspect="auto")
        figure.colorbar(image, ax=axes, label=_plain(unit_label.strip(" ()")), fraction=0.05, pad=0.02)
        axes.grid(False)
        axes.set_xticks(range(len(column_names)), [_plain(name) for name in column_names])
        axes.set_yticks(range(len(row_names)), [_plain(name) for name in row_names])
        axes.set_xlabel(_plain(column_label))
        axes.set_ylabel(_plain(row_label))
        for (row, column), value in np.ndenumerate(shown):
            known = bool(np.isfinite(value))
            dark = known and high > low and value > low + 0.55 * (high - low)
            words = format_value(float(table[row, column]), unit) if known else "–"
            axes.text(column, row, words, ha="center", va="center", fontsize=9, color="white" if dark else INK)
    return path


def roc_curve(
    labels: ArrayLike,
    scores: ArrayLike,
    path: Path,
    positive: str = "1",
    title: str = "ROC curve",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw true over false positive rate for every threshold, with the area below and the point of threshold 0.5.

    `labels` are 0 or 1, `scores` probabilities of 1, shape (N,) each; `positive` names class 1.
    """
    false_rate, true_rate = metrics.roc_curve(labels, scores)
    true, called = np.asarray(labels), np.asarray(scores) >= 0.5
    point = 100 * called[true == 0].mean(), 100 * called[true == 1].mean()
    with _picture(path, WIDTH, 4.6, title, subtitle, note) as figure:
        axes = figure.subplots()
        area = metrics.roc_auc(labels, scores)
        axes.plot(100 * false_rate, 100 * true_rate, color=BLUE, label=f"area below: {area:.4f}")
        axes.plot(*point, color=VERMILLION, marker="o", linewidth=0, label="threshold 0.5")
        axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1.5, label="guessing: 0.5")
        axes.set_aspect("equal")
        axes.set_xlim(-1, 101)
        axes.set_ylim(-1, 101)
        axes.set_xlabel(f"taken for {_plain(positive)} although they are not (%)")
        axes.set_ylabel(f"rightly taken for {_plain(positive)} (%)")
        axes.legend(loc="lower right", fontsize=9)
    return path


def search_history(
    values: Sequence[float | None],
    pruned: Sequence[bool],
    parameters: Mapping[str, Sequence[float]],
    path: Path,
    metric: str = "val_accuracy",
    unit: str = "",
    logarithmic: Sequence[str] = (),
    title: str = "Hyperparameter search",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw how good each trial was and the best so far, and below it the values over each parameter.

    Args:
        values: One for each trial, the last one known if it was pruned; None or NaN if it has none.
        pruned: Whether a trial was stopped early; such a trial cannot be the best.
        parameters: At most 6 by name, one value for each trial.
        path: Where to write the picture.
        metric: What the values are; higher is better.
        unit: As in `format_value`.
        logarithmic: Names of the parameters with a logarithmic axis.
        title: In bold on top.
        subtitle: In grey below the title.
        note: In the band at the bottom.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    heights = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    stopped = np.asarray(pruned, dtype=bool)
    if not (len(heights) == len(stopped) and all(len(column) == len(heights) for column in parameters.values())):
        raise ValueError(f"{len(heights)} values, but not as many pruned or parameters")
    if not np.isfinite(heights).any():
        return _only_words("No trial has a value yet.", path, title, subtitle, note)
    factor, unit_label = _axis_unit(unit, float(np.nanmax(heights)))
    heights = factor * heights
    finished = np.where(stopped | ~np.isfinite(heights), -math.inf, heights)
    best = np.maximum.accumulate(finished)
    num_rows = 1 + math.ceil(len(parameters) / 2)
    label = _plain(metric_label(metric) + unit_label)
    number = np.arange(1, len(heights) + 1)
    with _picture(path, WIDTH, 2.8 + 2.1 * (num_rows - 1), title, subtitle, note) as figure:
        grid = figure.add_gridspec(num_rows, 2, height_ratios=[2.8] + [2.1] * (num_rows - 1))
        history = figure.add_subplot(grid[0, :])
        known = np.isfinite(best)
        history.step(number[known], best[known], where="post", color=GREY, linewidth=1.5, label="best so far")
        panels = [(history, number, "trial")]
        for i, (name, column) in enumerate(parameters.items()):
            axes = figure.add_subplot(grid[1 + i // 2, i % 2])
            if name in logarithmic:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                axes.minorticks_off()
            if len(set(column)) <= 5:  # the values there are to choose from
                axes.set_xticks(sorted(set(column)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
            panels.append((axes, np.asarray(column), _plain(metric_label(name))))
        for axes, places, x_label in panels:
            axes.scatter(places[~stopped], heights[~stopped], s=26, color=BLUE, zorder=3, label="finished")
            axes.scatter(
                places[stopped], heights[stopped], s=26, marker="x", color=ORANGE, zorder=3, label="stopped early"
            )
            axes.set_xlabel(x_label)
            axes.set_ylabel(label)
        history.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_above(history)
    return path


@contextmanager
def _picture(
    path: Path, width: float, height: float, title: str, subtitle: str | None, note: str | None
) -> Iterator["Figure"]:
    """Give a figure with `width` x `height` inches free below its title; write it to `path` when the block is done."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Rectangle

    title_lines, subtitle_lines, note_lines = (
        textwrap.wrap(text or "", int(width * per_inch))
        for text, per_inch in ((title, 8.5), (subtitle, 12.5), (note, 12.5))
    )
    header = 0.16 + 0.26 * len(title_lines) + 0.2 * len(subtitle_lines)
    footer = 0.16 + 0.2 * len(note_lines) if note_lines else 0.08
    total = header + height + footer
    # From matplotlib's defaults, whatever the user's own matplotlibrc says. The settings belong to the whole process:
    # rc_context puts them back. The backend is left alone, since the canvas is chosen here.
    settings: Any = {**matplotlib.rcParamsDefault, **STYLE}
    del settings["backend"]
    with matplotlib.rc_context(settings):
        area = (0.012, footer / total, 0.976, height / total)
        # compress: square cells and images take less room than the layout would give them; without it labels slip out.
        below_header = ConstrainedLayoutEngine(rect=area, h_pad=0.08, compress=True)
        figure = Figure(figsize=(width, total), dpi=DPI, layout=below_header)
        FigureCanvasAgg(figure)
        left, top = 0.12 / width, 1 - 0.1 / total
        figure.text(left, top, _plain("\n".join(title_lines)), size=13, weight="bold", va="top", linespacing=1.3)
        below_title = top - 0.27 * len(title_lines) / total
        figure.text(left, below_title, _plain("\n".join(subtitle_lines)), size=9.5, color=GREY, va="top")
        if note_lines:
            band = Rectangle((0, 0), 1, footer / total, transform=figure.transFigure, facecolor="#FFE9B8")
            figure.add_artist(band)
            words = _plain("\n".join(note_lines))
            figure.text(left, footer / total / 2, words, size=9.5, weight="bold", va="center")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)


def _only_words(words: str, path: Path, title: str, subtitle: str | None, note: str | None) -> Path:
    with _picture(path, WIDTH, 1.0, title, subtitle, note) as figure:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, words, ha="center", va="center", size=12, color=GREY)
    return path


def _curve(records: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[NDArray, NDArray]:
    """Return steps and values of one curve, sorted, each step once."""
    of_kind = [record for record in records if record["kind"] == kind and record.get(name) is not None]
    points = {record["step"]: float(record[name]) for record in of_kind}  # NaN and infinity are text in JSON
    steps = np.array(sorted(points), dtype=np.float64)
    return steps, np.array([points[step] for step in steps], dtype=np.float64)


def _draw_curve(axes: "Axes", name: str, kind: str, steps: NDArray, values: NDArray) -> None:
    finite = np.isfinite(values)
    values = np.where(finite, values, np.nan)
    marker = "o" if finite.sum() == 1 else ""  # a line through one point is not to be seen
    if kind == "val":
        axes.plot(steps, values, color=VERMILLION, marker="o", markersize=5, linewidth=1.5, label="validation")
    elif name == "learning_rate":
        axes.plot(steps, values, color=GREEN, marker=marker)
        axes.set_ylim(bottom=0)
    elif len(steps) < 20:
        axes.plot(steps, values, color=BLUE, marker=marker, label="training")
    else:
        axes.plot(steps, values, color=SKY, linewidth=0.8, alpha=0.7, label="training, as logged")
        axes.plot(steps, _smoothed(values), color=BLUE, label="training, smoothed")
    if not finite.all():
        first = steps[finite.argmin()]
        axes.axvline(first, color=ORANGE, linestyle=":", label=f"not finite ({kind}), first at step {first:g}")


def _smoothed(values: NDArray) -> NDArray:
    """Return the centred running mean, which has no lag behind the curve; a gap of NaN stays a gap."""
    finite = np.isfinite(values)
    window = np.ones(2 * max(1, len(values) // 30) + 1)
    sums = np.convolve(np.where(finite, values, 0), window, mode="same")
    weights = np.convolve(finite, window, mode="same")
    return np.where(finite, sums / np.maximum(weights, 1), np.nan)


def _counts(matrix: ArrayLike, class_names: Sequence[str]) -> NDArray:
    counts = np.asarray(matrix)
    if counts.shape != (len(class_names), len(class_names)):
        raise ValueError(f"{len(class_names)} class names do not go with a matrix of shape {counts.shape}")
    return counts


def _print_cells(axes: "Axes", counts: NDArray, shares: NDArray, with_counts: bool) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count == 0:
            continue  # the empty cell says it, and the mistakes stand out
        share = shares[row, column]
        words = f"{share:.0f} %\n{count:,}" if with_counts else f"{share:.0f}"
        axes.text(
            column,
            row,
            words,
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if share > 55 else INK,
        )


def _list_confused_pairs(axes: "Axes", counts: NDArray, shares: NDArray, class_names: Sequence[str]) -> None:
    from matplotlib.transforms import blended_transform_factory

    axes.set_axis_off()
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0, shares)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:NUM_CONFUSED_PAIRS]
    pairs = [tuple(np.unravel_index(index, counts.shape)) for index in order if mistakes.flat[index] > 0]
    lines = [
        f"{_shortened(class_names[true], 15)} → {_shortened(class_names[predicted], 15)}: "
        f"{shares[true, predicted]:.0f} % ({counts[true, predicted]:,})"
        for true, predicted in pairs
    ]
    half = math.ceil(len(lines) / 2)
    # From the left edge of the picture on, not of the axes, so that two columns have room.
    across_the_picture = blended_transform_factory(axes.get_figure().transFigure, axes.transAxes)  # type: ignore[union-attr]
    place: dict[str, Any] = {"transform": across_the_picture, "va": "top", "in_layout": False}
    axes.text(0.03, 1, "Most often confused: true class → predicted class", weight="bold", **place)
    for left, column in ((0.03, lines[:half]), (0.52, lines[half:])):
        axes.text(left, 0.86, _plain("\n".join(column)), fontsize=9, linespacing=1.5, **place)


def _finite_spread(values: Sequence[float]) -> tuple[Spread | None, list[float]]:
    finite = [float(value) for value in values if math.isfinite(float(value))]
    return (mean_and_spread(finite) if finite else None), finite


def _in_words(spread: Spread | None, values: Sequence[float], unit: str) -> str:
    if not values:
        return "no value"
    num_finite = spread.n if spread else 0
    if spread is None or num_finite < len(values):
        return f"not finite in {len(values) - num_finite} of {len(values)}"
    words = format_value(spread.mean, unit)
    return _plain(words if spread.std is None else f"{words}\n± {format_value(spread.std, unit)}")


def _axis_unit(unit: str, largest: float) -> tuple[float, str]:
    """Return the factor by which to multiply values for the axis, and what to write behind the name of the metric."""
    if unit == "fraction":
        return 100.0, " (%)"
    if unit == "bytes":
        power = min(4, int(math.log(max(largest, 1), 1024)))
        return 1024.0**-power, f" ({('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]})"
    return 1.0, f" ({unit})" if unit else ""


def _comparison_legend(figure: "Figure", axes: "Axes", from_zero: bool, several_seeds: bool) -> None:
    from matplotlib.lines import Line2D

    label = "mean" if several_seeds else "one run"
    handles = [Line2D([], [], color=SKY, linewidth=0, marker="s" if from_zero else "D", markersize=9, label=label)]
    if several_seeds:
        handles += [
            Line2D([], [], color=INK, linewidth=1.2, marker="|", markersize=7, label="± sample standard deviation"),
            Line2D([], [], color=VERMILLION, linewidth=0, marker="o", markersize=5, label="one seed"),
        ]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9, borderaxespad=0.2)


def _date_ticks(axes: "Axes") -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=4, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _legend_above(axes: "Axes") -> None:
    # Curves go wherever they like: no corner within the axes stays free.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9, borderaxespad=0.2)


def _percent(share: float) -> str:
    # 99.97 % is not 100 %: the model was not certain.
    return ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs, as in the name of a class, as the bounds of a formula."""
    return text.replace("$", r"\$")
