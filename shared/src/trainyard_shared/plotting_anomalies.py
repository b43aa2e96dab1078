"""Pictures of detectors that watch machines until they fail, and of memory over length, in the style of `plotting`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from trainyard_shared.plotting import (
    BLUE,
    CURVE_STYLES,
    GREY,
    ORANGE,
    SKY,
    VERMILLION,
    WIDTH,
    _legend_above,
    _picture,
    _plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scores_over_life(
    scores: Mapping[str, ArrayLike],
    threshold: float,
    horizon: int | None,
    path: Path,
    log_scale: bool = False,
    title: str = "Score over each engine's life",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw the score of several machines over their cycles, one panel each, with the cycles at which the alarm is on.

    Args:
        scores: For each machine its name and scores, (T,), from cycle 1 on.
        threshold: Above it the alarm is on.
        horizon: Cycles before the failure that count as about to fail; the last score is then that of the last cycle
            before failure. None if the failure is not known.
        path: Of the PNG.
        log_scale: For scores that grow by orders of magnitude, all above 0.
        title: Above the picture.
        subtitle: Below it, in grey.
        note: In a band at the bottom.
    """
    if not scores:
        raise ValueError("there is no machine to draw")
    num_rows = -(-len(scores) // 2)
    with _picture(path, WIDTH, 0.5 + 1.55 * num_rows, title, subtitle, note) as figure:
        # The legend has a row of its own: within a panel it would hide a curve.
        grid = figure.add_gridspec(num_rows + 1, 2, height_ratios=[0.2] + [1.0] * num_rows)
        first: Axes | None = None
        for place, (name, values) in enumerate(scores.items()):
            axes = figure.add_subplot(grid[1 + place // 2, place % 2], sharey=first)
            first = first or axes
            line = np.asarray(values, dtype=np.float64)
            cycles = np.arange(1, len(line) + 1)
            axes.plot(cycles, line, color=BLUE, linewidth=1.4, label="score")
            axes.axhline(threshold, color=GREY, linewidth=1.2, linestyle="--", label="threshold")
            alarms = line > threshold
            axes.scatter(cycles[alarms], line[alarms], s=9, color=ORANGE, zorder=3, label="alarm")
            if horizon is not None:
                end = len(line)
                axes.axvspan(end - horizon, end, color=VERMILLION, alpha=0.13, linewidth=0, label="about to fail")
                axes.axvline(end, color=VERMILLION, linewidth=2, label="failure")
            if log_scale:
                axes.set_yscale("log")
            axes.set_title(_plain(name), fontsize=9.5, loc="left")
            axes.tick_params(labelsize=8.5)
            if place >= len(scores) - 2:
                axes.set_xlabel("cycle")
        assert first is not None
        legend = figure.add_subplot(grid[0, :])
        legend.set_axis_off()
        legend.legend(*first.get_legend_handles_labels(), loc="center left", ncols=5, fontsize=9, borderaxespad=0)
    return path


def lead_times(
    cycles: ArrayLike,
    horizon: int,
    path: Path,
    title: str = "How long before failure the alarm went off",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw a histogram of lead times, with the machines that failed without an alarm as a bar of their own.

    Args:
        cycles: One for each machine, (E,); NaN for one without an alarm.
        horizon: From when on the alarm should be on.
        path: Of the PNG.
        title: Above the picture.
        subtitle: Below it, in grey.
        note: In a band at the bottom.
    """
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(cycles, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"lead times must be one row with at least one value, found shape {values.shape}")
    warned = values[~np.isnan(values)]
    longest = max(float(warned.max()) if len(warned) else 0.0, float(horizon))
    step = max(2, -(-int(longest + 1) // 25))
    with _picture(path, WIDTH, 2.8, title, subtitle, note) as figure:
        axes = figure.subplots()
        axes.hist(warned, bins=np.arange(0, longest + 1 + step, step).tolist(), color=SKY, edgecolor="white")
        missed = len(values) - len(warned)
        if missed:
            axes.bar(-step, missed, width=0.9 * step, color=VERMILLION, label=f"{missed} failed without an alarm")
        axes.axvline(horizon, color=GREY, linestyle="--", label=f"wanted: {horizon} cycles")
        if len(warned):
            axes.axvline(np.median(warned), color=BLUE, label=f"median: {np.median(warned):g} cycles")
        axes.set_xlabel("cycles from alarm to failure")
        axes.set_ylabel("engines")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(False, axis="x")
        _legend_above(axes)
    return path


def precision_recall(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    path: Path,
    title: str = "Precision and recall",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw precision over recall for every threshold, with the area below (average precision) and the chosen point.

    `labels` are 0 or 1, both among them, `scores` higher for what is more likely 1, shape (N,) each.
    """
    true, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)  # equal scores pass together
    hits = np.cumsum(true[order])[ends]
    precision, recall = hits / (ends + 1), hits / true.sum()
    area = float(np.sum(np.diff(recall, prepend=0) * precision))
    called = values > threshold
    with _picture(path, WIDTH, 3.6, title, subtitle, note) as figure:
        axes = figure.subplots()
        axes.plot(100 * recall, 100 * precision, color=BLUE, label=f"area below: {area:.3f}")
        if called.any():
            point = 100 * called[true == 1].mean(), 100 * true[called].mean()
            label = f"chosen threshold: recall {point[0]:.0f} %, precision {point[1]:.0f} %"
            axes.plot(*point, color=VERMILLION, marker="o", linewidth=0, label=label)
        share = 100 * true.mean()
        axes.axhline(share, color=GREY, linestyle="--", linewidth=1.5, label=f"always on: {share:.0f} %")
        axes.set_xlim(-1, 101)
        axes.set_ylim(-1, 103)
        axes.set_xlabel("recall (%)")
        axes.set_ylabel("precision (%)")
        axes.legend(loc="center left", fontsize=9)
    return path


def memory_over_length(
    lengths: Sequence[int],
    bytes_of: Mapping[str, Sequence[float]],
    path: Path,
    title: str = "Activation memory over sequence length",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw bytes over lengths, both axes logarithmic, one curve for each variant.

    Args:
        lengths: Shape (n,).
        bytes_of: For each variant its bytes, (n,).
        path: Of the PNG.
        title: Above the picture.
        subtitle: Below it, in grey.
        note: In a band at the bottom.
    """
    if not bytes_of or any(len(values) != len(lengths) for values in bytes_of.values()):
        raise ValueError(f"there must be {len(lengths)} values for each variant, one for each length")
    with _picture(path, WIDTH, 3.6, title, subtitle, note) as figure:
        axes = figure.subplots()
        for index, (name, values) in enumerate(bytes_of.items()):
            color, marker = CURVE_STYLES[index % len(CURVE_STYLES)]
            # Dashed from the second on: curves that lie on each other can both be seen.
            style = "-" if index == 0 else (0, (4, 2 + index))
            mib = np.asarray(values, dtype=np.float64) / 2**20
            axes.plot(lengths, mib, color=color, marker=marker, linestyle=style, label=_plain(name))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(lengths), [str(length) for length in lengths])
        axes.set_xlabel("cycles in a window")
        axes.set_ylabel("MiB")
        _legend_above(axes)
    return path
