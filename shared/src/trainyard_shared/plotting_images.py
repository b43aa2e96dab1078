"""Pictures for image classification with many classes, in the style of `plotting.py`."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.calibration import Calibration
from trainyard_shared.plotting import BLUE, GREY, INK, LIGHT_GREY, SKY, VERMILLION, WIDTH, _only_words, _picture, _plain

EXAMPLES_OF_A_CLASS = 4


def confusion_in_groups(
    matrix: ArrayLike,
    class_names: Sequence[str],
    group_of_class: ArrayLike,
    group_names: Sequence[str],
    path: Path,
    title: str = "Confusion matrix",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw a large confusion matrix of which every class can be read: classes sorted by group, groups framed.

    Args:
        matrix: counts (C, C), true classes in rows.
        class_names: C of them.
        group_of_class: (C,) index into `group_names`.
        group_names: shown along the diagonal.
        path: of the picture.
        title: above it.
        subtitle: below the title, in grey.
        note: in a band at the bottom.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    counts, groups = np.asarray(matrix), np.asarray(group_of_class)
    order = np.argsort(groups, kind="stable")
    shares = (100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[order][:, order]
    names = [_plain(class_names[index]) for index in order]
    bounds = np.flatnonzero(np.diff(groups[order], prepend=-1, append=-1))
    width = max(WIDTH, 0.115 * len(names) + 2)
    with _picture(path, width, width - 0.6, title, subtitle, note) as figure:
        axes = figure.subplots()
        # Nearly all mistakes are shares of a few per cent: spread the low end of the colours.
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        figure.colorbar(image, ax=axes, label="share of the true class (%)", fraction=0.03, pad=0.01)
        axes.grid(False)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.tick_params(length=1.5)
        for start, end in itertools.pairwise(bounds.tolist()):
            frame = Rectangle((start - 0.5, start - 0.5), end - start, end - start, fill=False, color=VERMILLION)
            axes.add_patch(frame)
            # Beside the frame, on the side where there is room.
            right = end < 0.75 * len(names)
            axes.text(
                end + 0.3 if right else start - 1.2,
                (start + end) / 2 - 0.5,
                _plain(group_names[groups[order[start]]]),
                ha="left" if right else "right",
                va="center",
                fontsize=7,
                color=INK,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            )
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    return path


def reliability_diagram(
    found: Calibration,
    path: Path,
    title: str = "Calibration",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw how often predictions of each confidence are right, beside the diagonal where both agree, and how many."""
    middle = (found.edges[:-1] + found.edges[1:]) / 2
    width = found.edges[1] - found.edges[0]
    present = found.counts > 0
    subtitle = subtitle or f"expected calibration error {100 * found.error:.1f} %, {found.counts.sum():,} predictions"
    with _picture(path, WIDTH, 5.0, title, subtitle, note) as figure:
        above, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
        above.bar(
            middle[present],
            100 * found.accuracy[present],
            width=0.92 * width,
            color=SKY,
            label="right (%)",
        )
        above.plot(
            found.confidence[present],
            100 * found.confidence[present],
            "o",
            color=VERMILLION,
            label="mean confidence of the bin (%)",
        )
        above.plot([0, 1], [0, 100], color=GREY, linestyle="--", linewidth=1.5, label="as often right as certain")
        above.set_ylim(0, 100)
        above.set_ylabel("predictions that are right (%)")
        above.legend(loc="upper left", fontsize=9)
        below.bar(middle, 100 * found.counts / found.counts.sum(), width=0.92 * width, color=BLUE)
        below.set_ylabel("of all (%)")
        below.set_xlabel("confidence: probability given to the predicted class")
        below.set_xlim(0, 1)
    return path


def confused_classes(
    images: NDArray[np.uint8],
    labels: ArrayLike,
    predictions: ArrayLike,
    confidences: ArrayLike,
    class_names: Sequence[str],
    path: Path,
    num_pairs: int = 8,
    title: str = "Classes most often confused",
    subtitle: str | None = None,
    note: str | None = None,
) -> Path:
    """Draw the pairs (true, predicted) with most mistakes: images taken wrongly beside images of the class predicted.

    Args:
        images: uint8 (N, 3, H, W).
        labels: (N,) true classes.
        predictions: (N,) predicted classes.
        confidences: (N,) probability of the predicted class; the most confident mistakes are shown.
        class_names: names of the classes.
        path: of the picture.
        num_pairs: rows of the picture.
        title: above it.
        subtitle: below the title, in grey.
        note: in a band at the bottom.
    """
    true, predicted, certain = np.asarray(labels), np.asarray(predictions), np.asarray(confidences)
    wrong = np.flatnonzero(true != predicted)
    if not len(wrong):
        return _only_words(f"No mistake among {len(true):,} images.", path, title, subtitle, note)
    pairs, counts = np.unique(np.stack([true[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    worst = np.argsort(-counts, kind="stable")[:num_pairs]
    subtitle = subtitle or "left: taken for the other class, most confident first; right: images that are of that class"
    columns = 2 * EXAMPLES_OF_A_CLASS + 1
    with _picture(path, WIDTH, 0.7 * len(worst), title, subtitle, note) as figure:
        grid = figure.subplots(len(worst), columns + 1, squeeze=False, width_ratios=[3.2, *[1] * columns])
        for axes in grid.flat:
            axes.set_axis_off()
        for row, ((of, taken_for), count) in enumerate(zip(pairs[worst], counts[worst], strict=True)):
            total = int((true == of).sum())
            words = f"{_plain(class_names[of])}\n→ {_plain(class_names[taken_for])}\n{count} of {total}"
            grid[row, 0].text(0, 0.5, words, va="center", fontsize=8.5, linespacing=1.35)
            mistakes = wrong[(true[wrong] == of) & (predicted[wrong] == taken_for)]
            mistakes = mistakes[np.argsort(-certain[mistakes], kind="stable")][:EXAMPLES_OF_A_CLASS]
            really = np.flatnonzero(true == taken_for)[:EXAMPLES_OF_A_CLASS]
            for first, chosen in ((1, mistakes), (2 + EXAMPLES_OF_A_CLASS, really)):
                for place, index in enumerate(chosen):
                    grid[row, first + place].imshow(images[index].transpose(1, 2, 0), interpolation="nearest")
            grid[row, 1 + EXAMPLES_OF_A_CLASS].plot([0.5, 0.5], [0, 1], color=LIGHT_GREY)
    return path
